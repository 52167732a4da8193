"""dw: a data warehouse in a folder. Sources in, Parquet kept, PostgreSQL loaded, every run audited."""

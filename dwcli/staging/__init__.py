"""Between source and table: the lake's files, the table's schema, the load, the state, the audit."""

from __future__ import annotations

from dwcli.staging.audit import ensure_audit_table, write_audit_record
from dwcli.staging.dw_schema import ensure_table_exists
from dwcli.staging.loader import load_parquet_files_to_dw
from dwcli.staging.writer import write_ingestion_result_to_parquet

__all__ = [
    "ensure_audit_table",
    "ensure_table_exists",
    "load_parquet_files_to_dw",
    "write_audit_record",
    "write_ingestion_result_to_parquet",
]

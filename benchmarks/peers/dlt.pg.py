# dlt, pyarrow backend, CSV load files
from __future__ import annotations

import os

import dlt
from dlt.sources.sql_database import sql_table

# dlt insists on a password, also where the server asks for none.
os.environ.setdefault("CREDENTIALS__PASSWORD", "unused")
pipeline = dlt.pipeline(
    "orders", destination=dlt.destinations.postgres(os.environ["TARGET_URL"]), dataset_name="public"
)
orders = sql_table(os.environ["SOURCE_URL"], "orders", backend="pyarrow", chunk_size=100_000)
pipeline.run(orders, loader_file_format="csv", write_disposition="replace").raise_on_failed_jobs()

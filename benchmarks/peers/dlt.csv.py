# dlt, rows from pyarrow.csv, CSV load files
from __future__ import annotations

import os

import dlt
import pyarrow as pa
import pyarrow.csv


@dlt.resource(name="orders")
def orders():
    for batch in pyarrow.csv.open_csv(os.environ["CSV"]):
        yield pa.Table.from_batches([batch])


# dlt insists on a password, also where the server asks for none.
os.environ.setdefault("CREDENTIALS__PASSWORD", "unused")
pipeline = dlt.pipeline(
    "orders", destination=dlt.destinations.postgres(os.environ["TARGET_URL"]), dataset_name="public"
)
pipeline.run(orders, loader_file_format="csv", write_disposition="replace").raise_on_failed_jobs()

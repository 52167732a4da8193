# polars and ADBC by hand, all rows in memory
from __future__ import annotations

import os

import polars as pl

orders = pl.read_database_uri("SELECT * FROM orders", os.environ["SOURCE_URL"], engine="adbc")
orders.write_database("orders", os.environ["TARGET_URL"], engine="adbc")

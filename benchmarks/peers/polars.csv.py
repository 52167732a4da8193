# polars and ADBC by hand, all rows in memory
from __future__ import annotations

import os

import polars as pl

orders = pl.read_csv(os.environ["CSV"], try_parse_dates=True)
orders.write_database("orders", os.environ["TARGET_URL"], engine="adbc")

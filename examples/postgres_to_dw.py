"""One table or query of a PostgreSQL, into the warehouse, in one call.

    PG_HOST=db.internal PG_DATABASE=shop PG_USERNAME=reader PG_PASSWORD=… \\
        python examples/postgres_to_dw.py "SELECT * FROM public.orders" dw_orders

The source is named by PG_HOST, PG_PORT, PG_DATABASE, PG_USERNAME and PG_PASSWORD; the warehouse by
DW_URL or DW_HOST and its kin, else it is one of its own in ./.dw. Every run appends what it reads;
incremental_postgres_to_dw.py shows how to read only what is new.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dwcli.pipeline import run_pipeline
from dwcli.warehouse import embedded, make_engine, resolve_url


def main(query: str = "SELECT 1 AS n", table: str = "dw_test") -> None:
    for name, default in {
        "PG_HOST": "127.0.0.1",
        "PG_DATABASE": "postgres",
        "PG_USERNAME": "postgres",
    }.items():
        os.environ.setdefault(name, default)
    result = run_pipeline(
        {"protocol": "postgres", "env_prefix": "PG"},
        query,
        source_name="postgres_example",
        target_table=table,
        lake_path=os.environ.get("DW_LAKE", "lake"),
        dw_engine=make_engine(warehouse_url()),
        pipeline_name="postgres_example",
    )
    print(json.dumps(result, indent=2, default=str))


def warehouse_url() -> str:
    """The warehouse that the environment names, else a PostgreSQL of dw's own in ./.dw."""
    url = resolve_url(None, os.environ, configured="embedded")
    return embedded.url(embedded.start(Path(".dw/postgres"))) if url == "embedded" else url


if __name__ == "__main__":
    main(*sys.argv[1:3])

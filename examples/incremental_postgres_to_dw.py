"""Only what is new: a PostgreSQL table loaded again and again, each time from where it ended.

    python examples/incremental_postgres_to_dw.py             dw keeps the watermark
    python examples/incremental_postgres_to_dw.py --by-hand   this script keeps it, in a JSON file

The source is named by PG_HOST, PG_PORT, PG_DATABASE, PG_USERNAME and PG_PASSWORD, the table by
PG_TABLE (public.orders), its key by PG_KEY (id) and the column that tells new rows from old ones by
PG_CURSOR (updated_at). The warehouse is named by DW_URL or DW_HOST and its kin, else it is ./.dw.

dw keeps the watermark in the transaction that loads the rows, so neither can be there without the other.
A file beside the database cannot do that: killed between the two, `--by-hand` loads some rows twice; and
it misses a row that is committed late with a time that the watermark has passed, which a merge with
`lookback` reads again. It is here for those who must keep a watermark of their own, and to show the
pieces that dw is made of.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import polars as pl
from psycopg import sql

from dwcli.connectors import create_connector
from dwcli.contract import IngestionResult
from dwcli.events import ignore
from dwcli.pipeline import RunOptions, run_project
from dwcli.project import load_project, select
from dwcli.staging import load_parquet_files_to_dw, write_ingestion_result_to_parquet
from dwcli.warehouse import embedded, make_engine, resolve_url

DEFAULTS = {
    "PG_HOST": "127.0.0.1",
    "PG_PORT": "5432",
    "PG_DATABASE": "postgres",
    "PG_USERNAME": "postgres",
    "PG_PASSWORD": "",
    "PG_TABLE": "public.orders",
    "PG_KEY": "id",
    "PG_CURSOR": "updated_at",
}

PROJECT = """\
name: incremental
"""
SOURCE = """\
protocol: postgres
host: ${env:PG_HOST}
port: ${env:PG_PORT}
database: ${env:PG_DATABASE}
username: ${env:PG_USERNAME}
password: ${env:PG_PASSWORD}
pipelines:
  orders:
    query: %(PG_TABLE)s
    write: merge
    key: [%(PG_KEY)s]
    cursor: %(PG_CURSOR)s
"""


def main(arguments: list[str]) -> None:
    for name, default in DEFAULTS.items():
        os.environ.setdefault(name, default)
    if arguments == ["--by-hand"]:
        rows = load_by_hand(Path("watermark.json"))
    else:
        rows = load_with_dw(Path("incremental"))["rows_loaded"]
    print(f"{rows} new or changed rows")


def load_with_dw(folder: Path) -> dict[str, Any]:
    """Run the pipeline of a project, which is written here the first time."""
    if not (folder / "dw.yaml").exists():
        (folder / "sources").mkdir(parents=True)
        (folder / "dw.yaml").write_text(PROJECT)
        (folder / "sources" / "shop.yaml").write_text(SOURCE % os.environ)
    project = load_project(folder)
    [result] = run_project(project, select(project, ["orders"]), warehouse_url(), RunOptions(), ignore)
    if result["status"] != "success":
        raise SystemExit(result["error"]["message"])
    return result


def load_by_hand(watermark: Path) -> int:
    """Read from the watermark on, load, and only then write down how far it went."""
    column, table = os.environ["PG_CURSOR"], os.environ["PG_TABLE"]
    reached = json.loads(watermark.read_text())[table] if watermark.exists() else "-infinity"
    newer = sql.SQL("SELECT * FROM {} WHERE {} > {}").format(
        sql.Identifier(*table.split(".")), sql.Identifier(column), sql.Literal(reached)
    )
    connector = create_connector({"protocol": "postgres", "env_prefix": "PG"})
    connector.connect()
    try:
        result = connector.fetch_data(newer.as_string())
        items = list(result.items)
    finally:
        connector.close()
    read = IngestionResult(success=True, protocol=result.protocol, items=items)
    paths = write_ingestion_result_to_parquet(read, os.environ.get("DW_LAKE", "lake"), "orders_by_hand")
    rows = load_parquet_files_to_dw(make_engine(warehouse_url()), paths, "orders_by_hand")
    if rows:
        highest = max(pl.read_parquet(path)[column].max() for path in paths)
        watermark.write_text(json.dumps({table: str(highest)}))
    return rows


def warehouse_url() -> str:
    """The warehouse that the environment names, else a PostgreSQL of dw's own in ./.dw."""
    url = resolve_url(None, os.environ, configured="embedded")
    return embedded.url(embedded.start(Path(".dw/postgres"))) if url == "embedded" else url


if __name__ == "__main__":
    main(sys.argv[1:])

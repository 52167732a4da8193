"""Every example is run as a person would run it, against a real warehouse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from dwcli.connectors import create_connector
from tests.services import POSTGRES_URL, required

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted([*EXAMPLES.glob("*_connector.json"), *EXAMPLES.glob("*_connector.yaml")])


@pytest.fixture
def shop():
    """A source: a database with a table of orders, and the environment that names it."""
    server = required("PostgreSQL", POSTGRES_URL)
    name = f"example_shop_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(server)
    url = parts._replace(path=f"/{name}").geturl()
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE orders AS SELECT i AS id, i * 1.50 AS total,"
            " timestamptz '2026-01-01 00:00+00' + i * interval '1 min' AS updated_at"
            " FROM generate_series(1, 500) AS i"
        )
        connection.execute("ALTER TABLE orders ADD PRIMARY KEY (id)")
    yield {
        "url": url,
        "PG_HOST": parts.hostname,
        "PG_PORT": str(parts.port or 5432),
        "PG_DATABASE": name,
        "PG_USERNAME": parts.username,
        "PG_PASSWORD": parts.password or "",
    }
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def run_example(tmp_path, warehouse_url):
    def run(name, *arguments, environment=None):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *arguments],
            cwd=tmp_path,
            env={**os.environ, "DW_URL": warehouse_url, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def value(connection, query):
    return connection.execute(query).fetchone()[0]


def test_postgres_to_dw_loads_a_query_and_audits_it(run_example, shop, warehouse):
    out = run_example("postgres_to_dw.py", "SELECT * FROM public.orders", "dw_orders", environment=shop)
    result = json.loads(out)
    assert (result["status"], result["rows_loaded"]) == ("success", 500)
    assert value(warehouse, "SELECT sum(total) FROM dw_orders") * 2 == 3 * 500 * 501 / 2
    assert value(warehouse, "SELECT status FROM etl_audit_log") == "success"


def test_rest_api_to_dw_keeps_nested_json_as_jsonb(run_example, warehouse, tmp_path):
    out = run_example("rest_api_to_dw.py")
    assert out.splitlines()[-1] == "250 orders loaded into api_orders"
    assert value(warehouse, "SELECT pg_typeof(lines)::text FROM api_orders LIMIT 1") == "jsonb"
    assert value(warehouse, "SELECT sum(jsonb_array_length(lines)) FROM api_orders") == 250
    assert value(warehouse, "SELECT rows_loaded FROM etl_audit_log WHERE status = 'success'") == 250
    assert len(list(tmp_path.glob("lake/http/orders_api/*/*.parquet"))) == 1


@pytest.mark.parametrize(
    ("arguments", "table"), [((), "orders"), (("--by-hand",), "orders_by_hand")], ids=["by dw", "by hand"]
)
def test_incremental_postgres_to_dw_reads_only_what_is_new(run_example, shop, warehouse, arguments, table):
    def run():
        return run_example("incremental_postgres_to_dw.py", *arguments, environment=shop).strip()

    assert run() == "500 new or changed rows"
    with psycopg.connect(shop["url"]) as source:
        source.execute("INSERT INTO orders VALUES (501, 7, '2026-02-01'), (502, 8, '2026-02-02')")
    run()
    assert value(warehouse, f"SELECT count(*) FROM {table}") == 502
    run()
    assert value(warehouse, f"SELECT count(*) FROM {table}") == 502


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configs_are_valid(path):
    assert create_connector(path).protocol == path.name.split("_")[0]


def test_the_environment_wins_over_an_example_config(monkeypatch):
    monkeypatch.setenv("PG_HOST", "db.internal")
    assert create_connector(EXAMPLES / "postgres_connector.json").config.host == "db.internal"

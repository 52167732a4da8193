from __future__ import annotations

import sys
from uuid import uuid4

import psycopg
import pytest

from benchmarks import data, report
from benchmarks.measure import CommandFailed, Cost, run
from tests.services import POSTGRES_URL, required

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "block = b'x' * 80_000_000; input()"], stdin=subprocess.PIPE)
block = b'x' * 40_000_000
sum(range(20_000_000))
child.communicate(b'\\n')
"""


@pytest.fixture
def server():
    return required("PostgreSQL", POSTGRES_URL).rpartition("/")[0]


@pytest.fixture
def database(server):
    name = f"bench_{uuid4().hex[:8]}"
    data.recreate_database(server, name)
    yield data.database_url(server, name)
    data.drop_database(server, name)


def fill(url, rows):
    with psycopg.connect(url) as connection:
        connection.execute("SELECT set_config('bench.rows', %s, false)", [str(rows)])
        connection.execute((data.HERE / "orders.sql").read_text())


def test_peak_memory_counts_the_children(tmp_path):
    cost = run([sys.executable, "-c", PARENT], {}, tmp_path, tmp_path / "log")
    assert 120 < cost.peak < 250
    assert cost.wall > 0
    assert cost.cpu > 0


def test_a_command_that_fails_is_no_measurement(tmp_path):
    with pytest.raises(CommandFailed, match="out of luck"):
        run([sys.executable, "-c", "raise SystemExit('out of luck')"], {}, tmp_path, tmp_path / "log")


def test_the_fingerprint_tells_a_changed_row(database):
    fill(database, 1000)
    before = data.fingerprint(database)
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE orders SET note = note || '.' WHERE id = 7")
    assert before[0] == 1000
    assert data.fingerprint(database) != before


def test_results_show_ratios_beside_the_limit():
    series = {
        "psql_pipe": report.Series("psql_pipe", "psql", [Cost(2, 1, 10)]),
        "dw": report.Series("dw", "dw", [Cost(3, 2, 300), Cost(9, 9, 900), Cost(2, 2, 200)]),
        "sling": report.Series("sling", "sling", reason="not installed"),
    }
    assert report.table(series, "psql_pipe")[2:] == [
        "| psql | 2.0 | 1.0 | 1.0 | 10 | yes |",
        "| **dw** | 3.0 | 1.5 | 2.0 | 300 | yes |",
        "| sling | | | | | left out: not installed |",
    ]


def test_start_up_is_judged_by_its_targets():
    from benchmarks.startup import BARE, PYTHON, ratios

    measured = {
        PYTHON: [0.02, 0.03, 0.02],
        "dw run ⇥": [0.03],
        "dw status": [0.3],
        BARE: [0.2],
        "sling --help": "not installed",
    }
    lines = [" ".join(line.split()) for line in ratios(measured)]
    assert lines == [
        "seconds × python × Typer",
        "python -c pass 0.020 1.00 0.10",
        "dw run ⇥ 0.030 1.50 0.15 holds: at most 1.5 × python -c pass",
        "dw status 0.300 15.00 1.50 MISSED: at most 1 × bare Typer application --help",
        "bare Typer application --help 0.200 10.00 1.00",
        "sling --help not installed",
    ]

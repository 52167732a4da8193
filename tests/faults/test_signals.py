"""A signal ends a run in every phase: said, audited, and nothing of it half in the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.meanwhile import never_answering
from tests.faults.place import WRITES, make_place
from tests.faults.trouble import PHASES, SIGNAL_POINTS, STOPPED, signalled, signalled_while_waiting

NAMES = list(STOPPED)


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.mark.parametrize("point", SIGNAL_POINTS)
def test_a_signal_at_a_named_place(run: Forker, warehouse_url: str, tmp_path: Path, point: str) -> None:
    """Signal and write disposition change from place to place; `make faults` takes all of them."""
    number = SIGNAL_POINTS.index(point)
    place = make_place(tmp_path / "shop", warehouse_url, WRITES[number % 3], 1)
    reached, wrong = signalled(run, place, NAMES[number // 2 % 3], point, again=number % 2 == 0)
    assert wrong == []
    assert reached


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_while_the_server_is_at_a_statement(
    run: Forker, warehouse_url: str, tmp_path: Path, phase: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, PHASES[phase], 2)
    name = NAMES[list(PHASES).index(phase)]
    assert signalled_while_waiting(run, place, name, phase) == (True, [])


@pytest.mark.parametrize(("name", "goes_on"), [*((n, "answered") for n in NAMES), ("TERM", "unheard")])
def test_a_signal_at_a_commit_that_happens_all_the_same_is_no_failure(
    run: Forker, warehouse_url: str, tmp_path: Path, name: str, goes_on: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 3)
    assert signalled_while_waiting(run, place, name, "commit", goes_on) == (True, [])


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_ends_runs_side_by_side_that_wait_for_their_source(
    warehouse_url: str, tmp_path: Path, name: str
) -> None:
    """The third is not begun; each of the others has an audit row."""
    place = make_place(tmp_path / "shop", warehouse_url, "replace", 4)
    with never_answering() as (address, asked):
        pipelines = "".join(f"  p{n}: {{query: /p{n}, write: append}}\n" for n in range(3))
        config = f"protocol: http\nbase_url: {address}\ntimeout_seconds: 600\npipelines:\n{pipelines}"
        (place.root / "sources" / "shop.yaml").write_text(config, "utf-8")
        process = subprocess.Popen(
            [*forker.DW, "run", "--all", "--jobs", "2", "--json", "--no-input"],
            cwd=place.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(forker.ROOT)},
        )
        for _ in range(2):
            asked.get(timeout=120)
        process.send_signal(getattr(signal, f"SIG{name}"))
        said, told = process.communicate(timeout=120)
    assert process.returncode == STOPPED[name]
    assert [run["error"]["code"] for run in json.loads(said)["runs"]] == ["DW-STOPPED"] * 2
    assert b"Traceback" not in told
    with psycopg.connect(warehouse_url) as session:
        audited = session.execute("select status, error_code from etl_audit_log").fetchall()
    assert audited == [("failure", "DW-STOPPED")] * 2

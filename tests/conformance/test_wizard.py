"""Every kind of source is added by its wizard, in a terminal, as a person would, and then loaded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pexpect
import psycopg
import pytest

from dwcli.connectors import create_connector, secrets_of
from dwcli.documents import read_document
from tests.conformance.case import Case, Place
from tests.conformance.test_conformance import rows_from
from tests.conformance.wizard import COLUMNS, ROWS, add_source, plain

HERE = Path(__file__).parents[2]
COUNT = 20


@pytest.fixture
def project(tmp_path: Path, warehouse_url: str) -> Path:
    root = tmp_path / "shop"
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {warehouse_url}\n", "utf-8")
    return root


@pytest.fixture
def terminal(case: Case, protocol: str, project: Path, tmp_path: Path) -> Iterator[pexpect.spawn]:
    """`dw add-source` in a pseudo-terminal, with no flag at all."""
    theirs = ("NO_COLOR", "CI", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DW_") and k not in theirs}
    (tmp_path / "home").mkdir()
    (tmp_path / "inside").mkdir()
    own = {"PYTHONPATH": str(HERE), "HOME": str(tmp_path / "home"), "TERM": "xterm", "PYTHONUTF8": "1"}
    own["PROMPT_TOOLKIT_NO_CPR"] = (
        "1"  # nobody here answers where the cursor is, and each question would wait
    )
    module = ["dwcli"]
    if case.inside:
        module = ["tests.conformance.inside", protocol, str(tmp_path / "inside"), str(COUNT)]
    child: Any = pexpect.spawn(
        sys.executable,
        ["-m", *module, "add-source"],
        cwd=str(project),
        env=kept | own,  # type: ignore[arg-type]
        encoding="utf-8",
        dimensions=(ROWS, COLUMNS),
        timeout=60,
        maxread=65536,
    )
    with closing(child):
        yield child


def test_wizard(
    protocol: str,
    case: Case,
    place: Place,
    project: Path,
    terminal: pexpect.spawn,
    warehouse: psycopg.Connection,
) -> None:
    """From the question for the kind of source to rows in the warehouse, one answer after the other."""
    query = place.put("orders", rows_from(1, COUNT))
    asked = add_source(terminal, protocol, place.config, query)
    told = plain(terminal.before)
    terminal.close()
    assert terminal.exitstatus == 0, f"{asked}\n{told}"
    assert asked[0] == "What kind of source?" and "Load now?" in asked

    path = project / "sources" / f"{protocol}.yaml"
    written = read_document(path).data
    assert written["protocol"] == protocol
    for secret in secrets_of(create_connector({"protocol": protocol, **place.config}).config):
        assert len(secret) < 6 or secret not in path.read_text("utf-8")
    assert len(written["pipelines"]) == 1
    told_next = re.search(r"Next: dw query '?select \* from (.+) limit 5", told)
    assert told_next, told
    wanted = f"select count(*), count(distinct {case.columns.get('id', 'id')}) from {told_next[1]}"
    assert warehouse.execute(wanted.encode()).fetchone() == (COUNT, COUNT)

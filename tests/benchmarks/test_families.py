"""The benchmark of the families, at a size that says only that it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.families.rows import COLUMNS, row, total
from benchmarks.families.sources import FAMILIES
from dwcli import connectors
from tests.services import POSTGRES_URL, required

ROOT = Path(__file__).parents[2]


def test_every_family_has_a_plain_script_that_says_what_it_is():
    for name in FAMILIES:
        text = (ROOT / "benchmarks" / "families" / "plain" / f"read_{name}.py").read_text("utf-8")
        assert text.startswith("# ")


def test_the_total_is_the_sum_of_the_rows():
    assert tuple(row(1)) == COLUMNS
    assert total(500) == pytest.approx(sum(float(row(number)["total"]) for number in range(1, 501)))


def test_every_family_is_measured(tmp_path):
    server = required("PostgreSQL", POSTGRES_URL).rpartition("/")[0]
    here = [name for name, family in FAMILIES.items() if family.protocol in connectors.names()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.families", "--rows", "2500", "--rounds", "1"),
            *("--out", tmp_path / "families.md", "--server", server),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "families.md").read_text("utf-8")
    assert page.count("| yes |") == len(here), page

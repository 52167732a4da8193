"""The figures of the long form: what is kept of a part, and what stands in the page."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.__main__ import parts, sized
from tests.faults.figures import Figures, keep, kept
from tests.faults.forker import ROOT

FULL = Figures("kills", cases=10, hits=9, wrong=0, seconds=60, scale=1.0, seed=1)
ORDER = ["kills", "races"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "kept.json").write_text("{}", "utf-8")
    return tmp_path / "kept.json"


def test_a_part_replaces_its_own_line_only(path: Path) -> None:
    keep("races", replace(FULL, what="races"), ORDER, path)
    keep("kills", FULL, ORDER, path)
    keep("kills", replace(FULL, hits=10), ORDER, path)
    assert list(kept(path)) == ORDER
    assert (kept(path)["kills"].hits, kept(path)["races"].hits) == (10, 9)
    assert kept(path)["kills"].date


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_smaller_run_is_not_kept(path: Path, wrong: int) -> None:
    keep("kills", FULL, ORDER, path)
    before = path.read_bytes()
    assert "not kept" in keep("kills", replace(FULL, scale=0.5, wrong=wrong), ORDER, path)
    assert path.read_bytes() == before


def test_what_was_wrong_at_full_size_is_kept_and_said(path: Path) -> None:
    keep("kills", FULL, ORDER, path)
    said = keep("kills", replace(FULL, wrong=2), ORDER, path)
    assert kept(path)["kills"].wrong == 2
    assert "2 wrong in 9; before: 0 wrong in 9" in said


def test_full_size_is_what_was_promised() -> None:
    tries = {part.name: part.tries for part in parts()}
    promised = {
        "kills": 540,
        "random": 300,
        "races": 200,
        "commits": 50,
        "late": 50,
        "bits": 100,
        "model": 2000,
    }
    assert {name: tries[name] for name in promised if tries[name] < promised[name]} == {}


def test_a_smaller_part_is_a_sample_of_the_whole() -> None:
    whole = next(parts())
    small = sized(whole, 0.01)
    assert len(small.cases) == 8
    assert set(small.cases) < set(whole.cases)
    assert sized(whole, 1.0) == whole


def test_every_part_is_listed() -> None:
    words = [sys.executable, "-m", "tests.faults", "--part", "list"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in kept() if f"\n{name} " not in f"\n{said}"] == []

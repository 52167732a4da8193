"""Words to the person: lines that fold below their last column, and a word where it takes long."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from dwcli.cli import _say, _wizard, add_source
from dwcli.connectors._catalog import cursor_candidates
from dwcli.contract import Column
from dwcli.project import load_project
from dwcli.render.preview import text


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch) -> Callable[[int], Screen]:
    def of(columns: int) -> Screen:
        shown = Screen()
        monkeypatch.setattr("sys.stderr", shown)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        for name in ("CI", "DW_PLAIN", "TERM"):
            monkeypatch.delenv(name, raising=False)
        return shown

    return of


def test_a_line_folds_below_its_last_column(screen):
    shown = screen(60)
    _say.say("    FAIL  the server does not let 'reader' in, since the password is another", fold=True)
    first, second = shown.getvalue().splitlines()
    assert second.index(second.split()[0]) == first.index("the server")


def test_on_a_narrow_screen_it_folds_by_two(screen):
    shown = screen(40)
    _say.say("  customers        replace  key id (primary key in the source)", fold=True)
    assert shown.getvalue().splitlines()[1].startswith("    ")
    assert shown.getvalue().splitlines()[1][4] != " "


def test_what_takes_long_is_named_while_it_lasts(screen, monkeypatch):
    monkeypatch.setattr(_say, "PATIENCE", 0.02)
    shown = screen(80)
    with _say.waiting("listing tables"):
        time.sleep(0.1)
    assert "listing tables, 1 s (Ctrl-C stops)" in shown.getvalue()
    assert shown.getvalue().endswith("\r\033[K")


def test_what_is_quick_is_not_named(screen):
    shown = screen(80)
    with _say.waiting("listing tables"):
        pass
    assert shown.getvalue() == ""


@pytest.mark.parametrize("name", ["updated_at", "Updated At", "last-modified", "lastupdate"])
def test_columns_that_tell_of_changes_are_known_by_their_names(name: str):
    found = cursor_candidates([Column(name, "timestamptz", nullable=False)], (), (name,))
    assert [candidate.sure for candidate in found] == [True]


@pytest.mark.parametrize(
    ("hours", "said"), [(-10, "-10:00:00"), (838, "838:00:00"), (0, "00:00:00"), (1.5, "01:30:00")]
)
def test_a_span_of_time_is_in_the_words_of_postgresql(hours: float, said: str):
    assert text(timedelta(hours=hours)) == said


def test_a_full_disk_does_not_stop_the_questions(project, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dwcli.cli._drafts.write_private", full)
    loaded = load_project(project)
    _wizard._save(loaded, {"protocol": "sqlite"})
    add_source.leave(loaded, {"protocol": "sqlite"})
    said = capsys.readouterr().err
    assert "cannot be kept for --resume: No space left on device" in said
    assert said.endswith("Stopped. The answers could not be saved: No space left on device.\n")

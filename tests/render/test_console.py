"""The one place that prints."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from dwcli.render.console import ascii_only, console, print_json, print_rows, say, to_json, write_text
from dwcli.render.tables import Column


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def test_json_has_words_for_everything():
    value = {
        "at": datetime(2026, 11, 22, 21, 48, tzinfo=UTC),
        "day": date(2026, 11, 22),
        "took": timedelta(seconds=1.5),
        "exact": Decimal("123456789012345678901234567890.10"),
        "nan": float("nan"),
        "raw": b"\x00\xff",
        "rows": (1, None, "größe 日本語"),
    }
    assert json.loads(to_json(value)) == {
        "at": "2026-11-22T21:48:00Z",
        "day": "2026-11-22",
        "took": 1.5,
        "exact": "123456789012345678901234567890.10",
        "nan": "nan",
        "raw": "\\x00ff",
        "rows": [1, None, "größe 日本語"],
    }


def test_rows_into_a_pipe_are_tsv(capsys: pytest.CaptureFixture[str]):
    print_rows([Column("a"), Column("b")], [[1204551, "x\ty"]])
    assert capsys.readouterr().out == "a\tb\n1204551\tx\\ty\n"


def test_json_into_a_pipe_is_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch):
    out = stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"name": "größe"})
    assert json.loads(out.buffer.getvalue().decode("utf-8")) == {"name": "größe"}  # type: ignore[attr-defined]


def test_a_screen_that_is_not_utf8_gets_escapes_instead_of_an_error(monkeypatch: pytest.MonkeyPatch):
    err = stream("ascii")
    monkeypatch.setattr(sys, "stderr", err)
    say("größe ▁█")
    err.flush()
    assert err.buffer.getvalue() == b"gr\\xf6\\xdfe \\u2581\\u2588\n"  # type: ignore[attr-defined]
    assert ascii_only(err)
    assert not ascii_only(stream("utf-8"))


def test_markup_in_data_is_data():
    out = io.StringIO()
    console(out).print("[red]x[/] :smile: [bold")
    assert out.getvalue() == "[red]x[/] :smile: [bold\n"


def test_a_file_gets_no_colours_even_when_colours_are_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    console(out).print("x", style="red")
    assert out.getvalue() == "x\n"


def test_text_for_programs_on_a_screen_cannot_steer_it(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", out)
    write_text(["a\tb\x1b[31m\n"])
    assert out.getvalue() == "a\tb\\x1b[31m\n"

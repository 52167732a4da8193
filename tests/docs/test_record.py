"""The recorded quickstart: it is the page's, it is small, and it tells nothing of the machine."""

from __future__ import annotations

import getpass
import json
import re
import socket
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [DOCS / "quickstart.svg", DOCS / "quickstart.cast"]


@pytest.fixture
def docs(monkeypatch):
    """The modules of the folder docs/."""
    monkeypatch.syspath_prepend(str(DOCS))
    import _record
    import _terminal

    yield _record, _terminal
    for name in ("_record", "_terminal"):
        sys.modules.pop(name, None)


def events():
    head, *lines = (DOCS / "quickstart.cast").read_text("utf-8").splitlines()
    return json.loads(head), [json.loads(line) for line in lines]


def played(terminal):
    """Every line that was on the screen when nothing moved, with all screens one below the other."""
    head, told = events()
    screen = terminal.Screen(head["width"], head["height"])
    seen = []
    for _, kind, output in told:
        assert kind == "o"
        terminal.feed(screen, output)
        seen.append(terminal.text_of(screen))
    return "\n".join(seen)


def test_it_plays_the_commands_of_the_page(docs):
    record, terminal = docs
    shown = re.sub(r"\s+", "", played(terminal))
    for command in record.commands():
        typed = record.ASKED.get(command, (command, []))[0]
        assert "$" + re.sub(r"\s+", "", typed) in shown, f"{typed}: run python docs/_record.py"


def test_every_question_is_answered_on_the_screen(docs):
    record, terminal = docs
    assert set(record.ASKED) <= set(record.commands()), "the page's commands have changed"
    shown = played(terminal)
    for _, questions in record.ASKED.values():
        assert [words for words, _ in questions if words not in shown] == []
    assert "Traceback" not in shown and "dw: " not in shown


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_it_is_small_and_tells_nothing_of_the_machine(path):
    text = path.read_text("utf-8")
    assert len(text.encode()) < 300_000
    words = {socket.gethostname(), getpass.getuser(), str(Path.home()), str(ROOT), "/tmp", "/home/", "/root"}
    found = [word for word in words if len(word) > 3 and re.search(rf"(?<![\w.]){re.escape(word)}\b", text)]
    assert found == []


def test_the_moments_of_the_recording_go_forward():
    head, told = events()
    moments = [moment for moment, *_ in told]
    assert head["version"] == 2 and (head["width"], head["height"]) == (80, 24)
    assert moments == sorted(moments) and 20 < moments[-1] < 120


def test_the_picture_is_an_svg_that_needs_nothing_else():
    text = (DOCS / "quickstart.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"(?:href|src|url)\W+(?!#)(?:https?:|//)", text) == []
    assert "prefers-reduced-motion" in text
    assert "(quickstart.svg)" in (DOCS / "quickstart.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("one\r\ntwo", "one\ntwo"),
        ("one\r\x1b[Ktwo", "two"),
        ("one\r\ntwo\x1b[1A\rONE", "ONE\ntwo"),
        ("abc\x1b[2D_", "a_c"),
        ("a\x1b[5Gb\x1b[2;3Hc", "a   b\n  c"),
        ("1\r\n2\r\n3\r\n4", "2\n3\n4"),
        ("12345678901", "1234567890\n1"),
        ("123456789日", "123456789\n日"),
        ("x\x1b[2J\x1b[Hy", "y"),
        ("a\x1b[31mb\x1b[0m\x1b[?25lc\x1b]0;title\x07d", "abcd"),
        ("a\x1b[", "a"),
    ],
)
def test_the_terminal_shows_what_a_terminal_shows(docs, output, shown):
    _, terminal = docs
    at_once, bit_by_bit = terminal.Screen(10, 3), terminal.Screen(10, 3)
    terminal.feed(at_once, output)
    for character in output:
        terminal.feed(bit_by_bit, character)
    assert terminal.text_of(at_once) == terminal.text_of(bit_by_bit) == shown


def test_a_terminal_that_is_asked_where_its_cursor_is_answers(docs):
    _, terminal = docs
    screen = terminal.Screen(10, 3)
    terminal.feed(screen, "ab\r\nc\x1b[6n")
    assert screen.answers == ["\x1b[2;2R"]


def test_the_picture_has_the_colours_and_the_gaps_of_the_screen(docs):
    _, terminal = docs
    screen = terminal.Screen(20, 2)
    terminal.feed(screen, "\x1b[1;32mok\x1b[0m    a<b  日本 c")
    texts = re.findall(
        r'<text x="([\d.]+)"[^>]*?(?: class="(\w)")?(?: style="fill:(#\w+)")?>([^<]*)<',
        terminal.svg([(1.0, terminal.frame_of(screen))], "t"),
    )
    assert texts == [
        ("0.0", "b", terminal.COLOURS[2], "ok"),
        (str(round(6 * 8.4, 1)), "", "", "a&lt;b"),
        (str(round(11 * 8.4, 1)), "", "", "日本 c"),
    ]

"""`dw edit`: by flags, as a wizard in a real terminal, and in an editor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pexpect
import pytest

from dwcli.cli._meaning import meanings
from dwcli.cli._rewrite import GONE, difference, rewritten
from dwcli.documents import parse_document
from dwcli.errors import ConfigError
from dwcli.project import PipelineConfig, load_project

ENTER, DOWN, ERASE, SPACE, STOP = "\r", "\x1b[B", "\x15", " ", "\x03"
COMMENTED = """\
# the shop
protocol: sqlite
database_path:   {database}   # a copy
pipelines:
  # every order
  orders:
    query: orders
    write: merge
    key:
      - id   # grows
    cursor: updated_at

  # people
  customers: {{query: customers, write: replace}}
# the end
"""


@pytest.fixture
def commented(shop):
    (shop / "sources" / "shop.yaml").write_text(COMMENTED.format(database=shop / "shop.db"))
    return shop


def text_of(shop: Path) -> str:
    return (shop / "sources" / "shop.yaml").read_text()


# -- the file -----------------------------------------------------------------------------------------

PATH = Path("x.yaml")


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("a:   1  # x\nb: 2\n", {("a",): 5}, "a:   5  # x\nb: 2\n"),
        ("a: 1\n", {("a",): 30.0, ("b",): 0.5}, "a: 30\nb: 0.5\n"),
        ("a: 1\r\nb: 'x'\r\n", {("b",): "y", ("c",): "z"}, "a: 1\r\nb: y\r\nc: z\r\n"),
        ("a: 1\npipelines:\n  p: {}\n", {("b",): 2}, "a: 1\nb: 2\npipelines:\n  p: {}\n"),
        ("k:\n  - a\n  - b # c\n# d\nz: 1\n", {("k",): ["x"]}, "k: [x] # c\n# d\nz: 1\n"),
        ("k: |\n  text\n  more\nz: 1", {("k",): "one"}, "k: one\nz: 1"),
        ("p:\n  q:\nz: 1\n", {("p", "q", "r"): 1}, "p:\n  q: {r: 1}\nz: 1\n"),
        ("a: 1\n# about b\nb: 2 # two\n# end\n", {("b",): GONE}, "a: 1\n# about b\n# end\n"),
        ("p: {a: 1, b: 2}\n", {("p", "a"): GONE}, "p: {b: 2}\n"),
        ("p: {a: 1, b: 2}\n", {("p", "b"): GONE}, "p: {a: 1}\n"),
        ("p:\n  a: 1\n  # c\n", {("p", "a"): GONE}, "p: {}\n  # c\n"),
        ('{\n  "a": {"b": 1}\n}\n', {("a", "c"): ["x"]}, '{\n  "a": {"b": 1, "c": ["x"]}\n}\n'),
        ('{\n  "a": 1,\n  "b": 2\n}', {("b",): GONE, ("c",): "é"}, '{\n  "a": 1,\n  "c": "é"\n}'),
        ("a: 1\n", {("a",): 1}, "a: 1\n"),
        ("", {("a",): "x: y # z"}, "a: 'x: y # z'\n"),
    ],
)
def test_only_what_changes_is_touched(text: str, changes: dict, expected: str):
    assert rewritten(text, PATH, changes) == expected
    parse_document(expected, PATH)


def test_a_file_that_cannot_be_changed_safely_is_left_alone():
    with pytest.raises(ConfigError, match="cannot change"):
        rewritten("? a # b:c\n: 1\n", PATH, {("a",): 2})
    assert difference("a\n", "a\n", "x") == []


# -- what it means ------------------------------------------------------------------------------------

MERGE = {"write": "merge", "key": ["id"], "cursor": "at"}


@pytest.mark.parametrize(
    ("before", "after", "words", "refresh"),
    [
        (MERGE, {**MERGE, "every": "1h"}, "", False),
        (MERGE, {**MERGE, "key": ["no"]}, "told apart by id; by no", True),
        (MERGE, {**MERGE, "cursor": "seen"}, "means nothing for seen", False),
        ({"write": "append", "cursor": "at"}, {"write": "append", "cursor": "n"}, "there twice", True),
        ({"write": "append", "cursor": "at"}, MERGE, "unique by id", True),
        (MERGE, {"write": "append", "cursor": "at"}, "beside its old version", False),
        (MERGE, {"write": "replace"}, "replaces all rows", False),
        ({"write": "replace"}, {"write": "replace", "query": "x"}, "", False),
        (MERGE, {**MERGE, "target": "other"}, "the new one gets only what is new", True),
        (MERGE, {**MERGE, "target": "p"}, "", False),
        (MERGE, {**MERGE, "write": "scd2"}, "first versions", False),
    ],
)
def test_a_change_says_what_it_means_for_rows_that_are_loaded(before, after, words, refresh):
    found = meanings("p", PipelineConfig(**before), PipelineConfig(**after))
    assert words in " ".join(m.text for m in found)
    assert bool(found) == bool(words)
    assert any(m.refresh for m in found) == refresh


# -- flags --------------------------------------------------------------------------------------------


def test_flags_change_a_pipeline_and_nothing_around_it(dw, commented):
    before = text_of(commented)
    done = dw("edit", "shop.orders", "--every", "1h", "--key", "id", "--lookback", "15m", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert text_of(commented) == before.replace(
        "    cursor: updated_at\n", "    cursor: updated_at\n    lookback: 15m\n    every: 1h\n"
    )
    assert "+    every: 1h" in done.stderr and done.stdout == ""
    assert (commented / "sources" / "shop.yaml").stat().st_mode & 0o777 == 0o644
    assert load_project(commented).sources["shop"].pipelines["orders"].every == "1h"


def test_a_dry_run_prints_the_difference_and_writes_nothing(dw, commented):
    before = text_of(commented)
    done = dw("edit", "orders", "--cursor", "", "--write", "replace", "--dry-run", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert "-    cursor: updated_at\n" in done.stdout and "+    write: replace\n" in done.stdout
    assert done.stdout.startswith("--- sources/shop.yaml\n") and text_of(commented) == before


def test_a_source_is_tested_before_its_file_is_written(dw, commented):
    before = text_of(commented)
    failed = dw("edit", "shop", "--database-path", "no.db", cwd=commented)
    assert failed.returncode == 1 and "does not exist" in failed.stderr
    assert text_of(commented) == before
    done = dw("edit", "shop", "--timezone", "Europe/Berlin", "--json", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert "can read 2 tables" in done.stderr
    told = json.loads(done.stdout)
    assert (told["changed"], told["file"], told["needs_full_refresh"]) == (True, "sources/shop.yaml", False)
    assert text_of(commented) == before.replace("# a copy\n", "# a copy\ntimezone: Europe/Berlin\n")
    untested = dw("edit", "shop", "--database-path", "no.db", "--no-test", cwd=commented)
    assert untested.returncode == 0 and f"database_path:   {commented}/no.db   # a copy" in text_of(commented)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["shop.orders", "--key", "idd"], "Did you mean 'id'?"),
        (["shop.orders", "--key", ""], "'merge' needs a key"),
        (["shop.orders", "--every", "sometimes"], "neither a duration"),
        (["shop.orders", "--target", "customers"], "both load public.customers"),
        (["shop.orders", "--database-path", "x"], "dw edit shop --database-path"),
        (["shop", "--cursor", "x"], "dw edit shop.orders --cursor"),
        (["shop", "--database-path", ""], "cannot be taken out"),
        (["shop.order", "--every", "1h"], "Did you mean 'shop.orders'?"),
        (["shop"], "no flag says what to change"),
        (["shop", "--editor"], "an editor needs a terminal"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(dw, commented, words, told):
    before = text_of(commented)
    done = dw("edit", *words, cwd=commented)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr.replace("\n", " ") and text_of(commented) == before


def test_a_loaded_pipeline_is_told_what_a_new_key_means(dw, commented):
    quiet = dw("edit", "orders", "--cursor", "id", "--dry-run", cwd=commented)
    assert "Note:" not in quiet.stderr
    dw("run", "orders", cwd=commented)
    done = dw("edit", "orders", "--key", "note", "--cursor", "id", "--json", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert "told apart by id; by note" in done.stderr and "means nothing for id" in done.stderr
    assert "Next: dw run shop.orders --full-refresh" in done.stderr
    assert json.loads(done.stdout)["needs_full_refresh"] is True


def test_nothing_to_change_is_said(dw, commented):
    before = text_of(commented)
    done = dw("edit", "orders", "--key", "id", "--cursor", "updated_at", cwd=commented)
    assert done.returncode == 0 and "Nothing to change" in done.stderr and text_of(commented) == before


def test_a_secret_goes_to_the_env_file_and_is_not_shown(dw, project):
    source = project / "sources" / "pg.yaml"
    source.write_text("protocol: postgres\nhost: db\ndatabase: d\nusername: u\npipelines: {t: {query: t}}\n")
    done = dw("edit", "pg", "--password-stdin", "--host", "db2", "--no-test", cwd=project, stdin="hunter2\n")
    assert done.returncode == 0, done.stderr
    assert "password: ${env:PG_PASSWORD}\n" in source.read_text() and "host: db2\n" in source.read_text()
    assert (project / ".env").read_text() == 'PG_PASSWORD="hunter2"\n'
    assert "hunter2" not in done.stdout + done.stderr + source.read_text()


def test_tab_offers_the_flags_of_the_source_that_is_edited(commented, monkeypatch):
    from dwcli.cli._tab import offers

    monkeypatch.chdir(commented)
    flags = {word for word, _ in offers(["edit", "shop", "--"])}
    assert "--database-path" in flags
    assert "--database-path" not in {word for word, _ in offers(["edit", "shop.orders", "--"])}


# -- the wizard ---------------------------------------------------------------------------------------


def answer(child: pexpect.spawn, question: str, keys: str) -> None:
    child.expect_exact(question)
    child.send(keys)


def exit_code(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.exitstatus is not None else 128 + child.signalstatus


def pick(child: pexpect.spawn, filtered: str) -> None:
    answer(child, "What to change", filtered + SPACE)
    answer(child, "●", ENTER)


def test_the_wizard_changes_what_is_picked(terminal, commented):
    before = text_of(commented)
    child = terminal("edit", "orders", width=100)
    pick(child, "every")
    answer(child, "When it should run", "1d" + ENTER)
    child.expect_exact("every: 1d")
    answer(child, "Write it?", ENTER)
    child.expect_exact("dw edit shop.orders --every 1d")
    assert exit_code(child) == 0
    assert text_of(commented) == before.replace("cursor: updated_at\n", "cursor: updated_at\n    every: 1d\n")


def test_a_failed_connection_is_mended_inside_the_wizard(terminal, commented):
    before = text_of(commented)
    child = terminal("edit", "shop", width=100)
    pick(child, "database")
    answer(child, "Path of the database file", ERASE + "no.db" + ENTER)
    child.expect_exact("FAIL")
    answer(child, "Fix database_path", ENTER)
    answer(child, "Path of the database file", ERASE + "./shop.db" + ENTER)
    child.expect_exact("can read 2 tables")
    child.expect("Write it|Nothing to change")
    child.send(ENTER)
    assert exit_code(child) == 0
    assert text_of(commented) == before


def test_ctrl_c_at_each_question_leaves_the_file_as_it_was(terminal, commented):
    before = text_of(commented)
    files = sorted(path for path in commented.rglob("*") if path.is_file())
    steps = [
        ("What to change", "cursor" + SPACE),
        ("●", ENTER),
        ("Cursor", DOWN + ENTER),
        ("Write it?", ""),
    ]
    for stop in (0, 2, 3):
        child = terminal("edit", "orders", width=100)
        for question, keys in steps[:stop]:
            answer(child, question, keys)
        answer(child, steps[stop][0], STOP)
        assert exit_code(child) == 130
        assert text_of(commented) == before
    assert sorted(path for path in commented.rglob("*") if path.is_file()) == files


def test_no_to_the_difference_writes_nothing(terminal, commented):
    before = text_of(commented)
    child = terminal("edit", "orders", width=40)
    pick(child, "every")
    answer(child, "When", "1d" + ENTER)
    answer(child, "Write it?", DOWN + ENTER)
    answer(child, "And now?", ENTER)
    child.expect_exact("Nothing was changed.")
    assert exit_code(child) == 0 and text_of(commented) == before


# -- the editor ---------------------------------------------------------------------------------------


@pytest.fixture
def editor(environment, tmp_path):
    """An editor that puts a line of its choice into the file: a second time, another one."""

    def use(*lines: str) -> None:
        script = tmp_path / "editor.py"
        script.write_text(
            "import sys, pathlib\n"
            f"lines = {list(lines)!r}\n"
            f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
            "n = int(count.read_text()) if count.exists() else 0\n"
            "count.write_text(str(n + 1))\n"
            "path = pathlib.Path(sys.argv[1])\n"
            "old = [l for l in path.read_text().splitlines() if not l.startswith('timezone')]\n"
            "path.write_text('\\n'.join([old[0], lines[n], *old[1:]]) + '\\n')\n"
        )
        environment["EDITOR"] = f"{sys.executable} {script}"

    return use


def test_the_editor_can_be_gone_back_to_until_the_file_is_valid(terminal, editor, commented):
    before = text_of(commented)
    editor("timezone: [", "timezone: UTC")
    child = terminal("edit", "shop.orders", "--editor", width=100)
    child.expect_exact("FAIL")
    answer(child, "Edit again", ENTER)
    child.expect_exact("+timezone: UTC")
    assert exit_code(child) == 0
    assert text_of(commented) == before.replace("# the shop\n", "# the shop\ntimezone: UTC\n")
    assert not list((commented / ".dw" / "drafts").iterdir())


def test_going_back_leaves_the_file_as_it_was(terminal, editor, commented):
    before = text_of(commented)
    editor("timezon: UTC")
    child = terminal("edit", "shop", "--editor", width=100)
    child.expect_exact("Did you mean 'timezone'?")
    answer(child, "Edit again", DOWN + ENTER)
    child.expect_exact("Nothing was changed.")
    assert exit_code(child) == 0 and text_of(commented) == before


def test_a_file_that_is_not_valid_can_be_mended_in_the_editor(terminal, editor, commented):
    path = commented / "sources" / "shop.yaml"
    path.write_text(text_of(commented).replace("protocol:", "timezone: [\nprotocol:"))
    editor("# mended")
    child = terminal("edit", "shop", "--editor", width=100)
    child.expect_exact("# mended")
    assert exit_code(child) == 0
    load_project(commented)

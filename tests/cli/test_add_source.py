"""dw add-source: by flags, without a person, and as a wizard in a real terminal."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pexpect
import pytest

from dwcli.cli._inference import matching, nouns, pipeline_name, propose, write_for
from dwcli.cli._say import command_line
from dwcli.contract import Column, CursorCandidate, Resource
from dwcli.documents import read_document
from dwcli.project import load_project
from tests.cli.conftest import DW

SURE = CursorCandidate("updated_at", "not null, indexed", sure=True)
GUESS = CursorCandidate("modified", "not null, no index")
GROWS = CursorCandidate("id", "a growing number", append_only=True)


def written(project: Path, name: str = "shop") -> dict:
    return read_document(project / "sources" / f"{name}.yaml").data


# -- what is inferred ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "cursors", "expected"),
    [
        (("id",), (SURE,), ("merge", ("id",), "updated_at")),
        (("id",), (GUESS,), ("replace", ("id",), None)),
        (("id",), (GROWS,), ("replace", ("id",), None)),
        (("id",), (), ("replace", ("id",), None)),
        ((), (SURE,), ("replace", (), None)),
        ((), (CursorCandidate("n", "", sure=True, append_only=True),), ("append", (), "n")),
        ((), (), ("replace", (), None)),
    ],
)
def test_only_what_the_catalogue_proves_is_taken_without_asking(key, cursors, expected):
    plan = propose("t", Resource("t", primary_key=key, cursors=cursors))
    assert (plan.write, plan.key, plan.cursor) == expected


def test_a_person_is_offered_the_best_guess():
    plan = propose("t", Resource("t", primary_key=("id",), cursors=(GROWS, GUESS)), sure_only=False)
    assert (plan.cursor, plan.write) == ("modified", "merge")


def test_a_cursor_that_sees_only_new_rows_appends_them():
    resource = Resource("t", primary_key=("id",), cursors=(GROWS,))
    assert write_for(resource, ("id",), "id") == "append"


@pytest.mark.parametrize(
    ("kind", "key", "write", "words"),
    [
        ("file", (), "append", "goes on where it stopped (new and changed files)"),
        ("topic", ("partition", "offset"), "append", "goes on where it stopped (offsets)"),
        ("queue", (), "append", "goes on where it stopped (what was acknowledged)"),
        ("queue", ("message_id",), "merge", "goes on where it stopped (what was acknowledged)"),
        ("stream", ("id",), "merge", "goes on where it stopped"),
        ("table", (), "replace", "no sure cursor: everything is read each run"),
    ],
)
def test_files_and_streams_keep_their_own_place(kind: str, key: tuple[str, ...], write: str, words: str):
    plan = propose("t", Resource("t", kind=kind, primary_key=key, key_reason="why"))
    assert (plan.write, plan.why[-1]) == (write, words)


def test_a_reload_names_the_cursor_that_is_not_sure():
    found = propose("t", Resource("t", cursors=(GROWS, CursorCandidate("updated_at", "no index"))))
    assert found.why[-1] == "no sure cursor (updated_at: no index): everything is read each run"


def test_the_lines_of_a_long_command_fit_80_columns():
    words = ["dw", "add-source", "mysql", "shopdb", "--host", "127.0.0.1", "--database", "shopdb"]
    shown = command_line([*words, "--username", "root", "--pipeline", "customers=customers", "--key", "id"])
    assert max(len(f"  {line}") for line in shown.splitlines()) < 80
    assert shlex.split(shown.replace("\\\n", ""))[: len(words)] == words


def test_a_stream_is_asked_for_no_cursor_and_offered_no_replace(monkeypatch, capsys):
    from dwcli.cli import _wizard

    offered: list[str] = []
    labels: list[str] = []

    def choose(question: str, options: list[tuple[str, str]], usual: str) -> str:
        offered.extend(value for value, _ in options)
        labels.extend(label for _, label in options)
        return usual

    monkeypatch.setattr(_wizard.prompts, "choose", choose)
    topic = Resource("t", kind="topic", primary_key=("offset",))
    assert _wizard._ask_cursor(topic, None) is None and not offered
    assert _wizard._ask_write(topic, ("offset",), None) == "append" and "replace" not in offered
    assert "goes on where it stopped (offsets)" in capsys.readouterr().err
    _wizard._ask_cursor(Resource("f", kind="file"), None)
    assert labels[-1] == "none      goes on where it stopped (new and changed files)"


@pytest.mark.parametrize(
    ("query", "taken", "expected"),
    [
        ("public.orders", set(), "orders"),
        ("public.orders", {"orders"}, "public_orders"),
        ("orders", {"orders"}, "orders_2"),
        ('"odd name"', set(), "odd_name"),
        ("SALES.OrderLines", set(), "orderlines"),
        ("in/2026/sales.csv.gz", set(), "sales"),
        ("in/*.csv", set(), "in"),
        ("orders/001.csv", set(), "orders_001"),
        ("2026.csv", set(), "2026"),
        ("données", set(), "donn_es"),
        ("***", set(), "data"),
        ("x" * 90, set(), "x" * 60),
    ],
)
def test_a_pipeline_is_named_after_the_last_part(query: str, taken: set[str], expected: str):
    assert pipeline_name(query, taken) == expected


def test_globs_match_names_with_and_without_quotes():
    resources = [Resource("public.orders"), Resource('public."Odd"'), Resource("old.orders")]
    assert [r.name for r in matching(resources, "public.*")] == ["public.orders", 'public."Odd"']
    assert [r.name for r in matching(resources, "public.Odd")] == ['public."Odd"']


# -- flags --------------------------------------------------------------------------------------------


def test_flags_alone_write_the_source_file(dw, project, shop_db):
    done = dw(
        *("add-source", "sqlite", "shop", "--database-path", "shop.db", "--every", "1h", "--json"),
        *("--pipeline", "orders=orders", "--pipeline", "people=SELECT * FROM customers WHERE id = 1"),
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == "shop"
    assert "Next: dw run shop" in done.stderr
    assert written(project) == {
        "protocol": "sqlite",
        "database_path": str(shop_db),
        "pipelines": {
            "orders": {
                "query": "orders",
                "write": "merge",
                "key": ["id"],
                "cursor": "updated_at",
                "every": "1h",
            },
            "people": {
                "query": "SELECT * FROM customers WHERE id = 1",
                "write": "replace",
                "every": "1h",
            },
        },
    }
    load_project(project)


def test_tables_make_one_pipeline_per_match(dw, project, shop_db):
    done = dw("add", "sqlite", "shop", "--database-path", str(shop_db), "--tables", "*", "--yes", cwd=project)
    assert done.returncode == 0, done.stderr
    assert {name: entry["write"] for name, entry in written(project)["pipelines"].items()} == {
        "customers": "replace",
        "log": "replace",
        "orders": "merge",
    }


def test_a_second_source_takes_no_table_of_the_first(dw, project, shop_db):
    for name in ("one", "two"):
        done = dw("add-source", "sqlite", name, "--database-path", "shop.db", "--tables", "o*", cwd=project)
        assert done.returncode == 0, done.stderr
    assert list(written(project, "two")["pipelines"]) == ["orders_2"]
    load_project(project)


def test_choices_for_one_pipeline_carry_its_name(dw, project, shop_db):
    done = dw(
        *("add-source", "sqlite", "shop", "--database-path", "shop.db", "--tables", "*"),
        *("--cursor", "orders=created_at", "--key", "log=line", "--write", "log=merge", "--dry-run"),
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    assert "cursor: created_at" in done.stdout and "write: append" in done.stdout
    assert "key: [line]" in done.stdout and "write: merge" in done.stdout
    assert not list((project / "sources").iterdir())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--key", "idd"], "Did you mean 'id'?"),
        (["--write", "replace", "--cursor", "updated_at"], "a cursor has no place"),
        (["--write", "upsert"], "--write is one of"),
        (["--every", "sometimes"], "--every: neither a duration"),
        (["--pipeline", "select 1"], "a query needs a name"),
        (["--tables", "nothing*"], "nothing in the source matches nothing*"),
        (["--pipeline", "log", "--write", "merge"], "merge needs a key"),
        (["--no-test", "--tables", "*"], "--no-test does not"),
    ],
)
def test_choices_that_cannot_be_are_refused_before_anything_is_written(dw, project, shop_db, flags, told):
    base = ["add-source", "sqlite", "shop", "--database-path", "shop.db"]
    pipeline = [] if "--pipeline" in flags or "--tables" in flags else ["--pipeline", "orders"]
    done = dw(*base, *pipeline, *flags, cwd=project)
    assert done.returncode in (1, 2) and told in done.stderr.replace("\n", " ")
    assert not list((project / "sources").iterdir())


def test_a_source_that_cannot_be_reached_is_not_written_unless_untested(dw, project):
    words = ["add-source", "sqlite", "shop", "--database-path", "no.db", "--pipeline", "orders"]
    done = dw(*words, cwd=project)
    assert done.returncode == 1 and "does not exist" in done.stderr
    assert not list((project / "sources").iterdir())
    done = dw(*words, "--no-test", "--key", "id", "--cursor", "at", cwd=project)
    assert done.returncode == 0, done.stderr
    assert written(project)["pipelines"]["orders"] == {
        "query": "orders",
        "write": "merge",
        "key": ["id"],
        "cursor": "at",
    }


def test_an_existing_source_is_never_overwritten(dw, project, shop_db):
    (project / "sources" / "shop.yaml").write_text("protocol: sqlite\n")
    done = dw("add-source", "sqlite", "shop", "--database-path", "shop.db", "--tables", "*", cwd=project)
    assert done.returncode == 2 and "already" in done.stderr
    assert (project / "sources" / "shop.yaml").read_text() == "protocol: sqlite\n"


PG = ("add-source", "postgres", "pg", "--host", "db", "--database", "d", "--username", "u", "--no-test")


def test_a_secret_from_stdin_goes_to_the_env_file_and_nowhere_else(dw, project):
    done = dw(*PG, "--password-stdin", "--pipeline", "public.a", cwd=project, stdin="hunter2 #x\n")
    assert done.returncode == 0, done.stderr
    env = project / ".env"
    assert env.read_text() == 'PG_PASSWORD="hunter2 #x"\n' and env.stat().st_mode & 0o777 == 0o600
    assert ".env" in (project / ".gitignore").read_text().splitlines()
    assert written(project, "pg")["password"] == "${env:PG_PASSWORD}"
    others = [p for p in project.rglob("*") if p.is_file() and p != env]
    assert not any(b"hunter2" in path.read_bytes() for path in others)
    assert "hunter2" not in done.stdout + done.stderr


def test_a_secret_is_refused_when_git_has_the_env_file(dw, project):
    (project / ".env").write_text("A=1\n")
    for words in (["init", "-q"], ["add", "-f", ".env"]):
        subprocess.run(["git", *words], cwd=project, check=True, capture_output=True)
    done = dw(*PG, "--password-stdin", "--pipeline", "public.a", cwd=project, stdin="hunter2\n")
    assert done.returncode == 2 and "git rm --cached .env" in done.stderr
    assert (project / ".env").read_text() == "A=1\n"
    assert not list((project / "sources").iterdir())


# -- nobody there -------------------------------------------------------------------------------------


def test_without_a_terminal_everything_missing_is_told_as_a_command(dw, project):
    done = dw("add-source", "postgres", "pg", "--host", "db", cwd=project)
    assert done.returncode == 2
    assert "missing: --database, --username, --pipeline" in done.stderr
    assert "dw add-source postgres pg --host db --database DATABASE" in done.stderr


def test_an_open_pipe_as_stdin_is_no_person(environment, project):
    process = subprocess.Popen(
        [*DW, "add-source"],
        cwd=project,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    with process.stdin, process.stdout, process.stderr:
        assert process.wait(timeout=60) == 2  # while the pipe is still open
        assert b"PROTOCOL, NAME, --pipeline" in process.stderr.read()


def test_resume_without_saved_answers_says_so(dw, project):
    done = dw("add-source", "--resume", cwd=project)
    assert done.returncode == 2 and "no saved answers" in done.stderr


# -- the wizard, in a real terminal -------------------------------------------------------------------

ENTER, DOWN, UP, ERASE = "\r", "\x1b[B", "\x1b[A", "\x15"


@pytest.fixture
def terminal(environment, project) -> Iterator:
    """Start the real `dw` in a pseudo-terminal; it is gone after the test."""
    started: list[pexpect.spawn] = []

    def start(*words: str, **more: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "dwcli", *words],
            cwd=str(project),
            env=environment | {"COLUMNS": "100", "LINES": "40"} | more,
            encoding="utf-8",
            dimensions=(40, 100),
            timeout=60,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def exit_code(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.exitstatus is not None else 128 + child.signalstatus


def answer(child: pexpect.spawn, question: str, keys: str) -> None:
    child.expect_exact(question)
    child.send(keys)


def test_the_wizard_from_the_first_question_to_the_file(terminal, project, shop_db):
    child = terminal("add-source")
    answer(child, "What kind of source?", "sqli" + ENTER)
    answer(child, "Name", ERASE + "shop" + ENTER)
    answer(child, "Path of the database file", "shop.db" + ENTER)
    child.expect_exact("can read 3 tables")
    answer(child, "Which tables?", "ord ")
    answer(child, "●", ENTER)
    child.expect_exact("2026-01-02 10:00")
    child.expect_exact("read as UTC")
    answer(child, "primary key in the source", ENTER)
    answer(child, "does not change when a row is edited", ENTER)
    answer(child, "merge (insert new, update changed)", ENTER)
    answer(child, "only by hand", ENTER)
    answer(child, "First 1,000 rows only", DOWN)
    child.send(DOWN)
    child.send(ENTER)
    child.expect(r"--key id --cursor updated_at --write merge \\\s+--every 1h")
    child.expect_exact("Next: dw run orders")
    assert exit_code(child) == 0
    assert written(project)["pipelines"]["orders"] == {
        "query": "orders",
        "write": "merge",
        "key": ["id"],
        "cursor": "updated_at",
        "every": "1h",
    }
    assert not list((project / ".dw" / "drafts").iterdir())


def test_ctrl_c_keeps_the_answers_and_resume_goes_on(terminal, project, shop_db):
    child = terminal("add-source", "sqlite")
    answer(child, "Name", ERASE + "shop" + ENTER)
    answer(child, "Path of the database file", "\x03")
    child.expect_exact("Continue: dw add-source --resume")
    assert exit_code(child) == 130
    child = terminal("add-source", "--resume")
    answer(child, "Path of the database file", "shop.db" + ENTER)
    answer(child, "Which tables?", "\x03")
    child.expect_exact("Continue: dw add-source --resume")
    assert exit_code(child) == 130
    child = terminal("add-source", "--resume")
    answer(child, "Which tables?", "log ")
    answer(child, "●", ENTER)
    answer(child, "rows cannot be told apart", ENTER)
    answer(child, "reload everything each run", ENTER)
    answer(child, "replace (reload everything)", ENTER)
    answer(child, "only by hand", ENTER)
    answer(child, "First 1,000 rows only", "\x03")
    child.expect(pexpect.EOF)
    assert written(project)["pipelines"]["log"]["write"] == "replace"


def test_a_failed_connection_is_mended_without_starting_over(terminal, project, shop_db):
    child = terminal("add-source", "sqlite", "shop", "--database-path", "no.db")
    child.expect_exact("FAIL")
    answer(child, "Fix database_path", ENTER)
    answer(child, "Path of the database file", ERASE + "shop.db" + ENTER)
    child.expect_exact("can read 3 tables")
    answer(child, "Which tables?", "\x03")
    assert exit_code(child) == 130


def test_a_source_that_cannot_be_reached_can_be_saved_anyway(terminal, project):
    child = terminal("add-source", "sqlite", "shop", "--database-path", "no.db")
    answer(child, "Quit", 3 * DOWN + ENTER)
    answer(child, "What to read", "orders" + ENTER)
    answer(child, "Name of the pipeline", ENTER)
    answer(child, "Key columns", "id" + ENTER)
    answer(child, "Cursor column", "at" + ENTER)
    answer(child, "merge (insert new", ENTER)
    answer(child, "only by hand", ENTER)
    answer(child, "First 1,000 rows only", DOWN)
    child.send(DOWN)
    child.send(ENTER)
    assert exit_code(child) == 0
    assert written(project)["pipelines"]["orders"]["write"] == "merge"


def test_a_typed_password_is_neither_shown_nor_kept_in_the_draft(terminal, project):
    child = terminal("add-source", "postgres", "pg", "--host", "127.0.0.1", "--port", "1")
    answer(child, "Database", "d" + ENTER)
    answer(child, "Role that may read", "u" + ENTER)
    answer(child, "type it (kept in .env)", ENTER)
    answer(child, "[hidden]", "hunter2secret" + ENTER)
    answer(child, "Ready to connect?", ENTER)
    child.expect_exact("FAIL")
    shown = child.before
    answer(child, "Quit", "\x03")
    assert exit_code(child) == 130
    assert "hunter2" not in shown and "*" not in shown.split("[hidden]")[-1]
    draft = project / ".dw" / "drafts" / "add-source.json"
    assert "hunter2" not in draft.read_text() and json.loads(draft.read_text())["answers"]["username"] == "u"
    assert not (project / ".env").exists()


def test_plain_questions_are_numbered_lines(terminal, project, shop_db):
    child = terminal("add-source", "sqlite", "shop", DW_PLAIN="1")
    answer(child, "Path of the database file: ", "shop.db\n")
    answer(child, "Numbers, with spaces between: ", "1 3\n")
    child.expect_exact("merge")
    answer(child, "Number [1]: ", "\n")
    answer(child, "Number [1]: ", "4\n")
    answer(child, "Number [1]: ", "3\n")
    child.expect_exact("Next: dw run shop")
    assert exit_code(child) == 0
    assert list(written(project)["pipelines"]) == ["customers", "orders"]


def test_a_time_of_ones_own_is_typed_and_judged(terminal, project, shop_db):
    child = terminal("add-source", "sqlite", "shop", "--tables", "customers", DW_PLAIN="1")
    answer(child, "Path of the database file: ", "shop.db\n")
    child.expect_exact("5. other     2h, or by the clock: 0 6 * * 1-5")
    answer(child, "Number [1]: ", "5\n")
    answer(child, "minute hour day month weekday: ", "0 6 * *\n")
    child.expect_exact("a cron expression has five fields")
    answer(child, "minute hour day month weekday: ", "0 0 31 2 *\n")
    child.expect_exact("cron expression: ")
    answer(child, "minute hour day month weekday: ", "often\n")
    child.expect_exact("neither a duration (90s, 15m, 1h, 30d) nor a cron expression (0 6 * * 1-5)")
    answer(child, "minute hour day month weekday: ", "0 6 * * 1-5\n")
    answer(child, "Number [1]: ", "3\n")
    child.expect_exact("--every '0 6 * * 1-5'")
    assert exit_code(child) == 0
    assert written(project)["pipelines"]["customers"]["every"] == "0 6 * * 1-5"


def test_questions_go_to_stderr_so_that_stdout_can_be_piped(terminal, environment, project, shop_db):
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f"{sys.executable} -m dwcli add-source sqlite shop --database-path shop.db --dry-run > out"],
        cwd=str(project),
        env=environment,
        encoding="utf-8",
        dimensions=(40, 100),
        timeout=60,
    )
    with closing(child):
        answer(child, "Which tables?", "log ")
        answer(child, "●", ENTER)
        for question in ("rows cannot be told apart", "reload everything each run", "replace (reload"):
            answer(child, question, ENTER)
        answer(child, "only by hand", ENTER)
        child.expect(pexpect.EOF)
    assert (project / "out").read_text().startswith("protocol: sqlite\n")


def test_the_source_file_is_untouched_by_looking(dw, project, shop_db):
    before = shop_db.read_bytes()
    dw("add-source", "sqlite", "shop", "--database-path", "shop.db", "--tables", "*", cwd=project)
    assert shop_db.read_bytes() == before
    with closing(sqlite3.connect(shop_db)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_columns_without_a_time_zone_are_pointed_out():
    from dwcli.cli._inference import cautions

    resource = Resource("t", (Column("at", "timestamp", nullable=True),))
    told = " ".join(cautions(resource, (), "at", "append"))
    assert "NULL" in told and "time zone" in told and "twice" in told


def test_a_key_that_the_first_rows_do_not_have_is_not_proposed(capsys):
    from dwcli.cli import _wizard

    queue = Resource("q", kind="queue", primary_key=("stream", "message_id"), key_reason="why")
    with_ids = [{"stream": "q", "message_id": "a"}]
    assert _wizard._with_a_key_that_holds(queue, with_ids) == queue
    assert (
        _wizard._with_a_key_that_holds(queue, [*with_ids, {"stream": "q", "message_id": None}]).primary_key
        == ()
    )
    assert "message_id is empty in rows above" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["table", "view"], "tables"),
        (["file", "files", "folder"], "files"),
        (["queue"], "queues"),
        (["endpoint", "query"], "endpoints or queries"),
        ([], "tables"),
    ],
)
def test_what_a_source_offers_is_called_by_its_name(kinds, words):
    assert nouns([Resource("r", kind=kind) for kind in kinds]) == words


def test_what_a_source_does_not_list_is_typed(terminal, project, shop_db):
    child = terminal("add-source", "sqlite", "shop", "--database-path", "shop.db")
    answer(child, "something else: a table, or a SELECT", UP + " ")
    answer(child, "●", ENTER)
    answer(child, "What to read", "SELECT id FROM orders" + ENTER)
    answer(child, "Name of the pipeline", "ids" + ENTER)
    for question in ("rows cannot be told apart", "reload everything each run", "replace (reload"):
        answer(child, question, ENTER)
    answer(child, "only by hand", ENTER)
    answer(child, "First 1,000 rows only", UP + ENTER)
    assert exit_code(child) == 0
    assert written(project)["pipelines"]["ids"]["query"] == "SELECT id FROM orders"


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("shop", "shop"),
        ("\x1b[200~shop\x1b[201~", "shop"),
        ("", "sqlite"),
        ("\x1b[D\x1b[Cs", "sqlites"),
        ("\x7f3", "sqlit3"),
        (ERASE + "shop", "shop"),
    ],
)
def test_what_is_typed_takes_the_place_of_the_default(terminal, project, shop_db, keys, name):
    child = terminal("add-source", "sqlite", "--database-path", "shop.db", "--no-test", "--pipeline", "log")
    answer(child, "Name", keys + ENTER)
    answer(child, "Every", ENTER)
    answer(child, "First 1,000 rows only", UP + ENTER)
    assert exit_code(child) == 0
    assert [path.stem for path in (project / "sources").iterdir()] == [name]

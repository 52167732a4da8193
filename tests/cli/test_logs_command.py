"""`dw logs`: the last run, one run, a run that goes on, and one that was killed."""

from __future__ import annotations

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest

from dwcli.render.words import width
from tests.cli.conftest import DW
from tests.cli.test_look_commands import on_screen

RUN = "aaaaaaaa-1111-4111-8111-111111111111"


def line(event, level="info", **more):
    about = {"time": "2026-11-27T07:14:22.627+00:00", "level": level, "logger": "dwcli.events"}
    return json.dumps(about | {"event": event, "run_id": RUN, "pipeline": "shop.orders"} | more) + "\n"


@pytest.fixture
def log(shop):
    """A log that a run has begun to write."""
    folder = shop / ".dw" / "logs"
    folder.mkdir(parents=True)
    path = folder / f"{RUN}.log"
    path.write_text(line("RunStarted", target="public.orders", rows_expected=3), "utf-8")
    return path


def rows_of(text):
    return list(csv.DictReader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_last_run_and_one_run_are_shown(dw, shop):
    dw("run", "customers", cwd=shop)
    dw("run", "orders", cwd=shop)
    last = dw("logs", cwd=shop)
    assert last.returncode == 0, last.stderr
    said = [row["WHAT"] for row in rows_of(last.stdout)]
    assert said[0] == "started: shop.orders into public.orders, about 100 rows"
    assert "schema: new table orders" in said
    assert said[-1].startswith("finished: 100 read  100 new")
    over = dw("logs", "-f", cwd=shop)
    assert (over.returncode, over.stdout) == (0, last.stdout)
    assert "It was over already" in over.stderr
    other = dw("logs", "--pipeline", "customers", cwd=shop)
    assert {row["PIPELINE"] for row in rows_of(other.stdout)} == {"shop.customers"}
    run = rows_of(other.stdout)[0]["RUN"]
    assert rows_of(dw("logs", run[:8], cwd=shop).stdout) == rows_of(other.stdout)


def test_json_gives_the_lines_as_they_were_written(dw, shop):
    dw("run", "missing", cwd=shop)
    path = next((shop / ".dw" / "logs").glob("*.log"))
    assert dw("logs", "--json", cwd=shop).stdout == path.read_text("utf-8")
    graver = dw("logs", "--json", "--level", "error", cwd=shop)
    assert [json.loads(text)["event"] for text in graver.stdout.splitlines()] == ["RunFinished"]
    assert graver.stderr.splitlines()[-1].startswith("Next: dw audit ")


def test_without_logs_it_says_what_to_do(dw, shop):
    done = dw("logs", cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert "fix: dw run" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nosuch",), "dw audit nosuch"),
        (("--pipeline", "ordesr"), "Did you mean 'orders'?"),
        (("--level", "loud"), "loud"),
    ],
)
def test_what_is_not_there_is_refused(dw, shop, log, words, said):
    done = dw("logs", *words, cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_beginning_that_two_runs_share_is_refused(dw, shop, log):
    log.with_name(f"{RUN[:-1]}2.log").write_text(line("RunStarted"), "utf-8")
    done = dw("logs", "aaaa", cwd=shop)
    assert done.returncode == 2
    assert RUN in done.stderr


def test_a_run_that_was_killed_is_told_from_one_that_goes_on(dw, shop, log):
    assert "It ended without a word" in dw("logs", cwd=shop).stderr
    with log.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert dw("logs", cwd=shop).stderr.splitlines()[-1] == "Next: dw logs aaaaaaaa -f"


def test_a_real_run_that_is_killed_no_longer_holds_its_log(dw, shop):
    assert dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="copied").returncode != 0
    done = dw("logs", "-f", cwd=shop)
    assert done.returncode == 0
    assert "It ended without a word" in done.stderr


@pytest.fixture
def follower(environment, shop, log):
    """`dw logs -f` while this test holds the log as a run does."""
    with log.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [*DW, "logs", "-f", "--level", "info"],
            cwd=shop,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline().startswith("TIME")
        assert "started" in child.stdout.readline()
        try:
            yield child, file
        finally:
            child.kill()
            child.communicate()


def test_following_shows_what_comes_and_ends_with_the_run(follower):
    child, file = follower
    begun = line("BatchRead", rows=3, bytes=9)
    file.write(begun[:20])  # half a line is not shown before its end
    file.flush()
    time.sleep(0.5)
    file.write(begun[20:])
    file.flush()
    assert child.stdout.readline().endswith("\tread 3 rows (9 B in memory)\n")
    file.write(line("RunFinished", status="success", rows_read=3, rows_inserted=3))
    file.flush()
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert "finished: 3 read  3 new" in out


def test_following_ends_when_the_run_dies(follower):
    child, file = follower
    file.write(line("Notice", "warning", text="late"))
    file.close()
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "late" in out
    assert "It ended without a word" in err


def test_ctrl_c_ends_following(follower):
    child, _ = follower
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_lines_fit_the_screen_and_are_safe(terminal, log, columns):
    with log.open("a", encoding="utf-8") as file:
        file.write(line("Notice", "warning", text="[red]größe 日本語\x1b[31m " + "x" * 200))
        file.write("cut off by a full di")
    lines = on_screen(terminal("logs", "--no-color", width=columns))
    assert max(width(text) for text in lines) <= columns
    assert any("[red]größe" in text for text in lines)
    assert any("cut off by" in text for text in lines)
    assert "\\x1b[31m" in "".join(text.strip() for text in lines)


def test_it_loads_none_of_the_heavy_libraries(environment, shop, log):
    code = (
        "import sys; from dwcli.cli.app import main; main(['logs']);"
        "heavy = {'polars', 'sqlalchemy', 'psycopg', 'pyarrow', 'questionary'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shop, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"

"""The frame: global flags anywhere, errors told once, help and TAB without heavy imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dwcli.cli import words
from dwcli.cli._globals import take_globals
from dwcli.cli.app import COMMANDS, is_there
from dwcli.cli.settings import Settings
from dwcli.errors import UsageError
from tests.cli.conftest import DW

HEAVY = ("polars", "pyarrow", "sqlalchemy", "psycopg", "questionary", "prompt_toolkit", "numpy", "duckdb")


@pytest.mark.parametrize(
    ("argv", "settings", "rest"),
    [
        (["--json", "run", "orders"], Settings(json=True), ["run", "orders"]),
        (["run", "orders", "--json", "-q"], Settings(json=True, quiet=True), ["run", "orders"]),
        (["run", "-vv", "-C", "x"], Settings(verbose=2, project=Path("x")), ["run"]),
        (["-Cx", "run", "-v", "--verbose"], Settings(verbose=2, project=Path("x")), ["run"]),
        (["--project=a/b", "status", "-yq"], Settings(yes=True, quiet=True, project=Path("a/b")), ["status"]),
        (["run", "--query", "-y", "--yes"], Settings(yes=True), ["run", "--query", "-y"]),
        (["query", "--", "-q", "--json"], Settings(), ["query", "--", "-q", "--json"]),
        (["query", "--no-input", "--no-color"], Settings(no_input=True, no_color=True), ["query"]),
        (["run", "-n"], Settings(), ["run", "-n"]),
    ],
)
def test_global_flags_are_taken_from_anywhere(argv: list[str], settings: Settings, rest: list[str]):
    assert take_globals(argv, {"--query"}) == (settings, rest)


def test_a_project_flag_without_a_folder_is_refused():
    with pytest.raises(UsageError, match="needs a folder"):
        take_globals(["run", "-C"], set())


def test_the_words_for_tab_are_those_of_the_app():
    for name, text in words.texts().items():
        assert (words.HERE / name).read_text("utf-8") == text, "run: python -m dwcli.cli.words"


@pytest.mark.parametrize("command", [c.name for c in COMMANDS if is_there(c)])
def test_every_command_has_help_with_the_global_flags(dw, command: str):
    done = dw(command, "--help", COLUMNS="120")
    assert done.returncode == 0
    assert "--no-input" in done.stdout and "Global" in done.stdout


def _loaded_by(environment: dict[str, str], words: list[str], cwd: Path, **more: str) -> set[str]:
    """The modules that a command line leaves loaded."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['dw', *{words!r}]\n"
        "try:\n    runpy.run_module('dwcli', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "sys.stderr.write('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | more,
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=60,
    )
    return set(done.stderr.split())


def test_tab_loads_little_of_the_standard_library_and_nothing_else(environment, project):
    (project / "sources" / "shop.yaml").write_text(
        "protocol: sqlite\npipelines:\n  orders: {query: o}\n", "utf-8"
    )
    code = (
        "import sys; before = set(sys.modules)\n"
        "from dwcli.cli._tab import answer; print(answer('bash', ['--', 'run', '']).split())\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=project, text=True, capture_output=True, timeout=60
    )
    offered, loaded = done.stdout.splitlines()
    assert offered == "['orders', 'shop']", done.stderr
    own = {"dwcli", "dwcli.cli", "dwcli.cli._tab", "dwcli.cli._words"}
    assert set(loaded.split()) - own <= {"__future__", "itertools"}


def test_tab_is_answered_by_the_command_itself(dw, project):
    done = dw("--", "ru", cwd=project, _DW_COMPLETE="bash")
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


@pytest.mark.parametrize("line", [["--help"], ["run", "--help"], ["add-source", "--help"], ["rnu"], []])
def test_help_home_and_typos_load_nothing_heavy(environment, project, line: list[str]):
    assert not _loaded_by(environment, line, project) & set(HEAVY)


def test_a_mistyped_command_gets_the_nearest_one(dw):
    done = dw("upp")
    assert done.returncode == 2
    assert "Did you mean 'up'?" in done.stderr and "fix: dw --help" in done.stderr
    assert done.stdout == ""


def test_a_mistyped_flag_gets_the_nearest_one(dw):
    done = dw("init", "--kep", "3d")
    assert done.returncode == 2 and "Did you mean '--keep'?" in done.stderr


def test_a_secret_typed_as_a_flag_is_refused_and_not_repeated(dw, project):
    for words_ in (["--password", "hunter2"], ["--password=hunter2"]):
        done = dw("add-source", "postgres", "pg", *words_, cwd=project)
        assert done.returncode == 2
        assert "--password-env VARIABLE" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout


def test_errors_have_three_parts_and_json_has_them_too(dw, tmp_path):
    done = dw("up", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("dw: there is no dw project here or above")
    assert "fix: dw init" in done.stderr
    error = json.loads(done.stdout)
    assert error["ok"] is False and error["error"]["code"] == "DW-NO-PROJECT" and error["error"]["hint"]


def test_an_unexpected_error_is_logged_without_secrets_and_without_a_traceback(environment, project):
    (project / ".env").write_text('SHOP_PASSWORD="hunter2secret"\n', "utf-8")
    code = (
        "import sys; from dwcli.cli import app, home\n"
        "def broken(): raise KeyError('hunter2secret')\n"
        "home.home = broken\n"
        "sys.exit(app.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=project, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "dw: unexpected error (KeyError). Details, passwords removed: .dw/logs/" in done.stderr
    assert "Traceback" not in done.stderr
    (log,) = (project / ".dw" / "logs").iterdir()
    assert "Traceback" in log.read_text() and "hunter2secret" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_the_version_is_one_line(dw):
    done = dw("-V")
    assert done.returncode == 0 and done.stdout.startswith("dw ")


def test_aliases_lead_to_their_command(dw, project):
    assert dw("add", "--help").stdout == dw("add-source", "--help").stdout


def test_home_without_a_project_says_how_to_begin(dw):
    done = dw()
    assert done.returncode == 0 and done.stdout.endswith("Next: dw init\n")


def test_home_tells_the_last_run_of_every_pipeline_from_local_files(dw, project):
    (project / "sources" / "erp.yaml").write_text(
        "protocol: sqlite\npipelines:\n  invoices:\n    query: a\n  orders: {query: b}\n", "utf-8"
    )
    (project / ".dw").mkdir()
    (project / ".dw" / "last.json").write_text(
        json.dumps(
            {
                "erp.invoices": {
                    "status": "failure",
                    "finished_at": "2026-01-01T00:00:00+00:00",
                    "error": "login rejected",
                },
                "erp.orders": {
                    "status": "success",
                    "finished_at": "2026-01-01T00:00:00+00:00",
                    "rows_loaded": 1204551,
                },
            }
        )
    )
    done = dw(cwd=project)
    assert "shop  1 source  1 needs attention" in done.stdout
    assert "login rejected" in done.stdout and "1,204,551 rows loaded" in done.stdout
    assert done.stdout.endswith("Next: dw test-connection erp\n")
    assert json.loads(dw("--json", cwd=project).stdout)["pipelines"][0]["state"] == "failure"


def test_a_reader_that_goes_away_is_no_error(environment, project):
    process = subprocess.Popen(
        [*DW, "completion", "show", "bash"],
        env=environment,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        told = process.stderr.read()
    process.wait(timeout=30)
    assert b"Traceback" not in told and b"BrokenPipe" not in told


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_sigterm_ends_with_143(environment, project):
    code = (
        "import os, signal, sys; from dwcli.cli import app, home\n"
        "home.home = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(app.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=project, timeout=30)
    assert done.returncode == 128 + signal.SIGTERM


def test_ctrl_c_before_anything_is_imported_ends_with_130(environment):
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'dwcli.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from dwcli._entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["--help"], ["sources", "--protocols"]])
def test_output_that_finds_no_room_is_told_and_fails(environment, project, words: list[str]):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dwcli", *words],
            env=environment,
            cwd=project,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("dw: there is no room left for what is printed  [DW-ERROR]\n")


def test_what_others_do_at_the_end_is_done_and_nothing_printed_is_lost(environment):
    script = (
        "import atexit, sys, threading, time\n"
        "def others():\n"
        "    import dwcli.cli.home as home\n"
        "    def late():\n"
        "        time.sleep(0.1)\n"
        "        sys.stdout.write('thread ')\n"
        "    def work():\n"
        "        sys.stdout.write('printed ')\n"
        "        atexit.register(sys.stdout.write, 'handler')\n"
        "        threading.Thread(target=late).start()\n"
        "    home.home = work\n"
        "others()\n"
        "sys.argv = ['dw']\n"
        "from dwcli._entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "printed thread handler", "")


def test_home_names_a_source_whose_file_cannot_be_read(dw, project):
    (project / "sources" / "erp.yaml").write_text("protocol: [mysql\n", "utf-8")
    done = dw(cwd=project)
    assert "erp  its file shows no pipelines" in done.stdout and done.stdout.endswith("Next: dw doctor\n")
    assert "1 needs attention" in done.stdout
    assert "erp.yaml, then: dw doctor" in dw("status", cwd=project).stderr

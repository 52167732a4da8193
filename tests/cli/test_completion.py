"""TAB: what is offered, and the scripts that ask for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dwcli.cli import _tab
from dwcli.cli.completion import SCRIPTS, refresh_completion_cache
from dwcli.project import load_project


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "sources" / "shop.yaml").write_text(
        "protocol: sqlite   # pipelines:\ndatabase_path: x\npipelines:   # all\n"
        "  # the first\n  orders:\n    query: q\n    columns: {a: text}\n\n  'items': {query: i}\n",
        "utf-8",
    )
    (project / "sources" / "erp.json").write_text(
        '{"protocol": "x", "pipelines": {"orders": {"target": "o2"}}}', "utf-8"
    )
    refresh_completion_cache(load_project(project), ["b", "a"], ["run1"])
    refresh_completion_cache(load_project(project), ["c"], ["run2"])
    monkeypatch.chdir(project)
    monkeypatch.delenv("DW_PROJECT", raising=False)
    return project


def offered(*words: str) -> list[str]:
    return _tab.answer("bash", list(words)).split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ini"], ["init"]),
        (["run", ""], ["erp", "erp.orders", "items", "shop", "shop.orders"]),
        (["run", "items", "--json", "s"], ["shop", "shop.orders"]),
        (["run", "--full"], ["--full-refresh"]),
        (["--no-col"], ["--no-color"]),
        (["run", "--no-col"], ["--no-color"]),
        (["-C", ".", "audit", "run"], ["run2", "run1"]),
        (["run", "--table", ""], ["a", "b", "c"]),
        (["run", "--progress", "b"], ["bars"]),
        (["test-connection", "e"], ["erp"]),
        (["add-source", "sql"], ["sqlite"]),
        (["add-source", "sqlite", "name", "--database"], ["--database-path"]),
        (["add-source", "sqlite3", "name", "--database"], ["--database-path"]),
        (["completion", ""], ["install", "show"]),
        (["completion", "show", "z"], ["zsh"]),
        (["completion", "show", "zsh", ""], []),
        (["nonsense", ""], []),
        (["run", "--", "x"], []),
        (["run", "--config", ""], []),
        (["trace", ""], ["a", "b", "c", "erp.orders", "items", "shop.orders"]),
        (["logs", ""], ["run2", "run1"]),
    ],
)
def test_tab_offers(here: Path, words: list[str], expected: list[str]):
    assert [word for word in offered(*words) if word != "dw"] == expected


def test_fish_and_zsh_are_told_what_a_word_is(here: Path):
    assert "shop.orders\tpipeline of shop\n" in _tab.answer("zsh", ["--", "run", "shop."])
    assert _tab.answer("fish", ["down"]).startswith("down\tStop")


def test_without_a_project_only_words_of_the_app_are_offered(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert offered("run", "") == [] and "run" in offered("")


def test_a_broken_cache_or_source_offers_nothing_and_breaks_nothing(here: Path):
    (here / ".dw" / "complete.json").write_text("[")
    (here / "sources" / "erp.json").write_text("[1]")
    assert offered("audit", "") == []
    assert "items" in offered("run", "")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pipelines:\n  a: {query: x}\n  b:\n    query: y\n", ["a", "b"]),
        (
            "pipelines:   # all\n\n# none\n\t\n    a_1 :\n      c: 1\n    'b-2':\n    \"d\": {}\n",
            ["a_1", "b-2", "d"],
        ),
        ("pipelines: {a: {query: x}}\n", []),
        ("pipelines:\n  a: 1\nhost: x\n  b: 1\n", ["a"]),
        ("host: x\n  a: 1\npipelines:\n  -x: 1\n  a:b: 1\n  größe: 1\n  b.c: 1\n", []),
        ("", []),
    ],
)
def test_pipelines_are_seen_by_the_look_of_a_file(text: str, names: list[str]):
    assert _tab._pipeline_names(text, ".yaml") == names


#: What stands in a file `dw`: what installers write, and a script that somebody put around it.
INSTALLED = f"#!{sys.executable}\nfrom dwcli._entry import main\nmain()\n"
WRAPPED = f'#!/bin/sh\nexec "{sys.executable}" -m dwcli "$@"\n'

#: What each shell does at TAB after `dw run shop.`, printing what it is offered.
AT_TAB = {
    "bash": """
        COMP_WORDS=(dw run shop.); COMP_CWORD=2; _dw_complete
        printf "%s\\n" "${COMPREPLY[@]}"; complete -p dw
    """,
    "zsh": """
        _describe() { print -l -- $names }
        words=(dw run shop.); CURRENT=3; _dw_complete
    """,
    "fish": "complete -C 'dw run shop.'",
}


@pytest.fixture(params=["bash", "zsh", "fish"])
def press_tab(request, here: Path, tmp_path: Path, environment: dict[str, str]) -> Callable[[str], str]:
    """Press TAB in a real shell in which `dw` is a file with this text. Gives what it prints."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")

    def press(text: str) -> str:
        (tmp_path / "dw").write_text(text)
        (tmp_path / "dw").chmod(0o755)
        done = subprocess.run(
            [shell, "-c", SCRIPTS[shell] + AT_TAB[shell]],
            env=environment | {"PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}"},
            cwd=here,
            text=True,
            capture_output=True,
        )
        return (done.stdout or done.stderr).replace(":", " ")  # zsh: word:what it is

    return press


@pytest.mark.parametrize("text", [INSTALLED, WRAPPED], ids=["installed", "wrapped"])
def test_the_function_works_in_the_real_shell(here: Path, press_tab, text: str):
    # what lies in the folder where TAB is pressed is never run
    (here / "gc.py").write_text("raise SystemExit('the folder is on the path')")
    assert press_tab(text).split()[0] == "shop.orders"


def test_where_python_can_be_asked_the_script_around_it_is_not(press_tab):
    assert press_tab(f"#!{sys.executable}\nraise SystemExit('run')\n").split()[0] == "shop.orders"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_is_good_syntax_where_its_shell_is(shell: str):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-n"], input=SCRIPTS[shell], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_install_adds_one_line_once(dw, environment):
    bashrc = Path(environment["HOME"]) / ".bashrc"
    bashrc.write_text("alias ll='ls -l'")
    for _ in range(2):
        assert dw("completion", "install", "bash", "--yes").returncode == 0
    lines = bashrc.read_text().splitlines()
    assert lines[0] == "alias ll='ls -l'" and len(lines) == 2 and "dw completion show bash" in lines[1]


def test_install_asks_and_without_a_terminal_says_how(dw, environment):
    done = dw("completion", "install", "zsh")
    assert done.returncode == 2 and "dw completion install zsh --yes" in done.stderr
    assert not (Path(environment["HOME"]) / ".zshrc").exists()


def test_show_prints_the_script_on_stdout(dw):
    for shell, script in SCRIPTS.items():
        assert dw("completion", "show", shell).stdout == script


def test_the_cache_holds_names_alone_and_is_private(here: Path):
    path = here / ".dw" / "complete.json"
    assert json.loads(path.read_text()) == {"tables": ["a", "b", "c"], "runs": ["run2", "run1"]}
    assert path.stat().st_mode & 0o077 == 0

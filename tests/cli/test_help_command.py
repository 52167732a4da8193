"""`dw help`: codes, commands, and nothing that a code could be and is not explained."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

import dwcli
from dwcli import errors
from dwcli.cli._codes import CODES, find
from dwcli.render.words import width

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FILES = sorted(Path(dwcli.__file__).parent.rglob("*.py"))
EXPLAINED = "dwcli/cli/_codes.py"
LAYERS = {"name", "port", "tls", "login", "database", "permission", "lost"}


def classes(kind: type = errors.DwError) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from classes(below)


def texts() -> Iterator[tuple[Path, ast.AST]]:
    for path in FILES:
        if not path.as_posix().endswith(EXPLAINED):
            yield path, ast.parse(path.read_text("utf-8"))


def codes_written() -> set[str]:
    """Every whole string in the code that is a code."""
    found = (node.value for _, tree in texts() for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in found if isinstance(value, str) and re.fullmatch(r"DW-[A-Z-]+[A-Z]", value)}


def in_sql() -> set[str]:
    """Codes that stand inside longer texts, such as statements."""
    found = set()
    for _, tree in texts():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"'(DW-[A-Z-]+[A-Z])'", node.value))
    return found


def layers_given() -> set[str]:
    """Every layer that is written as a literal where a ConnectionFailed is made."""
    found = set()
    for _, tree in texts():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ConnectionFailed":
                given = [k.value for k in node.keywords if k.arg == "layer"] or node.args[1:2]
                found |= {
                    inner.value
                    for layer in given
                    for inner in ast.walk(layer)
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                }
    return found


def test_every_code_has_an_explanation_and_no_other_has_one():
    of_classes = {kind.code for kind in classes()}
    of_layers = {f"DW-CONN-{layer.upper()}" for layer in LAYERS | {"read"}}
    assert of_classes | of_layers | codes_written() | in_sql() == set(CODES)


def test_the_layers_of_a_connection_are_the_known_ones():
    found = layers_given()
    assert len(found) > 5
    assert found <= LAYERS


def test_an_explanation_says_how_the_command_ends():
    known = {kind.code: kind.exit_code for kind in classes()}
    assert {code: CODES[code].exit_code for code in known} == known


@pytest.mark.parametrize("code", sorted(CODES))
def test_commands_in_an_explanation_are_commands(code):
    from dwcli.cli.app import COMMANDS

    names = {command.name for command in COMMANDS}
    commands = [line for sentence in CODES[code].do for line in re.findall(r"`dw ([^`]+)`", sentence)]
    for line in commands:
        words = re.sub(r"^-C \S+ ", "", line).split()
        assert words[0] in names, line


@pytest.mark.parametrize(
    "typed", ["DW-CONN-LOGIN", "dw-conn-login", "conn-login", "login", "[DW-CONN-LOGIN]"]
)
def test_a_code_is_found_however_it_is_typed(typed):
    assert find(typed) == "DW-CONN-LOGIN"


def test_a_code_is_explained(dw):
    done = dw("help", "DW-CONN-LOGIN")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["DW-CONN-LOGIN   (exit code 1)", CODES["DW-CONN-LOGIN"].what]
    assert "`dw test-connection NAME`" in done.stdout


def test_a_code_as_json(dw):
    found = json.loads(dw("help", "dw-secret", "--json").stdout)
    assert (found["code"], found["exit_code"]) == ("DW-SECRET", 2)
    assert found["causes"] and found["do"]


def test_a_command_is_explained_as_by_its_help(dw):
    assert dw("help", "status").stdout == dw("status", "--help").stdout
    assert dw("help", "st").stdout == dw("status", "--help").stdout
    assert "--sslmode" in dw("help", "add-source", "postgres").stdout


def test_alone_it_lists_the_commands(dw):
    assert dw("help").stdout == dw("--help").stdout
    found = json.loads(dw("help", "--json").stdout)
    assert {"run", "help"} <= set(found["commands"]) and "DW-LOCKED" in found["codes"]


@pytest.mark.parametrize(
    ("topic", "nearest"),
    [("DW-CONN-LOGN", "DW-CONN-LOGIN"), ("conn-prt", "DW-CONN-PORT"), ("statsu", "status")],
)
def test_an_unknown_topic_gets_the_nearest(dw, topic, nearest):
    done = dw("help", topic)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Did you mean '{nearest}'?" in done.stderr


def test_nothing_near_is_suggested_for_nonsense(dw):
    done = dw("help", "[red]x\x1b[31m")
    assert done.returncode == 2
    assert "Did you mean" not in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_an_explanation_fits_the_screen(terminal, columns):
    child = terminal("help", "conn-tls", "--no-color", width=columns)
    child.expect(pexpect.EOF)
    child.wait()
    lines = [ESCAPES.sub("", line).rstrip() for line in child.before.replace("\r", "").splitlines()]
    assert lines[0].startswith("DW-CONN-TLS")
    assert max(width(line) for line in lines) <= columns


def test_a_failure_without_a_fix_points_to_its_explanation():
    from dwcli.cli.app import _explained

    assert _explained(errors.CountsDiffer()) == "dw help DW-COUNTS"
    assert _explained(errors.DwError("x")) == ""
    assert _explained(errors.ConfigError("x")) == ""


def test_tab_offers_commands_and_codes():
    from dwcli.cli._tab import answer

    assert answer("bash", ["help", "stat"]) == "status\nstate\n"
    assert "DW-CONN-TLS\n" in answer("bash", ["help", "DW-CONN-"])
    assert answer("zsh", ["help", "DW-SQL"]) == f"DW-SQL\t{CODES['DW-SQL'].what}\n"

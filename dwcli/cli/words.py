"""Keep `_words.py` and `_fields.py`, the words that TAB offers, the same as the app's commands and flags.

`python -m dwcli.cli.words` writes them; `python -m dwcli.cli.words --check` says whether they are up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from pprint import pformat
from typing import Any, Literal, get_args, get_origin

HERE = Path(__file__).parent


def texts() -> dict[str, str]:
    """The text of each file as the app has it now, by its name."""
    from typer.main import get_command

    from dwcli import connectors
    from dwcli.cli.app import COMMANDS, build_app

    app: Any = get_command(build_app([], "*"))
    own = {flag for p in app.params for flag in _flags(p)}
    words = {
        command.name: {
            "help": app.commands[command.name].help.split("\n")[0],
            "completes": command.completes,
            "flags": _flag_values(app.commands[command.name], own),
            "flag_help": _flag_helps(app.commands[command.name], own),
        }
        for command in COMMANDS
        if command.name in app.commands
    }
    fields = {}
    for protocol in connectors.names():
        built: Any = get_command(build_app(["add-source", protocol], "add-source"))
        source = built.commands["add-source"]
        known = own | set(words.get("add-source", {"flags": {}})["flags"])
        fields[protocol] = _flag_values(source, known)
        for alias in connectors.literals(protocol).get("ALIASES", ()):
            fields[alias] = fields[protocol]
    flags = _literal(_flag_values(app, set()))
    return {
        "_words.py": _file(
            "The words of every command, for TAB.",
            "#: flag → None where it takes no value, else the values it takes ([]: any)",
            f"GLOBAL_FLAGS: dict[str, list[str] | None] = {flags}",
            "",
            "#: command → its help, what its plain words are, its flags",
            f"WORDS: dict[str, dict[str, Any]] = {_literal(words)}",
        ),
        "_fields.py": _file(
            "The fields of every kind of source, for TAB: apart, as reading them takes 6 ms.",
            "#: protocol → the flags of `dw add-source PROTOCOL`",
            f"FIELDS: dict[str, dict[str, list[str] | None]] = {_literal(fields)}",
        ),
    }


def _file(title: str, *lines: str) -> str:
    head = [
        f'"""{title} Written by `python -m dwcli.cli.words`; do not edit."""',
        "",
        "# fmt: off",
        "# ruff: noqa: E501",
        "from __future__ import annotations",
        "",
    ]
    if any("Any" in line for line in lines):
        head += [
            "TYPE_CHECKING = False  # as typing has it; importing typing would cost TAB 5 ms",
            "if TYPE_CHECKING:",
            "    from typing import Any",
            "",
        ]
    return "\n".join([*head, *lines, ""])


def _literal(value: object) -> str:
    return pformat(value, width=110, sort_dicts=False)


def _flags(parameter: Any) -> list[str]:
    return [flag for flag in [*parameter.opts, *parameter.secondary_opts] if flag.startswith("-")]


def _flag_values(command: Any, known: set[str]) -> dict[str, list[str] | None]:
    values: dict[str, list[str] | None] = {}
    for parameter in command.params:
        takes = parameter.param_type_name == "option" and not parameter.is_flag
        kind = parameter.type_descriptor.annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        for flag in _flags(parameter):
            if flag not in known:
                values[flag] = [str(choice) for choice in choices] if takes else None
    return values


def _flag_helps(command: Any, known: set[str]) -> dict[str, str]:
    return {
        flag: (parameter.help or "").split("\n")[0]
        for parameter in command.params
        for flag in _flags(parameter)
        if flag not in known and flag.startswith("--")
    }


def main(argv: list[str]) -> int:
    if "--check" not in argv:
        for name, text in texts().items():
            (HERE / name).write_text(text, "utf-8")
        return 0
    stale = [name for name, text in texts().items() if (HERE / name).read_text("utf-8") != text]
    for name in stale:
        sys.stderr.write(f"{name} is not what the app has: python -m dwcli.cli.words\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

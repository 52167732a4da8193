"""The words of every command, for TAB. Written by `python -m dwcli.cli.words`; do not edit."""

# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from typing import Any

#: flag → None where it takes no value, else the values it takes ([]: any)
GLOBAL_FLAGS: dict[str, list[str] | None] = {'--project': [],
 '-C': [],
 '--json': None,
 '--quiet': None,
 '-q': None,
 '--verbose': None,
 '-v': None,
 '--no-color': None,
 '--no-input': None,
 '--yes': None,
 '-y': None,
 '--version': None,
 '-V': None}

#: command → its help, what its plain words are, its flags
WORDS: dict[str, dict[str, Any]] = {'up': {'help': "Start the project's own warehouse; nothing happens when it runs.",
        'completes': '',
        'flags': {},
        'flag_help': {}}}

#: protocol → the flags of `dw add-source PROTOCOL`
FIELDS: dict[str, dict[str, list[str] | None]] = {}

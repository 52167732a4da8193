"""Config files, YAML or JSON, read so that every error can say file, line and column."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcli.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

#: A config file of this size is a mistake, or an attack by nested aliases.
MAX_BYTES = 1024 * 1024
QUOTES_NEEDED = 'put a value that begins with * in quotes, such as every: "*/15 * * * *"'


@dataclass(frozen=True)
class Document:
    """What a config file says (`data`, plain dicts and lists) and where it says it."""

    path: Path
    data: dict[str, Any]
    #: (line, column) of each key, both from 1, by the keys that lead to it
    marks: Mapping[tuple[str | int, ...], tuple[int, int]]

    def where(self, keys: Iterable[str | int]) -> str:
        """`file:line:column` of a key, or of the nearest one above it that stands in the file."""
        trail = tuple(keys)
        while trail and trail not in self.marks:
            trail = trail[:-1]
        line, column = self.marks.get(trail, (1, 1))
        return f"{self.path}:{line}:{column}"


def read_document(path: Path | str) -> Document:
    """Read one YAML or JSON mapping (JSON is YAML). An empty file is an empty mapping.

    Raises ConfigError, with line and column, when the file is missing, too large, not UTF-8, not
    valid YAML, not a mapping, has a key twice, or uses aliases or tags (`&a`, `*a`, `!!python/…`),
    which no config needs and YAML bombs are made of.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read", why=error.strerror or str(error), hint=f"check the path: ls -l {path}"
        ) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is too large for a config file ({len(raw):,} bytes)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return parse_document(text, path)


def parse_document(text: str, path: Path | str) -> Document:
    """`read_document` for text already in hand; `path` is only named in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.events import AliasEvent
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

    path = Path(path)
    marks: dict[tuple[str | int, ...], tuple[int, int]] = {}

    def visit(node: Node, trail: tuple[str | int, ...]) -> None:
        if str(node.tag).startswith(("!", "tag:yaml.org,2002:python")):
            raise _at(path, node.start_mark, f"the tag {node.tag} has no place in a config file")
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if isinstance(key, ScalarNode):
                    marks[(*trail, key.value)] = (key.start_mark.line + 1, key.start_mark.column + 1)
                    visit(value, (*trail, key.value))
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                marks[(*trail, index)] = (value.start_mark.line + 1, value.start_mark.column + 1)
                visit(value, (*trail, index))

    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                raise _at(
                    path, event.start_mark, "aliases (*name) have no place in a config file", QUOTES_NEEDED
                )
        node = YAML(typ="safe", pure=True).compose(text)
        if node is not None:
            visit(node, ())
        data = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise _at(path, error.problem_mark, "the same key stands here twice") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = QUOTES_NEEDED if error.context == "while scanning an alias" else ""
        raise _at(path, mark, f"not valid YAML: {error.problem or error.context}", hint) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1:1: a mapping (key: value) is expected, not a {type(data).__name__}")
    return Document(path, data, marks)


def _at(path: Path, mark: Any, problem: str, hint: str = "") -> ConfigError:
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    return ConfigError(f"{path}:{line}:{column}: {problem}", hint=hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a mistyped word, or nothing."""
    match = closest(word, known)
    return f" Did you mean '{match}'?" if match else ""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that a mistyped one is nearest to, or nothing."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), "")


def problems(error: ValidationError, known: Iterable[str]) -> list[tuple[tuple[str | int, ...], str]]:
    """Each validation problem as (keys that lead to it, a sentence without the value).

    The value is left out on purpose: it may be a secret that stands under the wrong key.
    """
    found: list[tuple[tuple[str | int, ...], str]] = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        keys = problem["loc"]
        last = str(keys[-1]) if keys else ""
        if problem["type"] == "extra_forbidden":
            found.append((keys, f"unknown key '{last}'.{nearest(last, known)}"))
        elif problem["type"] == "missing":
            found.append((keys, f"'{last}' is missing"))
        else:
            text = problem["msg"].removeprefix("Value error, ")
            found.append((keys, f"'{last}': {text[:1].lower()}{text[1:]}" if last else text))
    return found


def invalid(
    document: Document | None, error: ValidationError, known: Iterable[str], subject: str
) -> ConfigError:
    """The ConfigError for a config that does not validate: all problems, the first one's place first.

    subject: what is being configured, used where there is no file, such as "postgres config".
    """
    lines = [
        f"{document.where(keys)}: {text}" if document is not None else f"{subject}: {text}"
        for keys, text in problems(error, known)
    ]
    return ConfigError("\n".join(lines))

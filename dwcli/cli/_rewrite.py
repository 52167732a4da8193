"""Change single values of a config file and nothing else in it: comments, order and spacing stay.

A round trip through a YAML library keeps comments and order, but not columns, quotes and blank lines; here
the parsed nodes only say where in the text each value stands, and the text between them is not touched.
JSON is YAML in braces, so JSON sources are changed the same way. What comes out is parsed again and compared
with what was meant.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dwcli.documents import parse_document
from dwcli.errors import ConfigError, UsageError
from dwcli.references import write_private

#: Stands for a key that shall not be there.
GONE = object()


def read_text(path: Path) -> str:
    """A config file as it is, line ends too. Raises ConfigError for what no config can be."""
    parse_document(_decoded(path), path)
    return _decoded(path)


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text", why=str(error)) from None


def rewritten(text: str, path: Path, changes: Mapping[tuple[str, ...], Any]) -> str:
    """The text with values set, added or (GONE) taken out, by the keys that lead to them.

    A key that is already as wanted is not touched. Raises ConfigError when the file is written in a way
    that this cannot change.
    """
    meant = parse_document(text, path).data
    for keys, value in changes.items():
        before = _at(meant, keys)
        if before == value and type(before) is type(value):
            continue
        text = _delete(text, keys) if value is GONE else _set(text, keys, value)
        _apply(meant, keys, value)
    try:
        same = parse_document(text, path).data == meant
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"{path} is written in a way that dw cannot change without disturbing it",
            hint=f"change it by hand: dw edit {path.stem} --editor",
        )
    return text


def difference(before: str, after: str, name: str) -> list[str]:
    """The change as a unified diff, a line each, without line ends."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, n=2, lineterm="")
    return list(lines)


def replace_text(path: Path, before: str, after: str) -> None:
    """Write a changed file whole or not at all; a link and the file's permissions stay.

    Raises UsageError when the file is no longer what was read: somebody changed it meanwhile.
    """
    if _decoded(path) != before:
        raise UsageError(f"{path} was changed by another meanwhile; nothing was written", hint="try again")
    target = path.resolve()
    mode = target.stat().st_mode & 0o777
    write_private(target, after)
    target.chmod(mode)


def _at(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return GONE
        data = data[key]
    return data


def _apply(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    if value is GONE:
        data.pop(keys[-1], None)
    else:
        data[keys[-1]] = value


# -- where things stand -------------------------------------------------------------------------------


def _compose(text: str) -> Any:
    from ruamel.yaml import YAML

    shift = 1 if text.startswith("\ufeff") else 0
    return YAML(typ="safe", pure=True).compose(text[shift:]), shift


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    return next((pair for pair in node.value if str(pair[0].value) == key), None)


def _is_mapping(node: Any) -> bool:
    from ruamel.yaml.nodes import MappingNode

    return isinstance(node, MappingNode)


def _end(node: Any, text: str, shift: int) -> int:
    """Where a value's last character is. A block's own end lies behind the comments that follow it."""
    from ruamel.yaml.nodes import CollectionNode, ScalarNode

    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        pair = isinstance(last, tuple)
        end = _end(last[1] if pair else last, text, shift)
        return max(end, last[0].end_mark.index + shift + 1) if pair else end
    mark: int = node.end_mark.index + shift
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        return len(text[:mark].rstrip())
    return mark


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    """Behind the line break of the line that `index` is in."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


# -- one change ---------------------------------------------------------------------------------------


def _set(text: str, keys: Sequence[str], value: Any) -> str:
    root, shift = _compose(text)
    node, depth = root, 0
    pair = None
    while depth < len(keys) and node is not None and _is_mapping(node):
        pair = _pair(node, keys[depth])
        if pair is None:
            break
        depth += 1
        if depth == len(keys):
            return _set_value(text, pair, value, shift, bool(node.flow_style))
        if not _is_mapping(pair[1]):
            nested = value
            for key in reversed(keys[depth:]):
                nested = {key: nested}
            return _set_value(text, pair, nested, shift, bool(node.flow_style))
        node = pair[1]
    nested = value
    for key in reversed(keys[depth + 1 :]):
        nested = {key: nested}
    if node is None:
        return f"{text}{keys[0]}: {_inline(nested, False, False)}{_newline(text)}"
    return _add(text, node, keys[depth], nested, shift)


def _set_value(text: str, pair: tuple[Any, Any], value: Any, shift: int, flow: bool) -> str:
    key, node = pair
    said = _inline(value, _is_json(text), flow)
    start, end = node.start_mark.index + shift, _end(node, text, shift)
    if end <= start:  # `key:` with nothing behind it
        start = end = text.index(":", key.end_mark.index + shift) + 1
        return f"{text[:start]} {said}{text[end:]}"
    colon = text.index(":", key.end_mark.index + shift) + 1
    if "\n" in text[colon:start]:  # a block below its key becomes a value beside it
        return f"{text[:colon]} {said}{text[end:]}"
    return text[:start] + said + text[end:]


def _add(text: str, node: Any, key: str, value: Any, shift: int) -> str:
    strict = _is_json(text)
    name = json.dumps(key) if strict else key
    line = f"{name}: {_inline(value, strict, bool(node.flow_style) or not node.value)}"
    if not node.value:
        start = node.start_mark.index + shift
        return f"{text[:start]}{{{line}}}{text[node.end_mark.index + shift :]}"
    first, last = node.value[0][0], node.value[-1]
    end = _end(last[1], text, shift)
    if node.flow_style:
        start = first.start_mark.index + shift
        indent = text[_line_start(text, start) : start]
        own_line = not indent.strip()
        return f"{text[:end]},{_newline(text) + indent if own_line else ' '}{line}{text[end:]}"
    names = [str(known.value) for known, _ in node.value]
    if "pipelines" in names[1:] and key != "pipelines":  # connection values stand above the pipelines
        last = node.value[names.index("pipelines") - 1]
        end = _end(last[1], text, shift)
    at = _line_end(text, max(end, last[0].end_mark.index + shift))
    lead = "" if text[:at].endswith("\n") else _newline(text)
    return f"{text[:at]}{lead}{' ' * first.start_mark.column}{line}{_newline(text)}{text[at:]}"


def _delete(text: str, keys: Sequence[str]) -> str:
    root, shift = _compose(text)
    node = root
    for key in keys[:-1]:
        pair = _pair(node, key) if _is_mapping(node) else None
        if pair is None:
            return text
        node = pair[1]
    pair = _pair(node, keys[-1]) if _is_mapping(node) else None
    if pair is None:
        return text
    index = node.value.index(pair)
    start = pair[0].start_mark.index + shift
    end = max(_end(pair[1], text, shift), pair[0].end_mark.index + shift + 1)
    if node.flow_style:
        if index + 1 < len(node.value):
            return text[:start] + text[node.value[index + 1][0].start_mark.index + shift :]
        if index:
            before = _end(node.value[index - 1][1], text, shift)
            return text[:before] + text[end:]
        return text[:start].rstrip() + text[end:].lstrip()
    if len(node.value) == 1 and len(keys) > 1:  # a mapping with no key left
        colon = text.rindex(":", 0, start) + 1
        gap = text[colon : _line_start(text, start)]
        return f"{text[:colon]} {{}}{gap or _newline(text)}{text[_line_end(text, end) :]}"
    return text[: _line_start(text, start)] + text[_line_end(text, end) :]


def _is_json(text: str) -> bool:
    return text.lstrip("\ufeff \r\n\t")[:1] == "{"


def _inline(value: Any, strict: bool, flow: bool) -> str:
    """A value as it stands behind its key, on one line. strict: as JSON. flow: between braces."""
    from dwcli.project import as_typed

    value = as_typed(value)
    if strict:
        return json.dumps(value, ensure_ascii=False)
    found = re.fullmatch(r"v: (.*)\n", _dumped(value, False))
    if found and not flow:
        return found[1]
    return re.fullmatch(r"\{v: (.*)\}\n", _dumped(value, True), re.DOTALL)[1]  # type: ignore[index]


def _dumped(value: Any, flow: bool) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = flow
    yaml.width = 1_000_000
    out = StringIO()
    yaml.dump({"v": value}, out)
    return out.getvalue()

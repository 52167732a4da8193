"""What TAB offers, answered in some 20 ms: little of the standard library is loaded here, and nothing else.

Commands and flags come from `_words.py`, which is made from the Typer app, fields from `_fields.py`; sources
and pipelines from the names in `sources/`; run ids and tables from the cache that `dw run` and `dw status`
keep.
"""

from __future__ import annotations

import os
from itertools import pairwise

from dwcli.cli._words import GLOBAL_FLAGS, WORDS

# ruff: noqa: PTH100, PTH111, PTH112, PTH113, PTH118, PTH120, PTH122, PTH123
# os.path and not pathlib, no regular expressions where it can be: each import would be felt.

#: flag → what its value is
VALUES = {
    "--source": "sources",
    "--pipeline": "pipelines",
    "--table": "tables",
    "--config": "files",
    "--lake": "files",
    "--project": "folders",
    "-C": "folders",
    "-f": "files",
}


def answer(shell: str, words: list[str]) -> str:
    """The words that fit, one a line, for the words typed so far (the last one is being typed).

    shell: bash gets bare words; zsh and fish get `word<TAB>what it is`. No line at all tells the shell
    to offer file names.
    """
    words = words[1:] if words[:1] == ["--"] else words
    current = words[-1] if words else ""
    try:
        fitting = [(word, text) for word, text in offers(words) if word.startswith(current)]
    except OSError:
        fitting = []
    lines = [word if shell == "bash" or not text else f"{word}\t{text}" for word, text in fitting]
    return "".join(f"{line}\n" for line in lines)


def offers(words: list[str]) -> list[tuple[str, str]]:
    """Everything that could stand where the last word is, with a few words on what it is."""
    current = words[-1] if words else ""
    before = words[:-1]
    command, plain = _read(before)
    if "--" in before or command == "?":
        return []
    flags = GLOBAL_FLAGS | flags_for(command, [command, *plain])
    last = before[-1] if before else ""
    if flags.get(last) is not None:
        choices = flags[last] or []
        return [(choice, "") for choice in choices] or named(VALUES.get(last, ""), before)
    if current.startswith("-"):
        helps = WORDS[command]["flag_help"] if command in WORDS else {}
        return [(flag, helps.get(flag, "")) for flag in sorted(flags) if flag.startswith("--")]
    if not command:
        return [(name, entry["help"]) for name, entry in WORDS.items()]
    return _plain_words(command, plain, before)


def _plain_words(command: str, plain: list[str], before: list[str]) -> list[tuple[str, str]]:
    kind = WORDS[command]["completes"]
    if kind == "completion":
        choices = (("install", "show"), ("bash", "zsh", "fish"))
        return [(word, "") for word in choices[len(plain)]] if len(plain) < len(choices) else []
    if kind == "schedule":
        return [] if plain else [(word, "") for word in ("on", "off", "show")]
    if kind == "protocols" and plain:
        return []
    return [(word, text) for word, text in named(kind, before) if word not in plain]


def _read(words: list[str]) -> tuple[str, list[str]]:
    """The command in a line ("?" for an unknown one) and its plain words, without flags and their values."""
    command, plain, skip = "", list[str](), False
    flags = dict(GLOBAL_FLAGS)
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = flags.get(word) is not None
        elif not command:
            command = word if word in WORDS else "?"
            flags |= flags_for(command, [])
        else:
            plain.append(word)
            flags |= flags_for(command, [command, *plain])
    return command, plain


def flags_for(command: str, words: list[str]) -> dict[str, list[str] | None]:
    """flag → None where it takes no value, else the values it takes ([]: any)."""
    if command not in WORDS:
        return {}
    flags: dict[str, list[str] | None] = dict(WORDS[command]["flags"])
    if command in ("add-source", "edit"):
        from dwcli.cli._fields import FIELDS
    if command == "add-source":
        protocol = next((word for word in words if word in FIELDS), "")
        flags |= FIELDS.get(protocol, {})
    if command == "edit":
        flags |= FIELDS.get(_protocol_edited(words), {})
    return flags


def _protocol_edited(words: list[str]) -> str:
    """The protocol of the source that `dw edit` is given; "" where it is given none."""
    import re

    root = find_root([])
    if root is None:
        return ""
    known = {name for name, _ in sources(root)}
    name = next((word for word in words if word in known), "")
    for ending in (".yaml", ".yml", ".json"):
        path = os.path.join(root, "sources", name + ending)
        if name and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found = re.search(
                    r"""(?m)^[\s{]*["']?protocol["']?\s*:\s*["']?([\w.-]+)""", file.read(1_000_000)
                )
            return found[1] if found else ""
    return ""


# -- names that only this project knows ---------------------------------------------------------------


def named(kind: str, before: list[str]) -> list[tuple[str, str]]:
    """Words of one kind: pipelines, sources, runs, tables, targets, protocols, folders, files."""
    if kind == "protocols":
        return [(name, "") for name in protocols()]
    if kind == "topics":
        from dwcli.cli._codes import CODES  # 10 ms, and only after `dw help`

        texts = [(code, entry.what) for code, entry in CODES.items()]
        return [*((name, entry["help"]) for name, entry in WORDS.items()), *texts]
    root = find_root(before)
    if root is None:
        return []
    if kind == "sources":
        return [(name, "source") for name, _ in sources(root)]
    if kind == "pipelines":
        return _pipelines(root)
    if kind == "targets":  # a pipeline without another target: loads the table of its name
        return [*named("tables", before), *_pipelines(root, sources_too=False)]
    if kind in ("runs", "tables"):
        return [(str(word), "") for word in cache(root).get(kind, [])]
    return []


def _pipelines(root: str, sources_too: bool = True) -> list[tuple[str, str]]:
    found = sources(root)
    every = [name for _, names in found for name in names]
    offered = {name: "source" for name, _ in found if sources_too}
    for source, names in found:
        for name in names:
            offered[name if every.count(name) == 1 else f"{source}.{name}"] = f"pipeline of {source}"
    return sorted(offered.items())


def find_root(before: list[str]) -> str | None:
    """The project folder that the line speaks of: -C, DW_PROJECT, or the nearest above."""
    given = os.environ.get("DW_PROJECT") or "."
    for flag, value in pairwise(before):
        if flag in ("-C", "--project"):
            given = value
    folder = os.path.abspath(os.path.expanduser(given))
    while not os.path.isfile(os.path.join(folder, "dw.yaml")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return folder


def sources(root: str) -> list[tuple[str, list[str]]]:
    """Each source with its pipelines, from the look of the files alone."""
    folder = os.path.join(root, "sources")
    if not os.path.isdir(folder):
        return []
    found: list[tuple[str, list[str]]] = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name, ending = os.path.splitext(entry.name)
        if ending in (".yaml", ".yml", ".json"):
            with open(entry.path, encoding="utf-8", errors="replace") as file:
                found.append((name, _pipeline_names(file.read(1_000_000), ending)))
    return found


def _pipeline_names(text: str, ending: str) -> list[str]:
    if ending == ".json":
        import json  # 3 ms, and only where a source is JSON

        try:
            return list(json.loads(text).get("pipelines") or {})
        except (ValueError, AttributeError, TypeError):
            return []
    keys: list[tuple[int, str]] = []
    inside = False
    for line in text.split("\n"):
        if line.startswith("pipelines:"):
            inside = line[len("pipelines:") :].partition("#")[0].strip() == ""
        elif inside and line[:1] in (" ", "\t"):
            name = _key(line)
            if name:
                keys.append((len(line) - len(line.lstrip(" \t")), name))
        elif line.strip() and not line.startswith("#"):
            inside = False
    least = min((indent for indent, _ in keys), default=0)
    return [name for indent, name in keys if indent == least]


def _key(line: str) -> str:
    """The name before the colon of a line of YAML; "" where there is none, or no name of a pipeline."""
    name, colon, rest = line.strip().partition(":")
    name = name.rstrip(" \t").strip("\"'")
    if not colon or rest[:1] not in ("", " ", "\t") or name.startswith("-"):
        return ""
    return name if name.isascii() and name.replace("_", "a").replace("-", "a").isalnum() else ""


def protocols() -> list[str]:
    """The connectors that come with dw."""
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "connectors")
    names = (os.path.splitext(entry.name) for entry in os.scandir(folder))
    return sorted(name for name, ending in names if ending == ".py" and not name.startswith("_"))


def cache(root: str) -> dict[str, list[str]]:
    """What the last command that looked into the warehouse left for TAB."""
    import json

    try:
        with open(os.path.join(root, ".dw", "complete.json"), encoding="utf-8") as file:
            kept = json.load(file)
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}

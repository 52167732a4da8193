"""Key, cursor and write disposition of a pipeline, each with the reason that the person reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dwcli.contract import CursorCandidate, Resource

#: Kinds of resources of which each run reads what is new, with no cursor column and no `replace`.
STREAMS = ("topic", "queue", "subject", "stream")
#: Kinds of resources that keep their place themselves: what was read is not read again.
ONCE = ("file", "files", "folder", *STREAMS)
#: What that place is, where its kind says it.
PLACES = {"topic": "offsets", "queue": "what was acknowledged", "subject": "message numbers"}
PLACES |= dict.fromkeys(("file", "files", "folder"), "new and changed files")
#: Kinds whose plural is another word than the kind with an s.
NOUNS = {
    "file": "files",
    "files": "files",
    "folder": "files",
    "view": "tables",
    "nodes": "labels",
    "query": "queries",
}
#: What a file's name ends with, and is no part of what it holds.
ENDINGS = re.compile(r"(?i)csv|tsv|txt|jsonl?|ndjson|parquet|xlsx?|ods|avro|gz|zst|bz2|xz|zip")


@dataclass(frozen=True)
class Plan:
    """How one resource is loaded. `why`: one phrase on each of key and cursor, for the screen."""

    name: str
    query: str
    write: str
    key: tuple[str, ...] = ()
    cursor: str | None = None
    why: tuple[str, ...] = ()

    def entry(self, every: str | None) -> dict[str, Any]:
        """The pipeline's lines in the source file."""
        entry: dict[str, Any] = {"query": self.query, "write": self.write}
        if self.key:
            entry["key"] = list(self.key)
        if self.cursor:
            entry["cursor"] = self.cursor
        if every:
            entry["every"] = every
        return entry


def nouns(resources: Collection[Resource]) -> str:
    """What a source's resources are called: tables, files, queues …"""
    words = {NOUNS.get(resource.kind, f"{resource.kind}s") for resource in resources}
    return (
        words.pop()
        if len(words) == 1
        else "tables"
        if "tables" in words or not words
        else " or ".join(sorted(words))
    )


def propose(name: str, resource: Resource, sure_only: bool = True) -> Plan:
    """What fits a resource by its catalogue.

    sure_only: take no cursor that the catalogue does not prove; without one the table is reloaded
    whole, which is always right and only slower. A person is offered the best guess instead.
    """
    key = resource.primary_key
    cursor = next((c for c in resource.cursors if not c.append_only and (c.sure or not sure_only)), None)
    if cursor is not None and not key:
        cursor = None
    if cursor is None and not key:
        cursor = next((c for c in resource.cursors if c.append_only and c.sure), None)
    column = cursor.column if cursor else None
    write = write_for(resource, key, column)
    return Plan(
        name,
        resource.name,
        write,
        key if write == "merge" or key else (),
        column,
        tuple(
            filter(None, [_why_key(resource), _why_cursor(resource, cursor, write) or own_place(resource)])
        ),
    )


def write_for(resource: Resource, key: Collection[str], cursor: str | None) -> str:
    """How new rows meet the table, by key and cursor.

    A cursor that only sees new rows appends them; key and cursor merge; without a cursor the table is
    reloaded, unless the source keeps its own place. A queue or a stream may give a message twice, which
    only its key can tell.
    """
    if cursor:
        return "merge" if key and not _candidate(resource, cursor).append_only else "append"
    if key and resource.kind in ("queue", "stream"):
        return "merge"
    return "append" if resource.kind in ONCE else "replace"


def without_value(columns: Collection[str], rows: Collection[Mapping[str, Any]]) -> list[str]:
    """Those of the columns that are NULL in some row: no part of a key."""
    return [name for name in columns if any(row.get(name, "") is None for row in rows)]


def own_place(resource: Resource) -> str:
    """How a run of a resource that needs no cursor tells what is new; "" for one that reloads without."""
    if resource.kind not in ONCE:
        return ""
    place = PLACES.get(resource.kind)
    return f"goes on where it stopped ({place})" if place else "goes on where it stopped"


def _candidate(resource: Resource, column: str) -> CursorCandidate:
    found = next((c for c in resource.cursors if c.column == column), None)
    return found or CursorCandidate(column, "named by you")


def _why_key(resource: Resource) -> str:
    if not resource.primary_key:
        return ""
    return f"key {', '.join(resource.primary_key)} ({resource.key_reason})"


def _why_cursor(resource: Resource, cursor: CursorCandidate | None, write: str) -> str:
    if cursor is not None:
        return f"cursor {cursor.column} ({cursor.reason})"
    if write != "replace":
        return ""
    unsure = next((c for c in resource.cursors if not c.append_only), None)
    seen = f" ({unsure.column}: {unsure.reason})" if unsure else ""
    return f"no sure cursor{seen}: everything is read each run"


def cautions(resource: Resource, key: Collection[str], cursor: str | None, write: str) -> list[str]:
    """What a person should know about these choices, a sentence each."""
    found: list[str] = []
    column = next((c for c in resource.columns if c.name == cursor), None)
    if cursor and column is not None and column.nullable:
        found.append(f"rows whose {cursor} is NULL stop a run (cursor_nulls: include or exclude)")
    if column is not None and column.type == "timestamp":
        found.append(f"{cursor} has no time zone: it is read as UTC unless the source says otherwise")
    if cursor and write == "merge":
        found.append("rows deleted in the source stay in the warehouse (deletes: soft or hard compares keys)")
    if cursor and write == "append" and not key:
        found.append("without a key, a row that is read twice is there twice")
    return found


def pipeline_name(query: str, taken: Collection[str]) -> str:
    """A valid name for a resource: its last part, made unique."""
    last = re.split(r"""[./\\]""", re.sub(r"""["'`\[\]]""", "", query).rstrip("/"))
    parts = [part for part in last if part and not re.fullmatch(r"[*?]+", part)]
    while len(parts) > 1 and ENDINGS.fullmatch(parts[-1]):
        parts.pop()
    base = parts[-1] if parts else query
    if len(parts) > 1 and not re.search(r"[A-Za-z]", base):  # 001.csv is the first of what the folder is
        base = "_".join(parts[-2:])
    # in small letters, so that SQL needs no quotes
    name = re.sub(r"[^a-z0-9_]+", "_", base.lower()).strip("_")[:60] or "data"
    if name not in taken:
        return name
    wider = re.sub(r"[^a-z0-9_]+", "_", "_".join(parts[-2:]).lower()).strip("_")[:60]
    if len(parts) > 1 and wider not in taken:
        return wider
    return next(f"{name[:57]}_{n}" for n in range(2, 100_000) if f"{name[:57]}_{n}" not in taken)


def matching(resources: Collection[Resource], pattern: str) -> list[Resource]:
    """The resources that a glob such as `public.*` means; names without a schema match their last part."""
    from fnmatch import fnmatchcase

    return [
        resource
        for resource in resources
        if fnmatchcase(resource.name, pattern) or fnmatchcase(resource.name.replace('"', ""), pattern)
    ]


def same_choices(plans: Collection[Plan]) -> Mapping[str, bool]:
    """Which of key, cursor and write are the same in every plan."""
    return {
        "key": len({plan.key for plan in plans}) == 1,
        "cursor": len({plan.cursor for plan in plans}) == 1,
        "write": len({plan.write for plan in plans}) == 1,
    }

"""What a catalogue tells about keys and cursors, in the words the wizard shows."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from dwcli.contract import Column, CursorCandidate

#: Columns that change whenever the row does, by the names people give them; best first.
CHANGES = re.compile(
    r"(?i)^_?(updated?|modified|changed|last[_ -]?(update|updated|modified|change|changed)|mtime|upd|mod)"
    r"([_ -]?(at|on|date|time|ts|timestamp|datetime|utc))?$|^(row)?version$|^rv$"
)
#: Columns that are set once, when the row is made.
CREATED = re.compile(
    r"(?i)^_?(created?|inserted|added|ingested|event|occurred|logged|recorded)"
    r"([_ -]?(at|on|date|time|ts|timestamp|datetime|utc))$"
)
TIMES = ("timestamptz", "timestamp", "date")
NUMBERS = ("bigint", "integer", "smallint", "numeric")


def cursor_candidates(
    columns: Sequence[Column],
    primary_key: Sequence[str],
    indexed: Collection[str],
    unled: str = "no index: each run scans the table",
) -> tuple[CursorCandidate, ...]:
    """Columns that could tell new rows from old ones, best first, each with its reason.

    indexed: columns that lead an index. A NOT NULL change column with an index is `sure`; everything
    else is a guess that a person confirms. unled: what a run does for one without an index.
    """
    ranked: list[tuple[int, CursorCandidate]] = []
    for column in columns:
        base = re.sub(r"\(.*", "", column.type).strip()
        facts = [
            "not null" if not column.nullable else "can be null",
            "indexed" if column.name in indexed else unled,
        ]
        solid = not column.nullable and column.name in indexed
        if base in TIMES and CHANGES.match(column.name):
            ranked.append((0 if solid else 2, CursorCandidate(column.name, ", ".join(facts), sure=solid)))
        elif base in NUMBERS and CHANGES.match(column.name):
            ranked.append((3, CursorCandidate(column.name, ", ".join(facts))))
        elif base in TIMES and CREATED.match(column.name):
            reason = "does not change when a row is edited: updates would be missed"
            ranked.append((4, CursorCandidate(column.name, reason, append_only=True)))
        elif list(primary_key) == [column.name] and base in ("bigint", "integer", "smallint"):
            reason = "a growing number: new rows are seen, changed rows are not"
            ranked.append((5, CursorCandidate(column.name, reason, append_only=True)))
    return tuple(candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0]))

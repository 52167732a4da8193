"""How exactly each column of a source arrives in the warehouse, said before the first load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dwcli.contract import Column, Resource

TEXTS = re.compile(r"(?i)char|text|clob|string|ascii|^name$|^enum|^set\b|uuid|uniqueidentifier|^long$")
#: Times with more digits of the second than PostgreSQL's six.
FINE = re.compile(
    r"(?i)^(?:time|datetime2|datetimeoffset|datetime64|timestamp|interval).*?\(([7-9])\b|^timestamp_ns$"
)
ZONELESS = re.compile(r"(?i)^(?:small)?(?:date|datetime|timestamp)")
ZONED = re.compile(r"(?i)zone|tz|offset")
#: (protocol, type) whose values are moments by themselves, though no zone stands in their name.
MOMENTS = (("mysql", "timestamp"), ("clickhouse", "date"), ("cassandra", "timestamp"), ("mongodb", "date"))
#: Texts of a file that a person reads as another kind of value, and SQL that makes one of them.
LOOKALIKES = (
    (
        re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{4}"),
        "a date whose order of day and month the file does not tell",
        "to_date({}, 'DD/MM/YYYY')",
    ),
    (
        re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+"),
        "a number with a decimal comma",
        "translate({}, ',.', '.')::numeric",
    ),
)


@dataclass(frozen=True)
class Step:
    """A column that does not arrive just as it is. mark: `changed` (no value is lost) or `LOSSY`."""

    column: str
    source_type: str
    type: str
    mark: str
    words: str


def step(column: Column, protocol: str, zone: str) -> Step | None:
    """What happens to a column on its way, or None where every value arrives exactly.

    zone: what times without a zone mean, as the source is configured.
    """
    source, kind = column.source_type, column.type
    mark, words = "changed", ""
    if not source:
        return None
    if FINE.search(source) or (protocol == "cassandra" and source in ("time", "duration")):
        mark, words = "LOSSY", "nanoseconds are cut to microseconds"
    elif kind == "text" and not TEXTS.search(source):
        words = "each value as text"
    elif kind == "jsonb" and "json" not in source.lower():
        words = "nested values as JSON"
    elif kind == "timestamptz" and _has_no_zone(source, protocol):
        words = f"has no time zone: read as {zone}"
    return Step(column.name, source, kind, mark, words) if words else None


def _has_no_zone(source: str, protocol: str) -> bool:
    moment = any(protocol == of and source.lower().startswith(word) for of, word in MOMENTS)
    return bool(ZONELESS.search(source)) and not ZONED.search(source) and not moment


def report(resources: Mapping[str, Resource], protocol: str, zone: str) -> Iterator[str]:
    """The lines of the report: one for all that is exact, one for each column that is not."""
    from dwcli.render.words import count, escape

    exact = 0
    for name, resource in resources.items():
        steps = [found for column in resource.columns if (found := step(column, protocol, zone))]
        exact += len(resource.columns) - len(steps)
        if steps and len(resources) > 1:
            yield f"  {name}"
        for found in steps:
            kinds = f"{escape(found.source_type)} → {found.type}"
            yield f"  {found.mark:<7} {escape(found.column)}  {kinds}: {found.words}"
    total = sum(len(resource.columns) for resource in resources.values())
    if total and exact == total:
        yield (
            f"  ok      all {count(total, 'column')} arrive exactly"
            if total > 1
            else "  ok      it arrives exactly"
        )
    elif exact:
        yield f"  ok      {count(exact, 'other column')} arrive{'s' if exact == 1 else ''} exactly"


def lookalikes(resource: Resource, records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence on each column of a file that stays text, though its first values look like more."""
    from dwcli.staging.dw_schema import fold_name

    rows = list(records)
    for column in resource.columns:
        texts = [row[column.name] for row in rows if row.get(column.name) is not None]
        if column.source_type or column.type != "text" or not texts:
            continue
        for pattern, what, query in LOOKALIKES:
            if all(isinstance(text, str) and pattern.fullmatch(text) for text in texts):
                made = query.format(fold_name(column.name))
                yield f"{column.name} stays text: {texts[0]} looks like {what}; in SQL: {made}"

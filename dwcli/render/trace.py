"""Where a row came from, on the screen: the row, what each run read of it, what that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dwcli.render.console import to_json
from dwcli.render.preview import text
from dwcli.render.runs import short_id, state_of_run, what_was_loaded
from dwcli.render.tables import Column, Said, broken, marked, table
from dwcli.render.words import count, escape, local_time

if TYPE_CHECKING:
    from rich.console import RenderableType

TRACE_COLUMNS = (
    Column("WHERE"),
    Column("RUN"),
    Column("READ"),
    Column("FILE"),
    Column("ROW", right=True),
    Column("VALUES"),
)
ROW_COLUMNS = (
    Column("COLUMN"),
    Column("VALUE", folds=True),
    Column("SINCE", optional=1),
    Column("READ", optional=2),
)
VERSION_COLUMNS = (Column("RUN"), Column("READ", optional=2), Column("WHAT", folds=True))
#: Of a long value so much stands in a list of changes; the whole stands in the row, and in JSON.
SHOWN = 60
LINEAGE = ("_run_id", "_source_file", "_loaded_at", "_ingested_at")


def trace_rows(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The rows and versions for a program, one a line; the values as one JSON object."""
    for entry in record["warehouse"]:
        values = entry["values"]
        about = [values.get("_run_id"), values.get("_ingested_at"), values.get("_source_file"), None]
        yield ["warehouse", *about, to_json({k: v for k, v in values.items() if k not in LINEAGE})]
    for version in record["lake"]:
        about = [version["run_id"], version["read_at"], version["file"], version["row"]]
        yield ["lake", *about, to_json(version["values"])]


def trace_view(record: Mapping[str, Any], screen: int, ascii_only: bool = False) -> RenderableType:
    """All of it for a person."""
    from rich.console import Group
    from rich.text import Text

    key = ", ".join(f"{column} = {value}" for column, value in record["key"].items())
    head = f"{record['table']}  {key}"
    parts: list[RenderableType] = [Text(escape(head), style="bold"), Text("")]
    if not record["warehouse"]:
        parts += [Text("In the warehouse: no such row."), Text("")]
    for entry in record["warehouse"]:
        parts += [*_row(entry, record, screen), Text("")]
    if record["lake"]:
        parts.append(Text("In the lake, newest first", style="bold"))
        parts.append(table(VERSION_COLUMNS, _versions(record["lake"], "->" if ascii_only else "→"), screen))
    while isinstance(parts[-1], Text) and not parts[-1].plain:
        parts.pop()
    return Group(*parts)


def _row(entry: Mapping[str, Any], record: Mapping[str, Any], screen: int) -> list[Any]:
    """A row of the warehouse, each value with the run that first brought it."""
    from rich.text import Text

    values, since, versions = entry["values"], entry["since"], record["lake"]
    cut = versions[-1]["run_id"] if versions and record["snapshots_left"] else None
    read = {version["run_id"]: version["read_at"] for version in versions}
    rows = [
        [
            column,
            Said(value, _said(value)),
            short_id(since[column]) + (" or before" if since[column] == cut else "")
            if column in since
            else "",
            Said(None, local_time(read[since[column]])) if since.get(column) in read else "",
        ]
        for column, value in values.items()
        if column not in LINEAGE
    ]
    parts: list[Any] = [Text("In the warehouse", style="bold"), table(ROW_COLUMNS, rows, screen)]
    times = [("read", values.get("_ingested_at")), ("loaded", values.get("_loaded_at"))]
    about = [
        ("by run", _run(entry)),
        ("from", escape(_file(values, versions))),
        *((word, local_time(at, seconds=True)) for word, at in times if at),
    ]
    margin = max(len(word) for word, _ in about) + 1
    return parts + [marked(Text(word), broken(Text(words), screen - margin), margin) for word, words in about]


def _file(values: Mapping[str, Any], versions: Sequence[Mapping[str, Any]]) -> str:
    """The file that a row came from, and its place there where the lake still holds it."""
    name = str(values.get("_source_file") or "no file that is known")
    for version in versions:
        path = str(version["file"])
        if version["row"] and path.rpartition("/")[2] == name and version["run_id"] == values.get("_run_id"):
            return f"{path}, row {version['row']:,}"
    return name


def _run(entry: Mapping[str, Any]) -> str:
    """The run that a row came from, in a line."""
    run_id, run = entry["values"].get("_run_id"), entry["run"]
    if not run_id:
        return "none that is known"
    if run is None:
        return f"{escape(short_id(str(run_id)))}, which the audit log no longer has"
    words = [short_id(str(run_id)), local_time(run["started_at"]), state_of_run(run)]
    taken = (run["finished_at"] - run["started_at"]).total_seconds() if run.get("finished_at") else 0
    words.append(what_was_loaded({**run, "seconds": {}, "duration_seconds": taken}))
    return escape("  ".join([*words, str(run.get("command") or "")]).rstrip())


def _versions(versions: Sequence[Mapping[str, Any]], arrow: str) -> Iterator[list[Any]]:
    """Each version with what it changed. Versions that changed nothing are counted with the older one."""
    from rich.text import Text

    repeated: dict[str, int] = {}
    for version in versions:
        key, changed = to_json(version["key"]), version["changed"]
        if changed == {}:
            repeated[key] = repeated.get(key, 0) + 1
            continue
        if version["gone"]:
            what = "gone from the source"
        elif changed is None:
            what = "\n".join(escape(f"{name} {_short(value)}") for name, value in version["values"].items())
        else:
            what = "\n".join(
                escape(f"{name} {_short(pair['from'])} {arrow} {_short(pair['to'])}")
                for name, pair in changed.items()
            )
        again = f"; read again by {count(repeated.pop(key), 'later run')}" if key in repeated else ""
        waits = "" if version["loaded"] else " (not in the warehouse)"
        file = escape(str(version["file"]).rpartition("/")[2])
        place = f"row {version['row']:,} of {file}" if version["row"] else file
        yield [
            Said(version["run_id"], short_id(str(version["run_id"]))),
            version["read_at"],
            Text.assemble(what, "\n", (f"{place}{again}{waits}", "dim")),
        ]


def _said(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, dict | list):
        return to_json(value)
    if isinstance(value, bytes | timedelta):
        return str(text(value))
    return (
        local_time(value, seconds=True) if hasattr(value, "tzinfo") and hasattr(value, "year") else str(value)
    )


def _short(value: Any) -> str:
    said = _said(value)
    return said if len(said) <= SHOWN else said[: SHOWN - 3] + "..."

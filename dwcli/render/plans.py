"""The plan of a run on the screen: `dw run --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dwcli.render.tables import marked
from dwcli.render.words import compact, count, duration, escape, size, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from dwcli.pipeline.planning import Cost, Plan, PlannedColumn, Reading, Schema

#: Cells before what a line says; its name stands in them.
MARGIN = 9
#: Columns of a table that are listed; the others are in --json.
COLUMNS_SHOWN = 30


def plan_view(plan: Plan, ascii_only: bool = False) -> RenderableType:
    """What one run would do: read, load first, change in the table, do with the rows, take."""
    from rich.console import Group
    from rich.text import Text

    arrow = "->" if ascii_only else "→"
    parts: list[RenderableType] = [
        Text.assemble((escape(plan.pipeline_name), "bold"), f" {arrow} {escape(plan.target_table)}")
    ]
    lines: list[tuple[str, str | Text]] = []
    if plan.waiting:
        rows = sum(snapshot.rows for snapshot in plan.waiting)
        many = count(len(plan.waiting), "snapshot")
        lines.append(("first", f"{many} of interrupted runs from the lake: {count(rows, 'row')}"))
    if plan.reading:
        lines.append(("read", _reading(plan.reading)))
    if plan.schema:
        lines.append(("table", _schema(plan.schema, arrow)))
    if plan.meeting:
        there = plan.meeting.table_rows_estimate
        now = f"\nabout {_roughly(there)} rows there now" if there else ""
        lines.append(("rows", f"{escape(plan.meeting.rows)}\n{escape(plan.meeting.deletes)}{now}"))
    if plan.cost:
        lines.append(("takes", _cost(plan.cost)))
    parts += [_line(name, body) for name, body in lines]
    for warning in sorted(plan.warnings, key=lambda warning: not warning.stops):
        style = "bold red" if warning.stops else "yellow"
        body = Text(escape(warning.text))
        if warning.hint:
            body.append(f"\nfix: {escape(warning.hint)}", style="bold")
        parts.append(marked(Text("  FAIL" if warning.stops else "  !", style=style), body, MARGIN))
    if plan.error:
        body = Text("\n".join(escape(plan.error[part]) for part in ("message", "why") if plan.error[part]))
        if plan.error["hint"]:
            body.append(f"\nfix: {escape(plan.error['hint'])}", style="bold")
        parts.append(marked(Text("  FAIL", style="bold red"), body, MARGIN))
    return Group(*parts)


def _line(name: str, body: str | Text) -> RenderableType:
    from rich.text import Text

    return marked(Text(f"  {name}", style="dim"), Text(body) if isinstance(body, str) else body, MARGIN)


def _reading(reading: Reading) -> str:
    sizes: list[str] = []
    if reading.rows_estimate is not None:
        sizes.append(f"about {_roughly(reading.rows_estimate)} rows")
    if reading.bytes_estimate is not None:
        sizes.append(size(reading.bytes_estimate))
    by = f" ({reading.estimated_by})" if reading.estimated_by else ""
    amount = f"{', '.join(sizes)}{by}" if sizes else "nobody knows how many rows"
    if reading.everything:
        where = "everything"
    elif reading.cursor_column:
        begin = f" from {reading.cursor_from}" if reading.cursor_from is not None else ""
        end = f"before {reading.cursor_to}" if reading.cursor_to is not None else "now"
        where = (
            f"{reading.cursor_column}{begin} to {end}"
            if end == "now"
            else (f"{reading.cursor_column}{begin}, {end}")
        )
    else:
        where = "what is new"
    return f"{escape(where)}: {escape(reading.why)}\n{amount}"


def _roughly(rows: int) -> str:
    return f"{rows:,}" if rows < 10_000 else compact(rows)


def _schema(schema: Schema, arrow: str) -> str:
    if not schema.known:
        if schema.new_table:
            return "new; its columns are known when the source has been read"
        return "the source does not tell its columns before it is read"
    guess = ", as far as some of its rows show" if schema.typing == "inferred" else ""
    if not schema.columns:
        return f"no change{guess}"
    head = f"new, {count(len(schema.columns), 'column')}" if schema.new_table else _what_changes(schema)
    shown = schema.columns[:COLUMNS_SHOWN]
    room = max(width(escape(column.name)) for column in shown)
    lines = [_column(column, room, schema.new_table, arrow) for column in shown]
    more = len(schema.columns) - len(shown)
    return "\n".join([head + guess, *lines, *([f"and {more:,} more: --json"] if more else [])])


def _what_changes(schema: Schema) -> str:
    wider = sum(column.type_now is not None for column in schema.columns)
    added = len(schema.columns) - wider
    said = [count(added, "new column")] if added else []
    return ", ".join([*said, *([f"{count(wider, 'column')} widened"] if wider else [])])


def _column(column: PlannedColumn, room: int, new: bool, arrow: str) -> str:
    name = escape(column.name)
    name += " " * (room - width(name))
    if column.type_now is None:
        return f"{'' if new else '+ '}{name}  {column.type}"
    return f"~ {name}  {column.type_now} {arrow} {column.type}"


def _cost(cost: Cost) -> str:
    said: list[str] = []
    if cost.seconds_estimate is not None:
        said.append(f"about {duration(cost.seconds_estimate)}, by {count(cost.from_runs, 'run')} before")
    else:
        said.append("how long, nobody knows yet")
    if cost.lake_bytes_estimate is not None:
        said.append(f"about {size(cost.lake_bytes_estimate)} in the lake")
    if cost.lake_bytes_free is not None:
        said.append(f"{size(cost.lake_bytes_free)} free")
    return "; ".join(said)


def closing_line(plans: Sequence[Plan]) -> str:
    """`Nothing was changed. 1 of 2 would fail as things are.`"""
    failing = sum(not plan.ok for plan in plans)
    if not failing:
        return "Nothing was changed."
    which = "It" if len(plans) == 1 else f"{failing} of {len(plans)}"
    return f"Nothing was changed. {which} would fail as things are."

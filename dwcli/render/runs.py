"""Runs on the screen: the line a run ends with, the audit log, and how every pipeline stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from dwcli.clock import late_from, next_run, past_of
from dwcli.events import Stage
from dwcli.render.tables import Column, Said, fields
from dwcli.render.words import (
    ago,
    compact,
    count,
    duration,
    escape,
    local_time,
    size,
    sparkline,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from dwcli.staging.counting import Rows

#: How many runs of a pipeline its trend shows.
RUNS_SHOWN = 7
STAGES: tuple[Stage, ...] = ("extract", "stage", "load")
State = Literal["ok", "FAILED", "STALE", "running", "never"]
STYLES = {"ok": "green", "FAILED": "bold red", "STALE": "yellow", "running": "cyan", "never": "dim"}

#: A mark such as `ok`, and what it says; printed as two columns, so that long text hangs under itself.
Line = tuple["Text", "Text"]
MARK_WIDTH = 6

#: Characters of a run id that are shown and accepted; the whole id stands in JSON and in the detail.
SHORT_ID = 8


def short_id(run_id: str) -> str:
    """The beginning of a run id, enough to name it: `dw audit 7f3a91c2`."""
    return run_id[:SHORT_ID]


# -- the end of a run ----------------------------------------------------------------------------------


def summary(result: Mapping[str, Any]) -> list[Line]:
    """The permanent lines of one finished run, from its result."""
    from rich.text import Text

    name = escape(str(result.get("pipeline_name", "")))
    if result.get("status") == "success":
        lines = [(Text("ok", style=STYLES["ok"]), Text(f"{name}  {what_was_loaded(result)}"))]
    else:
        lines = [(Text("FAIL", style=STYLES["FAILED"]), Text(f"{name}  {_what_went_wrong(result)}"))]
    lines += [_schema_line(name, str(change)) for change in result.get("schema_changes") or []]
    changed = result.get("values_changed") or {}
    return lines + [remark(name, f"{why} ({number:,})") for why, number in changed.items()]


def plain_line(mark: Text, body: Text) -> str:
    """A line for a log: not folded, the mark in its column."""
    indented = body.plain.replace("\n", "\n" + " " * MARK_WIDTH)
    return f"{mark.plain:<{MARK_WIDTH}}{indented}" if mark.plain else indented


def remark(name: str, text: str) -> Line:
    """A line that says what is no failure and should still be known."""
    from rich.text import Text

    return Text("!", style="yellow"), Text(f"{name}: {escape(text)}", style="yellow")


def _schema_line(name: str, change: str) -> Line:
    """A table that was made is what a first run is for; every other change of a table is to be known."""
    from rich.text import Text

    if change.startswith("new table"):
        return Text("+", style=STYLES["ok"]), Text(f"{name}: {escape(change)}")
    return remark(name, change)


def what_was_loaded(result: Mapping[str, Any]) -> str:
    """What a good run did, in numbers and seconds."""
    seconds = f"   {duration(result.get('duration_seconds') or 0)}   {_stage_seconds(result)}".rstrip()
    if not result.get("rows_read") and not result.get("rows_loaded"):
        reached = result.get("cursor_to")
        return "up to date" + (f" (newest {escape(str(reached))})" if reached else "") + seconds
    numbers = [
        (result.get("rows_read"), "read"),
        (result.get("rows_inserted"), "new"),
        (result.get("rows_updated"), "changed"),
        (result.get("rows_deleted"), "replaced" if result.get("write") == "replace" else "deleted"),
        (result.get("rows_rejected"), "rejected"),
    ]
    said = [f"{number:,} {word}" for number, word in numbers if number]
    return "  ".join(said if len(said) > 1 else [*said, "nothing new"]) + seconds


def _stage_seconds(result: Mapping[str, Any]) -> str:
    taken = result.get("seconds") or {}
    return " | ".join(f"{stage} {taken[stage]:.1f}" for stage in STAGES if taken.get(stage) is not None)


def _what_went_wrong(result: Mapping[str, Any]) -> str:
    read = result.get("rows_read")
    after = f"stopped after {count(read, 'row')}; " if read else ""
    lines = [f"{after}warehouse table unchanged", *failure_lines(result)]
    if result.get("run_id"):
        lines.append(f"details: dw audit {short_id(str(result['run_id']))}")
    return "\n".join(lines)


def failure_lines(result: Mapping[str, Any]) -> list[str]:
    """Why a run failed, and what mends it."""
    error = result.get("error") or {}
    lines = [escape(str(error[part])) for part in ("message", "why") if error.get(part)]
    return [*lines, *([f"fix: {escape(str(error['hint']))}"] if error.get("hint") else [])]


def totals(results: Sequence[Mapping[str, Any]]) -> str:
    """`1 of 2 loaded.`"""
    loaded = sum(result.get("status") == "success" for result in results)
    return f"{loaded} of {len(results)} loaded."


# -- the audit log -------------------------------------------------------------------------------------

AUDIT_COLUMNS = (
    Column("RUN"),
    Column("WHEN", optional=1),
    Column("PIPELINE"),
    Column("STATE"),
    Column("READ", right=True, optional=2),
    Column("NEW", right=True, optional=4),
    Column("CHANGED", right=True, optional=5),
    Column("LOADED", right=True, optional=3),
    Column("SECONDS", right=True, optional=3),
    Column("BY", optional=6),
)


def audit_row(run: Mapping[str, Any]) -> list[Any]:
    """One row of the audit table."""
    state = state_of_run(run)
    return [
        Said(run["run_id"], short_id(str(run["run_id"]))),
        run.get("started_at"),
        run["pipeline_name"],
        Said(state, state_word(state)),
        run.get("rows_read"),
        run.get("rows_inserted"),
        run.get("rows_updated"),
        run.get("rows_loaded"),
        _seconds_taken(run),
        run.get("os_user"),
    ]


FAILURE_COLUMNS = (
    Column("PIPELINE"),
    Column("RUN", optional=2),
    Column("FAILED", optional=1),
    Column("WHY", folds=True),
)


def failure_row(failure: Mapping[str, Any]) -> list[Any]:
    """One row of the list of failures that `dw retry` runs again."""
    run = failure.get("run_id")
    return [
        failure["pipeline_name"],
        Said(run, short_id(str(run))) if run else None,
        failure.get("failed_at"),
        failure["error"],
    ]


def _seconds_taken(run: Mapping[str, Any]) -> str | None:
    started, finished = run.get("started_at"), run.get("finished_at")
    return f"{(finished - started).total_seconds():.1f}" if started and finished else None


def state_of_run(run: Mapping[str, Any]) -> State:
    """The word for the status of one run."""
    words: dict[str, State] = {"success": "ok", "failure": "FAILED", "running": "running"}
    return words.get(str(run.get("status")), "FAILED")


def state_word(state: State) -> Text:
    """A state as a word, coloured as well."""
    from rich.text import Text

    return Text(state, style=STYLES[state])


def audit_detail(run: Mapping[str, Any], screen: int) -> RenderableType:
    """Everything the audit log knows about one run."""
    cursor = [str(run[end]) for end in ("cursor_from", "cursor_to") if run.get(end) is not None]
    rows = {
        word: run.get(f"rows_{word}")
        for word in ("read", "inserted", "updated", "deleted", "rejected", "loaded")
    }
    by = [str(run[key]) for key in ("os_user", "host") if run.get(key)]
    pairs: list[tuple[str, Any]] = [
        ("run", run["run_id"]),
        ("pipeline", run["pipeline_name"]),
        ("source", f"{run.get('source_name')} ({run.get('protocol')})"),
        ("table", run.get("target_table")),
        ("write", run.get("write")),
        ("state", state_word(state_of_run(run))),
        ("started", local_time(run.get("started_at"), seconds=True)),
        ("finished", local_time(run["finished_at"], seconds=True) if run.get("finished_at") else None),
        ("seconds", _stage_seconds(run)),
        ("rows", "  ".join(f"{word} {number:,}" for word, number in rows.items() if number is not None)),
        ("parquet", _parquet(run)),
        ("files", _files(run)),
        ("cursor", " to ".join(cursor)),
        ("schema", "\n".join(str(change) for change in run.get("schema_changes") or [])),
        ("ddl", "\n".join(str(change["ddl"]) for change in run.get("ddl") or [])),
        ("rejects", _rejects(run.get("rejects") or {})),
        ("values", "\n".join(f"{k}: {v:,}" for k, v in (run.get("values_changed") or {}).items())),
        ("snapshot", run.get("snapshot")),
        ("by", " on ".join(by)),
        ("command", run.get("command")),
        ("dw", run.get("dw_version")),
        ("config", _config(run)),
        ("error", run.get("error_message")),
        ("code", run.get("error_code")),
        ("fix", run.get("error_hint")),
        ("log", run.get("log")),
    ]
    return fields(pairs, screen)


def _parquet(run: Mapping[str, Any]) -> str | None:
    files, staged = run.get("parquet_files"), run.get("bytes_staged")
    if files is None:
        return None
    return count(files, "file") + (f", {size(staged)}" if staged else "")


def _files(run: Mapping[str, Any]) -> str:
    """The files of the run's snapshot, a line each."""
    lines = [
        f"{file['name']}  {count(file['rows'], 'row')}, {size(file['bytes'])}"
        + ("" if file["there"] else "  (no longer there)")
        for file in run.get("files") or []
    ]
    return "\n".join([*lines, *([str(run["files_remark"])] if run.get("files_remark") else [])])


def _rejects(rejects: Mapping[str, Any]) -> str:
    """How many rows were set aside, why, and where the first of them stood."""
    if not rejects.get("rows"):
        return ""
    reasons = [f"{entry['rows']:,}: {entry['reason']}" for entry in rejects["reasons"]]
    first = [f"row {entry['row_number']:,} of {entry['source_file']}" for entry in rejects["first"][:1]]
    return "\n".join([f"{count(rejects['rows'], 'row')} in etl_rejects", *reasons, f"the first: {first[0]}"])


def _config(run: Mapping[str, Any]) -> str | None:
    """The hash of the configuration, and whether the run before had the same."""
    now, before = run.get("config_hash"), run.get("config_before") or {}
    if not now or not before.get("config_hash"):
        return now
    same = before["config_hash"] == now
    return (
        f"{now}, " + ("as" if same else "not as") + f" in the run before, {short_id(str(before['run_id']))}"
    )


# -- how every pipeline stands -------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """One pipeline now: the last run of it, the last good one, and what to do about it."""

    pipeline: str
    state: State
    last_ok: datetime | None = None
    last_run: datetime | None = None
    every: str | None = None
    #: rows that the last good run loaded
    rows: int | None = None
    #: rows per run, oldest first; None is a run that failed
    trend: tuple[int | None, ...] = ()
    fix: str = ""
    error: str = ""
    #: when it is to run next, or was to run; None where it has no `every:`
    due: datetime | None = None
    #: runs that failed since the last good one; each makes the wait until the next try longer
    failures: int = 0
    #: rows that the table has; None where the warehouse cannot say it
    table_rows: int | None = None
    #: whether they were counted; else it is about as many
    table_rows_exact: bool = False


def standing(
    pipeline: str,
    every: str | None,
    runs: Sequence[Mapping[str, Any]],
    now: datetime,
    table: Rows | None = None,
) -> Standing:
    """How a pipeline stands, from its last runs (newest first, the columns of the audit log) and its table.

    A failure counts above staleness; a pipeline that runs by a clock and never did is stale work too,
    but is called `never`.
    """
    ended = [run for run in runs if run.get("status") != "running"]
    good = next((run for run in ended if run["status"] == "success"), None)
    past = past_of(runs)
    state = _state(runs, bool(past.began and every and late_from(every, past.began) < now))
    newest = runs[0] if runs else {}
    return Standing(
        pipeline,
        state,
        good["finished_at"] if good else None,
        (newest.get("finished_at") or newest.get("started_at")) if runs else None,
        every,
        good.get("rows_loaded") if good else None,
        tuple(
            (run.get("rows_loaded") or 0) if run["status"] == "success" else None
            for run in reversed(ended[:RUNS_SHOWN])
        ),
        _fix(pipeline, state, newest),
        str(newest.get("error_message") or "") if state == "FAILED" else "",
        (next_run(every, past) or now) if every else None,
        past.failures,
        table.number if table else None,
        bool(table and table.exact),
    )


def _fix(pipeline: str, state: State, newest: Mapping[str, Any]) -> str:
    """The command that mends a state, or tells more; "" where nothing is wrong."""
    if state in ("STALE", "never"):
        return f"dw run {pipeline}"
    if state != "FAILED":
        return ""
    if str(newest.get("error_code") or "").startswith("DW-CONN"):
        return f"dw test-connection {pipeline.partition('.')[0]}"
    return f"dw audit {short_id(str(newest['run_id']))}" if newest.get("run_id") else f"dw run {pipeline}"


def _state(runs: Sequence[Mapping[str, Any]], late: bool) -> State:
    if not runs:
        return "never"
    if runs[0].get("status") == "running":
        return "running"
    if runs[0].get("status") != "success":
        return "FAILED"
    return "STALE" if late else "ok"


def needs_attention(standing: Standing) -> bool:
    """Whether `dw status --check` should fail: it failed, is late, or never ran though it has a clock."""
    return standing.state in ("FAILED", "STALE") or (standing.state == "never" and bool(standing.every))


STATUS_COLUMNS = (
    Column("PIPELINE"),
    Column("STATE"),
    Column("LAST OK", optional=1),
    Column("EVERY", optional=5),
    Column("ROWS", right=True, optional=3),
    Column("LOADED", right=True, optional=6),
    Column("LAST RUNS", optional=4),
    Column("FIX", optional=2),
)


def status_row(standing: Standing, now: datetime, ascii_only: bool = False) -> list[Any]:
    """One row of the status table."""
    fix = standing.fix if needs_attention(standing) else ""
    return [
        standing.pipeline,
        Said(standing.state, state_word(standing.state)),
        Said(standing.last_ok, ago(standing.last_ok, now) if standing.last_ok else "-"),
        standing.every,
        rows_of_table(standing),
        standing.rows,
        sparkline(standing.trend, ascii_only),
        fix,
    ]


def rows_of_table(standing: Standing) -> Said:
    """The rows that a table has; `~` before what PostgreSQL estimates."""
    number = standing.table_rows
    return Said(number, "-" if number is None else f"{'' if standing.table_rows_exact else '~'}{number:,}")


SCHEDULE_COLUMNS = (
    Column("PIPELINE"),
    Column("EVERY", optional=1),
    Column("STATE", optional=3),
    Column("LAST OK", optional=2),
    Column("DUE"),
)


def schedule_row(standing: Standing, now: datetime) -> list[Any]:
    """One row of `dw schedule show`: when a pipeline is due next."""
    due, failed = standing.due, standing.failures
    after = after_failures(failed)
    return [
        standing.pipeline,
        standing.every,
        Said(standing.state, state_word(standing.state)),
        Said(standing.last_ok, ago(standing.last_ok, now) if standing.last_ok else "-"),
        Said(due, ("now" if due <= now else local_time(due)) + after if due else "by hand"),
    ]


def after_failures(failures: int) -> str:
    """`, after 2 failures`; "" after none. No more than RUNS_SHOWN are counted."""
    if not failures:
        return ""
    return f", after {count(failures, 'failure') if failures < RUNS_SHOWN else 'many failures'}"


def next_step(standings: Sequence[Standing]) -> str:
    """The one thing to do next: a failure first, then what is late, then what never ran; "" for none."""
    for state in ("FAILED", "STALE", "never"):
        for one in standings:
            if one.state == state and one.fix:
                return one.fix
    return ""


def rate(rows: float, seconds: float) -> str:
    """`212k rows/s`; "" before there is anything to measure."""
    return f"{compact(rows / seconds)} rows/s" if seconds > 0 and rows else ""


def after_runs(results: Sequence[Mapping[str, Any]]) -> str:
    """The command to type after runs: about the first failure; "" when all went well."""
    for result in results:
        if result.get("status") != "success":
            error = result.get("error") or {}
            source, _, _ = str(result.get("pipeline_name", "")).partition(".")
            if str(error.get("code") or "").startswith("DW-CONN"):
                return f"dw test-connection {source}"
            hint = str(error.get("hint") or "")
            return hint if hint.startswith("dw ") else f"dw audit {short_id(str(result.get('run_id', '')))}"
    return ""

"""Find what the source no longer has, with a brake for a source that has suddenly lost its rows."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from dwcli.connectors import Connector
from dwcli.errors import SourceShrank
from dwcli.pipeline.record import Run
from dwcli.staging.deleting import GONE, find_gone
from dwcli.staging.frames import item_frame
from dwcli.staging.history import is_kept
from dwcli.staging.loader import empty_stage, end_rows, load_frame, open_load
from dwcli.staging.plan import Load, LoadPlan
from dwcli.staging.writer import OPEN, staged_file, write_frame

#: A source that has lost fewer rows than this may have lost more than half of them.
FEW_ROWS = 100


def note_deletions(run: Run, connector: Connector, load: Load) -> None:
    """Compare the source's keys with the table's, and keep what is gone in the lake and in the load.

    Call it after the rows have been read, so that a key that came with them is not taken for a new one.
    Raises SourceShrank.
    """
    job = run.job
    if job.deletes == "ignore" or load.target is None or load.target.created or run.options.limit:
        return
    if job.write == "scd2" and not is_kept(load.target):
        return  # the versions begin with this run
    load.ingested_at = load.ingested_at or datetime.now(UTC)
    began = time.monotonic()
    plan = LoadPlan(write="merge", key=job.key, overrides=job.columns)
    with open_load(load.connection, job.schema, job.table, plan) as keys:
        keys.target, keys.stage_name = load.target, "dw_keys"
        for item in connector.keys(job.query, job.key):
            frame, types = item_frame(item)
            if frame.width:
                load_frame(keys, frame.select(job.key), types, "", datetime.now(UTC))
        end_rows(keys)
        if keys.sink is None:  # nothing came, not even the columns of an empty table
            keys.sink = empty_stage(keys)
        gone, alive = find_gone(load, keys.sink, job.deletes)
    lost = int(gone[GONE].sum())
    refuse_shrinking(run, keys.rows, alive, lost)
    run.seconds["extract"] += time.monotonic() - began
    if gone.is_empty() or run.marker is None:
        return
    path = run.marker.with_name(f"{run.marker.name.removesuffix(OPEN)}_gone.parquet")
    run.gone = staged_file(write_frame(gone, {}, path), gone.height)
    load.gone = (job.deletes, gone)


def refuse_shrinking(run: Run, rows: int, before: int, lost: int) -> None:
    """Stop where a source has nothing any more, or less than half. Raises SourceShrank.

    rows: that the source has; before: that the table had; lost: of those, how many would go.
    """
    if run.options.allow_shrink or lost <= 0 or (rows and (lost < FEW_ROWS or lost * 2 <= before)):
        return
    raise SourceShrank(
        f"the source has {rows:,} rows where the warehouse has {before:,}: {lost:,} would go",
        why="it may have been emptied, restored or restricted by mistake",
        hint=f"if that is right: dw run {run.job.pipeline} --allow-shrink",
    )

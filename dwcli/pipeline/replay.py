"""Rebuild a table from the lake, without its source.

Every snapshot in the warehouse has a receipt, and every receipt names a manifest. Loaded again in the same
order, from the last one that began anew, they give the same table: what a run read is never asked for twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from dwcli.errors import LakeError, NameUnknown, UsageError
from dwcli.events import BatchLoaded, Emit, RunStarted, StageStarted
from dwcli.pipeline.pending import load_snapshot, plan_of
from dwcli.pipeline.record import Job, Run, RunOptions, audit
from dwcli.pipeline.runner import Sessions, attempt, commit
from dwcli.staging.dw_schema import read_table
from dwcli.staging.plan import Counts
from dwcli.staging.state import Receipt, receipts, write_receipt
from dwcli.staging.writer import Manifest, read_manifest


@dataclass(frozen=True)
class Stretch:
    """Which of a pipeline's snapshots: one run's, those loaded from `start` on and before `end`, or all."""

    run_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None

    @property
    def is_whole(self) -> bool:
        return self == Stretch()


@dataclass(frozen=True)
class Kept:
    """A snapshot that is in the warehouse, and in the lake."""

    receipt: Receipt
    path: Path
    manifest: Manifest

    @property
    def begins_anew(self) -> bool:
        """Whether nothing of what the table held before is in it afterwards."""
        return self.manifest.write == "replace" or self.manifest.fresh


def replay(
    job: Job, warehouse: Sessions, stretch: Stretch, emit: Emit
) -> tuple[dict[str, Any], BaseException | None]:
    """Load snapshots of the lake again, in one transaction. Returns what `attempt` does.

    The whole pipeline: its table is emptied and built anew. A stretch: rows of those runs are put back as
    they were read, and newer rows stay. Cursor and receipts stay as they are.
    """
    return attempt(job, warehouse, RunOptions(), emit, partial(_load_again, stretch))


def chosen_snapshots(connection: psycopg.Connection, job: Job, stretch: Stretch) -> list[Kept]:
    """The snapshots to load, oldest first.

    Raises NameUnknown when there are none, LakeError where the lake no longer holds one that is needed,
    UsageError for a stretch that a later full load has superseded.
    """
    every = receipts(connection, job.pipeline)
    if not every:
        raise NameUnknown(f"nothing of {job.pipeline} has been loaded yet", hint=f"dw run {job.pipeline}")
    if stretch.is_whole:
        return _since_anew(job, every)
    chosen = [_kept(job, receipt) for receipt in every if _is_in(receipt, stretch)]
    if not chosen:
        raise NameUnknown(
            f"no run of {job.pipeline} was loaded in that time", hint=f"dw audit --pipeline {job.pipeline}"
        )
    if any(kept.manifest.write == "scd2" for kept in chosen):
        raise UsageError(
            "a history is replayed as a whole",
            why="versions that were read before others would begin after them",
            hint=f"dw replay {job.pipeline}",
        )
    _refuse_superseded(job, every, chosen)
    return chosen


def _is_in(receipt: Receipt, stretch: Stretch) -> bool:
    if stretch.run_id is not None:
        return receipt.run_id == stretch.run_id
    return (stretch.start is None or receipt.loaded_at >= stretch.start) and (
        stretch.end is None or receipt.loaded_at < stretch.end
    )


def _since_anew(job: Job, every: Sequence[Receipt]) -> list[Kept]:
    """The last snapshot that began anew and all after it; from the first run on where none did."""
    found: list[Kept] = []
    for receipt in reversed(every):
        if receipt.snapshot:  # a run that read no rows has none
            found.insert(0, _kept(job, receipt))
            if found[0].begins_anew:
                break
    if not found:
        raise NameUnknown(f"the runs of {job.pipeline} have brought no rows", hint=f"dw run {job.pipeline}")
    return found


def _kept(job: Job, receipt: Receipt) -> Kept:
    path = job.lake / receipt.snapshot
    if not path.is_file():
        raise LakeError(
            f"the lake no longer holds what run {receipt.run_id[:8]} read",
            why=f"{receipt.snapshot} is not there; keep: in dw.yaml removes loaded snapshots",
            hint=f"load it from the source: dw run {job.pipeline} --full-refresh; or replay what is there:"
            f" dw replay {job.pipeline} --from TIME",
        )
    return Kept(receipt, path, read_manifest(path))


def _refuse_superseded(job: Job, every: Sequence[Receipt], chosen: Sequence[Kept]) -> None:
    runs = {kept.receipt.run_id for kept in chosen}
    last = max(number for number, receipt in enumerate(every) if receipt.run_id in runs)
    for receipt in every[last + 1 :]:
        path = job.lake / receipt.snapshot
        if receipt.snapshot and path.is_file() and Kept(receipt, path, read_manifest(path)).begins_anew:
            raise UsageError(
                f"run {receipt.run_id[:8]} has loaded everything anew since",
                why="rows of earlier runs would come back beside the newer ones",
                hint=f"dw replay {job.pipeline}",
            )


def _load_again(stretch: Stretch, run: Run, session: psycopg.Connection) -> None:
    job = run.job
    run.protocol = job.protocol
    snapshots = chosen_snapshots(session, job, stretch)
    rows = sum(kept.manifest.rows for kept in snapshots)
    run.emit(RunStarted(job.pipeline, run.id, f"{job.schema}.{job.table}", rows, None))
    run.emit(StageStarted(job.pipeline, "load"))
    began = time.monotonic()
    for number, kept in enumerate(snapshots):
        anew = stretch.is_whole and number == 0
        if not stretch.is_whole:
            _forget_rows(run, session, kept.manifest)
        run.counts = _added(run.counts, _load(session, job, kept, stretch, anew))
        run.files.extend(kept.manifest.files)
        run.rows_read += kept.manifest.rows
        run.emit(BatchLoaded(job.pipeline, kept.manifest.rows))
    run.seconds["load"] += time.monotonic() - began
    # a receipt without a snapshot: it tells whether a COMMIT whose answer was lost has happened
    target = f"{job.schema}.{job.table}"
    write_receipt(session, run.id, job.pipeline, target, "", 0, 0, run.counts.rows, None, None)
    audit(run, session, "success")
    commit(run, session)


def _load(session: psycopg.Connection, job: Job, kept: Kept, stretch: Stretch, anew: bool) -> Counts:
    plan = plan_of(kept.manifest, job)
    write = "replace" if anew and plan.write == "append" else plan.write
    # of a stretch, rows are older than what the table has from the runs behind it
    states = plan.states and stretch.is_whole
    return load_snapshot(
        session, kept.path, kept.manifest, replace(plan, write=write, fresh=anew, states=states)
    )


def _forget_rows(run: Run, session: psycopg.Connection, manifest: Manifest) -> None:
    """Take out the rows that an append is about to put back."""
    table = read_table(session, manifest.schema, manifest.table)
    if manifest.write != "append" or table is None:
        return
    removed = session.execute(
        sql.SQL("delete from {} where _run_id = {}").format(table.identifier, sql.Literal(manifest.run_id))
    ).rowcount
    run.counts = _added(run.counts, Counts(0, 0, 0, removed))


def _added(one: Counts, other: Counts) -> Counts:
    return Counts(
        one.rows + other.rows,
        one.inserted + other.inserted,
        one.updated + other.updated,
        one.deleted + other.deleted,
        one.rejected + other.rejected,
    )

"""Reading, staging and loading, each ahead of the next: the slowest sets the time, not their sum."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl

from dwcli import crashpoints
from dwcli.ahead import ahead
from dwcli.contract import IngestedItem, IngestionResult
from dwcli.errors import CountsDiffer
from dwcli.events import BatchLoaded, BatchRead, BatchStaged, StageStarted
from dwcli.pipeline.record import Run, heed, tell_changes
from dwcli.staging.audit import merged_counts
from dwcli.staging.frames import Types, item_frame
from dwcli.staging.loader import complete_rows, load_frame
from dwcli.staging.plan import Load
from dwcli.staging.writer import file_stem, open_snapshot, partition, staged_file, write_frame


@dataclass(frozen=True)
class _Staged:
    frame: pl.DataFrame
    types: Types
    path: Path
    at: datetime


def pump(run: Run, result: IngestionResult, load: Load, hang_up: Callable[[], None]) -> None:
    """Read, stage and load, batch by batch, in three threads that wait for each other.

    hang_up: closes the source, when the run ends while a read may still be waiting for it.
    """
    job = run.job
    today = partition(job.lake, run.protocol, job.lake_name)
    stem = file_stem(job.lake_name)
    run.marker = open_snapshot(today, stem)
    run.emit(StageStarted(job.pipeline, "extract"))
    items = ahead(_limited(run, _timed(run, result)))
    with (
        _old_objects_left_alone(),
        contextlib.closing(
            ahead(_stage(run, items, today, stem), stop=hang_up, heed=partial(heed, run))
        ) as staged,
    ):
        for batch in staged:
            began = time.monotonic()
            rows = load_frame(load, batch.frame, batch.types, batch.path.name, batch.at)
            run.seconds["load"] += time.monotonic() - began
            run.emit(BatchLoaded(job.pipeline, rows))
            tell_changes(run, load)
    complete_rows(load)
    load.replaces.extend(run.replaces)
    run.values_changed = merged_counts([run.values_changed, load.values_changed])
    if not run.rows_read == sum(file.rows for file in run.files) == load.rows + load.rejected:
        raise CountsDiffer(
            f"{run.rows_read:,} rows read, {sum(f.rows for f in run.files):,} staged, {load.rows:,} loaded,"
            f" {load.rejected:,} set aside"
        )


@contextlib.contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Python's search for unreachable cycles passes over what is there by now: the modules, mostly.

    Rows are many small objects, which start that search again and again: a third of the time that a
    message or a document takes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _timed(run: Run, result: IngestionResult) -> Iterator[IngestedItem]:
    """The items, with the time it takes to read them."""
    iterator = iter(result.items)
    try:
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                run.seconds["extract"] += time.monotonic() - began
            crashpoints.reached("fetch")
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _limited(run: Run, items: Iterator[IngestedItem]) -> Iterator[IngestedItem]:
    """The items up to `--limit` rows."""
    left = run.options.limit
    for item in items:
        if left is None:
            yield item
            continue
        frame, types = item_frame(item)
        yield replace(item, payload=frame.head(left), types=types, position=None)
        left -= frame.height
        if left <= 0:
            return


def _stage(run: Run, items: Iterator[IngestedItem], folder: Path, stem: str) -> Iterator[_Staged]:
    """Write each item to the lake; hand on its frame."""
    for number, item in enumerate(items):
        began = time.monotonic()
        if item.position is not None:
            run.position = item.position
        if item.replaces:
            run.replaces.append(item.replaces)
        run.values_changed = merged_counts([run.values_changed, item.metadata.get("changed", {})])
        staged = _stage_item(run, item, folder / f"{stem}_{number:05d}.parquet")
        run.seconds["stage"] += time.monotonic() - began
        if staged is not None:
            yield staged


def _stage_item(run: Run, item: IngestedItem, path: Path) -> _Staged | None:
    if item.payload is None:
        return None
    frame, types = item_frame(item)
    run.rows_read += frame.height
    run.emit(BatchRead(run.job.pipeline, frame.height, int(frame.estimated_size())))
    if not frame.width:
        return None
    written = write_frame(frame, types, path)
    file = staged_file(written, frame.height)
    run.files.append(file)
    run.bytes_staged += file.bytes
    run.emit(BatchStaged(run.job.pipeline, frame.height, file.bytes, str(written)))
    return _Staged(frame, types, written, datetime.now(UTC))

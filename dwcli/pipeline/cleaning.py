"""What a project no longer needs: leavings of killed runs, snapshots set aside, old ones that are loaded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from dwcli.errors import PipelineLocked
from dwcli.pipeline.lock import take_lock
from dwcli.pipeline.record import Job
from dwcli.staging.state import receipts
from dwcli.staging.writer import OPEN, REFUSED, read_manifest, snapshots, source_folder, unfinished


@dataclass(frozen=True)
class Leftover:
    """Files of one pipeline that may go, in the order in which they must."""

    pipeline: str
    what: str
    paths: Sequence[Path]
    bytes: int


def leftovers(connection: psycopg.Connection, job: Job, age: float | None) -> Iterator[Leftover]:
    """What of a pipeline's files may go. The session holds the pipeline from then on.

    age: seconds after which a snapshot that is in the warehouse may go; None: never. Of a pipeline that
    runs just now nothing may.
    """
    try:
        take_lock(connection, job.pipeline, "clean")
        connection.commit()
    except PipelineLocked:
        connection.rollback()
        return
    folder = source_folder(job.lake, job.protocol, job.lake_name)
    killed = [path for marker in folder.glob(f"*/*{OPEN}") for path in [*unfinished(marker), marker]]
    yield from _told(job, "left by a run that was killed", killed)
    yield from _told(job, "damaged, set aside by a run", sorted(folder.glob(f"*/*{REFUSED}")))
    if age is not None:
        yield from _told(job, "in the warehouse, and old", _old(connection, job, folder, time.time() - age))


def _old(connection: psycopg.Connection, job: Job, folder: Path, before: float) -> list[Path]:
    loaded = {receipt.snapshot for receipt in receipts(connection, job.pipeline)}
    connection.rollback()
    return [
        part
        for path in snapshots(folder)
        if str(path.relative_to(job.lake)) in loaded and path.stat().st_mtime < before
        for part in [*(path.parent / staged.name for staged in read_manifest(path).every_file), path]
    ]


def _told(job: Job, what: str, paths: Sequence[Path]) -> Iterator[Leftover]:
    there = [path for path in paths if path.exists()]
    if there:
        yield Leftover(job.pipeline, what, there, sum(path.stat().st_size for path in there))


def remove(found: Sequence[Leftover]) -> None:
    """Remove files, and folders that are empty then."""
    for path in [path for leftover in found for path in leftover.paths]:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in it
            path.parent.rmdir()

"""Snapshots that an earlier run left complete but not loaded: it died between lake and warehouse."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import psycopg
from psycopg.types.json import Jsonb

from dwcli.errors import DwError
from dwcli.events import Notice
from dwcli.log import get_logger
from dwcli.pipeline.record import Job, Run
from dwcli.staging.loader import complete_rows, finish_load, leave_out_nulls, load_file, open_load
from dwcli.staging.plan import Counts, LoadPlan
from dwcli.staging.state import State, loaded_snapshots, write_receipt, write_state
from dwcli.staging.writer import Manifest, check_file, read_manifest, set_aside, snapshots

log = get_logger(__name__)


def plan_of(manifest: Manifest, job: Job) -> LoadPlan:
    """How a snapshot met the table when it was read, with the pipeline's overrides of today."""
    return LoadPlan(
        write=manifest.write,  # type: ignore[arg-type]  # as it was validated when it was written
        key=manifest.key,
        cursor=manifest.cursor,
        boundary=manifest.cursor_from if manifest.write == "append" else None,
        run_id=manifest.run_id,
        overrides=job.columns,
        contract=job.contract,
        max_rejects=job.max_rejects,
        fresh=manifest.fresh,
        states=manifest.states,
    )


def load_snapshot(connection: psycopg.Connection, path: Path, manifest: Manifest, plan: LoadPlan) -> Counts:
    """Load a snapshot's files, in the caller's transaction. path: of its manifest.

    Raises LakeError where a file is missing or a byte of one has changed.
    """
    read_at = datetime.fromisoformat(manifest.ingested_at) if manifest.ingested_at else None
    with open_load(connection, manifest.schema, manifest.table, plan) as load:
        load.ingested_at = read_at
        for staged in manifest.files:
            file = check_file(path.parent, staged)
            load_file(load, file, file.name)
        complete_rows(load)
        leave_out_nulls(load, manifest.nulls_left_out)
        load.replaces.extend(manifest.replaces)
        if manifest.gone is not None:
            load.gone = (manifest.deletes, pl.read_parquet(check_file(path.parent, manifest.gone)))
        return finish_load(load)


def load_pending(run: Run, data: psycopg.Connection, folder: Path) -> None:
    """Load complete snapshots without a receipt, oldest first, each in a transaction of its own."""
    job = run.job
    loaded = loaded_snapshots(data, job.pipeline)
    data.commit()
    for path in list(snapshots(folder)):
        name = str(path.relative_to(job.lake))
        if name in loaded:
            continue
        try:
            manifest = read_manifest(path)
            if (manifest.warehouse_id, manifest.pipeline) != (run.warehouse_id, job.pipeline):
                continue
            _load_snapshot(run, data, path, manifest, name)
        except DwError as error:
            data.rollback()
            # The state has not moved past it, so reading the source again brings its rows.
            run.emit(Notice(job.pipeline, f"an unfinished snapshot cannot be loaded, reading again: {error}"))
            log.warning("set aside %s: %s", path, error)
            set_aside(path)


def _load_snapshot(run: Run, data: psycopg.Connection, path: Path, manifest: Manifest, name: str) -> None:
    job = run.job
    counts = load_snapshot(data, path, manifest, plan_of(manifest, job))
    state = State(manifest.cursor, manifest.cursor_to, manifest.cursor_type, manifest.position)
    write_state(data, job.pipeline, manifest.run_id, state)
    write_receipt(
        data,
        manifest.run_id,
        job.pipeline,
        f"{manifest.schema}.{manifest.table}",
        name,
        len(manifest.files),
        manifest.rows,
        counts.rows,
        manifest.cursor_from,
        manifest.cursor_to,
    )
    data.execute(
        """
        update etl_audit_log set status = 'success', finished_at = now(), error_code = null,
            error_message = 'died before its COMMIT; loaded from the lake by the next run',
            rows_loaded = %s, rows_read = %s, rows_inserted = %s, rows_updated = %s, rows_deleted = %s,
            rows_rejected = %s, parquet_files = %s, bytes_staged = %s, cursor_from = %s, cursor_to = %s,
            values_changed = %s, snapshot = %s
        where run_id = %s and status <> 'success'
        """,
        (
            counts.rows,
            manifest.rows,
            counts.inserted,
            counts.updated,
            counts.deleted,
            counts.rejected,
            len(manifest.files),
            sum(staged.bytes for staged in manifest.files),
            manifest.cursor_from,
            manifest.cursor_to,
            Jsonb(dict(manifest.values_changed)),
            name,
            manifest.run_id,
        ),
    )
    data.commit()
    run.healed.append(manifest.run_id)
    run.emit(Notice(job.pipeline, f"{counts.rows:,} rows of an interrupted run loaded from the lake"))

"""Snapshots that an earlier run left complete but not loaded: it died between lake and warehouse."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from dwcli.errors import DwError
from dwcli.events import Notice
from dwcli.log import get_logger
from dwcli.pipeline.record import Run
from dwcli.staging.dw_schema import raw
from dwcli.staging.loader import finish_load, load_file, open_load
from dwcli.staging.plan import LoadPlan
from dwcli.staging.state import State, loaded_snapshots, write_receipt, write_state
from dwcli.staging.writer import Manifest, check_file, read_manifest, snapshots

log = get_logger(__name__)


def load_pending(run: Run, data: Connection, folder: Path) -> None:
    """Load complete snapshots without a receipt, oldest first, each in a transaction of its own."""
    job = run.job
    loaded = loaded_snapshots(raw(data), job.pipeline)
    data.commit()
    for path in list(snapshots(folder)):
        name = str(path.relative_to(job.lake))
        if name in loaded:
            continue
        manifest = read_manifest(path)
        if (manifest.warehouse_id, manifest.pipeline) != (run.warehouse_id, job.pipeline):
            continue
        try:
            _load_snapshot(run, data, path, manifest, name)
        except DwError as error:
            data.rollback()
            # The state has not moved past it, so reading the source again brings its rows.
            run.emit(Notice(job.pipeline, f"an unfinished snapshot cannot be loaded, reading again: {error}"))
            log.warning("set aside %s: %s", path, error)
            path.rename(path.with_suffix(".refused"))


def _load_snapshot(run: Run, data: Connection, path: Path, manifest: Manifest, name: str) -> None:
    job = run.job
    files = [check_file(path.parent, staged) for staged in manifest.files]
    plan = LoadPlan(
        write=manifest.write,  # type: ignore[arg-type]  # as it was validated when it was written
        key=manifest.key,
        cursor=manifest.cursor,
        boundary=manifest.cursor_from if manifest.write == "append" else None,
        run_id=manifest.run_id,
        overrides=job.columns,
        contract=job.contract,
        fresh=manifest.fresh,
    )
    with open_load(raw(data), manifest.schema, manifest.table, plan) as load:
        for file in files:
            load_file(load, file, file.name)
        load.replaces.extend(manifest.replaces)
        counts = finish_load(load)
    state = State(manifest.cursor, manifest.cursor_to, manifest.cursor_type, manifest.position)
    write_state(raw(data), job.pipeline, manifest.run_id, state)
    write_receipt(
        raw(data),
        manifest.run_id,
        job.pipeline,
        f"{manifest.schema}.{manifest.table}",
        name,
        len(files),
        manifest.rows,
        counts.rows,
        manifest.cursor_from,
        manifest.cursor_to,
    )
    raw(data).execute(
        "update etl_audit_log set status = 'success', rows_loaded = %s, rows_read = %s, parquet_files = %s,"
        " rows_inserted = %s, rows_updated = %s, finished_at = now(), error_code = null, error_message ="
        " 'died before its COMMIT; loaded from the lake by the next run' where run_id = %s",
        (counts.rows, manifest.rows, len(files), counts.inserted, counts.updated, manifest.run_id),
    )
    data.commit()
    run.healed.append(manifest.run_id)
    run.emit(Notice(job.pipeline, f"{counts.rows:,} rows of an interrupted run loaded from the lake"))

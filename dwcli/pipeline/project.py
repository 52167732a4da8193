"""Running a project's pipelines: one after the other, or several at a time."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from dwcli.connectors import Connector, create_connector, resolve_name
from dwcli.contract import BATCH_BYTES
from dwcli.errors import RunStopped
from dwcli.events import Emit
from dwcli.pipeline.record import Idle, Job, RunOptions
from dwcli.pipeline.runner import attempt, close_idle
from dwcli.project import Pipeline, Project, connection_values, seconds, size_bytes
from dwcli.warehouse.engine import make_engine

#: Parts of the memory a run may take that one batch may be: some five are under way at once, in up to
#: three forms, beside what Python and its libraries take.
BATCHES_IN_MEMORY = 64


def run_project(
    project: Project,
    pipelines: Sequence[Pipeline],
    warehouse_url: str,
    options: RunOptions,
    emit: Emit,
) -> list[dict[str, Any]]:
    """Run these pipelines. Returns one result each, in their order; a failure is a result, not an error.

    With `fail_fast`, pipelines after the first failure are not begun and have no result. Raises
    RunStopped, with the results so far as `results`, when a signal ended it.
    """
    engine = make_engine(warehouse_url)
    idle: dict[str, Idle] = {}
    jobs = [
        replace(job_of(project, pipeline, max(1, options.jobs), warehouse_url), idle=idle)
        for pipeline in pipelines
    ]

    results: list[dict[str, Any]] = []
    try:
        if options.jobs > 1 and len(jobs) > 1:
            with ThreadPoolExecutor(options.jobs, "dw-job") as pool:
                futures = [pool.submit(attempt, job, engine, options, emit) for job in jobs]
                results += [future.result()[0] for future in futures]
            return results
        for job in jobs:
            result, error = attempt(job, engine, options, emit)
            results.append(result)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise _stopped(error, results) from error
            if error is not None and options.fail_fast:
                break
        return results
    finally:
        close_idle(idle)
        engine.dispose()


def passwords(url: str) -> tuple[str, ...]:
    """The password in the warehouse's URL, as it stands there and as it is meant."""
    written = urlsplit(url).password
    return (written, unquote(written)) if written else ()


def _stopped(error: BaseException, results: list[dict[str, Any]]) -> RunStopped:
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
    text = "stopped; the run under way was rolled back, what was loaded before it stays"
    if results and results[-1]["status"] == "success":  # the signal came after its COMMIT
        text = "stopped; what was loaded stays"
    return RunStopped(text, results, code)


def job_of(project: Project, pipeline: Pipeline, jobs: int = 1, warehouse_url: str = "") -> Job:
    """A pipeline of a project as something that can run. The URL's password is kept out of what is told."""
    config = pipeline.config
    batch_bytes = min(
        BATCH_BYTES, max(64 * 1024, size_bytes(project.config.memory) // BATCHES_IN_MEMORY // jobs)
    )

    def connector() -> Connector:
        values = connection_values(project, pipeline.source)
        return create_connector({"batch_bytes": batch_bytes} | values)

    return Job(
        pipeline=pipeline.full_name,
        source=pipeline.source.name,
        lake_name=pipeline.full_name,
        connector=connector,
        query=config.query or pipeline.name,
        schema=pipeline.schema,
        table=pipeline.target,
        lake=project.lake,
        protocol=resolve_name(pipeline.source.protocol),
        write=config.write,
        key=tuple(config.key),
        cursor=config.cursor,
        cursor_nulls=config.cursor_nulls,
        lookback=config.lookback,
        columns=config.columns,
        deletes=config.deletes,
        contract=config.contract,
        max_rejects=config.max_rejects,
        keep=seconds(project.config.keep) if project.config.keep else None,
        config_hash=config_hash(pipeline),
        command=shlex.join(["dw", *sys.argv[1:]]),
        logs=project.private / "logs",
        hidden=passwords(warehouse_url),
    )


def config_hash(pipeline: Pipeline) -> str:
    """Tells whether two runs had the same configuration; secrets are in it as references only."""
    said = {
        "protocol": pipeline.source.protocol,
        "connection": dict(pipeline.source.connection),
        "pipeline": pipeline.config.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]

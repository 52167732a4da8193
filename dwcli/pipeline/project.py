"""Running a project's pipelines: one after the other, or several at a time."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from dwcli.connectors import Connector, create_connector, resolve_name
from dwcli.contract import BATCH_BYTES
from dwcli.errors import RunStopped
from dwcli.events import Emit
from dwcli.pipeline.record import Ended, Idle, Job, RunOptions
from dwcli.pipeline.runner import Sessions, attempt, close, close_idle
from dwcli.project import Pipeline, Project, connection_values, seconds, size_bytes
from dwcli.warehouse.engine import connect

#: Parts of the memory a run may take that one batch may be: some five are under way at once, in up to
#: three forms, beside what Python and its libraries take.
BATCHES_IN_MEMORY = 80
#: How often the thread that waits for the others looks for a signal.
HEAR_SECONDS = 0.2


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
    sessions = partial(connect, warehouse_url)
    idle: dict[str, Idle] = {}
    jobs = [
        replace(job_of(project, pipeline, max(1, options.jobs), warehouse_url), idle=idle)
        for pipeline in pipelines
    ]

    results: list[dict[str, Any]] = []
    try:
        if options.jobs > 1 and len(jobs) > 1:
            return _at_once(jobs, sessions, options, emit)
        for job in jobs:
            result, error = attempt(job, sessions, options, emit)
            results.append(result)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise _stopped(error, results) from error
            if error is not None and options.fail_fast:
                break
        return results
    finally:
        close_idle(idle)


def _at_once(
    jobs: Sequence[Job], sessions: Sessions, options: RunOptions, emit: Emit
) -> list[dict[str, Any]]:
    """Run several at a time. A signal hangs up on the sources of those under way; no more are begun."""
    ended = Ended()
    with ThreadPoolExecutor(options.jobs, "dw-job") as pool:
        futures = [pool.submit(attempt, replace(job, ended=ended), sessions, options, emit) for job in jobs]
        try:
            while wait(futures, HEAR_SECONDS).not_done:  # without end, polars' handler would keep SIGINT
                pass
        except (KeyboardInterrupt, SystemExit) as error:
            ended.event.set()
            for connector in [*ended.reading]:
                close(connector)
            begun = [future for future in futures if not future.cancel()]
            raise _stopped(error, [future.result()[0] for future in begun]) from error
        return [future.result()[0] for future in futures]


def passwords(url: str) -> tuple[str, ...]:
    """The password in the warehouse's URL, as it stands there and as it is meant."""
    written = urlsplit(url).password
    return (written, unquote(written)) if written else ()


def _stopped(error: BaseException, results: list[dict[str, Any]]) -> RunStopped:
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
    text = "stopped; what was under way was rolled back, what was loaded before stays"
    if results and all(result["status"] == "success" for result in results):  # it came after the last COMMIT
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

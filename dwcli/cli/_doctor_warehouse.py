"""What `dw doctor` looks at in the warehouse and the lake: settings, clock, versions, runs, snapshots."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcli.errors import ConnectionFailed, DwError
from dwcli.render.doctor import Finding
from dwcli.render.words import ago, count, duration, size

if TYPE_CHECKING:
    import psycopg

    from dwcli.project import Pipeline, Project
    from dwcli.warehouse.embedded import Server

    Settle = Callable[[Finding], Finding]
    #: the columns of the audit log, newest first, by pipeline
    Known = Mapping[str, Sequence[Mapping[str, Any]]]

#: How long connecting, and each question, may take.
PATIENCE_SECONDS = 5
#: A clock further off than this mixes up cursors, freshness and certificates.
CLOCK_SECONDS = 5.0
MB = 1024**2
#: At or below these a bulk load waits for checkpoints and reads its own pages back. They are PostgreSQL's
#: defaults: a server with them was never set up for loading.
SHARED_BUFFERS, MAX_WAL_SIZE = 128 * MB, 1024 * MB


@dataclass(frozen=True)
class Place:
    """Where the warehouse is. `server`: it is the project's own, and runs."""

    url: str
    server: Server | None = None


def find_warehouse(project: Project, settle: Settle) -> tuple[Place | None, list[Finding]]:
    """The warehouse's place, or None with the reason. settle: mends what is to be mended."""
    from dwcli.references import environment
    from dwcli.warehouse import embedded, resolve_url

    known = environment(project.root / ".env")
    url = resolve_url(None, known, project.config.warehouse, project.root)
    if url != "embedded":
        return Place(url), []
    home = project.private / "postgres"
    server = embedded.running(home)
    if server is not None:
        return Place(embedded.url(server), server), []
    embedded.find_binaries()  # raises where there is no PostgreSQL that could be started

    def start() -> str:
        started = embedded.start(home)
        return f"PostgreSQL {started.version} started on 127.0.0.1:{started.port}"

    finding = settle(
        Finding("warehouse", "warn", "it does not run; a command that needs it starts it", "dw up", start)
    )
    server = embedded.running(home)
    return (Place(embedded.url(server), server) if server else None), [finding]


def open_warehouse(place: Place) -> psycopg.Connection:
    """A session of a few seconds' patience. Raises ConnectionFailed."""
    from dwcli.connectors._waiting import waited
    from dwcli.warehouse import connect, mask_url

    try:
        connection = waited(
            lambda: connect(place.url, autocommit=True, application_name="dw doctor", patience=2),
            PATIENCE_SECONDS,
            undo=lambda late: late.close(),
            ends=False,
        )
    except TimeoutError:
        raise ConnectionFailed(
            f"no answer within {PATIENCE_SECONDS} s from {mask_url(place.url)}",
            hint="dw test-connection dw",
        ) from None
    connection.execute(f"set statement_timeout = '{PATIENCE_SECONDS}s'")
    return connection


# -- the server ----------------------------------------------------------------------------------------


def server(connection: psycopg.Connection, place: Place, schema: str, seconds: float) -> Iterator[Finding]:
    """Its version, what the user may do, settings, clock. seconds: that connecting took."""
    from dwcli.warehouse import mask_url

    version = connection.info.server_version
    number = f"PostgreSQL {version // 10000}.{version % 10000}"
    if version < 13_00_00:
        yield Finding("warehouse", "fail", f"{number}: too old", "PostgreSQL 13 or newer is needed")
    else:
        where = f"127.0.0.1:{place.server.port}" if place.server else mask_url(place.url)
        yield Finding("warehouse", "ok", f"{number} answers in {duration(seconds)}: {where}")
    yield from _rights(connection, schema)
    yield from settings(connection, own=place.server is not None)
    yield clock(_clock_ahead(connection))
    if place.server is not None:
        yield from _binaries(place.server, (version // 10000, version % 10000))


def _rights(connection: psycopg.Connection, schema: str) -> Iterator[Finding]:
    row = connection.execute(
        """
        select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool,
               coalesce((select has_schema_privilege(oid, 'create') from pg_namespace where nspname = %s),
                        has_database_privilege(current_database(), 'create')),
               current_user, current_database()
        """,
        (schema,),
    ).fetchone()
    assert row is not None
    read_only, may_create, user, database = row
    if read_only:
        yield Finding(
            "warehouse",
            "fail",
            "it is a standby or read-only: nothing can be loaded",
            "name the primary server in dw.yaml",
        )
    if not may_create:
        yield Finding(
            "warehouse",
            "fail",
            f"'{user}' cannot create tables in schema '{schema}' of '{database}'",
            f'let its owner run: GRANT CREATE, USAGE ON SCHEMA "{schema}" TO "{user}"',
        )


def settings(connection: psycopg.Connection, own: bool) -> Iterator[Finding]:
    """Settings that endanger data or make loading slow. own: sizes were chosen by dw for this machine."""
    row = connection.execute(
        """
        select current_setting('fsync')::bool, current_setting('full_page_writes')::bool,
               pg_size_bytes(current_setting('shared_buffers')),
               pg_size_bytes(current_setting('max_wal_size'))
        """
    ).fetchone()
    assert row is not None
    fsync, full_pages, buffers, log_size = row
    found = [
        Finding(
            "warehouse",
            "warn",
            f"{name} is off: a crash of the machine can destroy the warehouse",
            f"let a superuser run: ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();",
        )
        for name, on in (("fsync", fsync), ("full_page_writes", full_pages))
        if not on
    ]
    if not own and buffers <= SHARED_BUFFERS:
        found.append(
            Finding(
                "warehouse",
                "warn",
                f"shared_buffers is {size(buffers)}: loading into large tables is slow",
                "let a superuser set a quarter of the server's memory, and restart it: "
                "ALTER SYSTEM SET shared_buffers = '2GB';",
            )
        )
    if not own and log_size <= MAX_WAL_SIZE:
        found.append(
            Finding(
                "warehouse",
                "warn",
                f"max_wal_size is {size(log_size)}: loading stops for checkpoints",
                "let a superuser run: ALTER SYSTEM SET max_wal_size = '4GB'; SELECT pg_reload_conf();",
            )
        )
    yield from found or [Finding("warehouse", "ok", "settings fit loading, and are safe")]


def _clock_ahead(connection: psycopg.Connection) -> float:
    """Seconds that this machine's clock is ahead of the warehouse's; half the way there is taken off."""
    before = time.time()
    row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    return (before + time.time()) / 2 - float(row[0])


def clock(ahead: float) -> Finding:
    """Whether two clocks agree."""
    if abs(ahead) <= CLOCK_SECONDS:
        return Finding("clock", "ok", f"agrees with the warehouse's ({duration(abs(ahead))} apart)")
    way = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock",
        "warn",
        f"this machine's clock is {duration(abs(ahead))} {way} the warehouse's",
        "let both follow a time server: timedatectl set-ntp true",
    )


def _binaries(server: Server, version: tuple[int, int]) -> Iterator[Finding]:
    """An own server that runs from other programs than this dw would start."""
    from dwcli.warehouse import embedded

    binaries = embedded.find_binaries(version[0])
    if not (server.bin / "postgres").exists():
        said = f"the running server's programs are gone: {server.bin}"
    elif binaries.version != version:
        said = f"the running server is {_dotted(version)}, installed is {_dotted(binaries.version)}"
    else:
        return
    yield Finding("warehouse", "warn", said, "when no run is under way: dw down, then dw up")


def _dotted(version: tuple[int, int]) -> str:
    return f"PostgreSQL {version[0]}.{version[1]}"


# -- dw's own tables -----------------------------------------------------------------------------------


def versions(connection: psycopg.Connection) -> Iterator[Finding]:
    """A warehouse that a newer dw has used."""
    from dwcli.pipeline.record import dw_version
    from dwcli.staging.audit import last_runs
    from dwcli.staging.state import SCHEMA_VERSION

    if _has(connection, "etl_warehouse"):
        row = connection.execute("select max(version) from etl_warehouse").fetchone()
        if row and row[0] and row[0] > SCHEMA_VERSION:
            yield Finding(
                "warehouse",
                "fail",
                f"it belongs to a newer dw (form {row[0]}, this dw knows {SCHEMA_VERSION})",
                "pip install --upgrade dwcli",
            )
            return
    newest = next((str(run.get("dw_version") or "") for run in last_runs(connection, 1)), "")
    here = dw_version()
    if numbers(newest) > numbers(here) > ():
        yield Finding(
            "warehouse",
            "warn",
            f"its last run was made by dw {newest}; this is dw {here}",
            "pip install --upgrade dwcli",
        )


def numbers(version: str) -> tuple[int, ...]:
    """`0.10.2.dev3` as (0, 10, 2): to tell what is newer. () where it is no version."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _has(connection: psycopg.Connection, table: str) -> bool:
    return connection.execute("select to_regclass(%s)", (table,)).fetchone() != (None,)


def runs(
    connection: psycopg.Connection, place: Place, pipelines: list[Pipeline], now: datetime
) -> Iterator[Finding]:
    """Runs that died without a word, runs under way, pipelines that are late."""
    from dwcli.pipeline.lock import holder
    from dwcli.staging.audit import latest_runs, running_runs

    entries = running_runs(connection)
    dead = [entry for entry in entries if holder(connection, entry["pipeline_name"]) is None]
    for entry in dead:
        name = str(entry["pipeline_name"])
        by = f" by process {entry['pid']} on {entry['host']}" if entry.get("pid") else ""
        yield Finding(
            "runs",
            "warn",
            f"{name}: a run begun {ago(entry['started_at'], now)}{by} is dead and still says running",
            "dw doctor --fix marks it; so does its next run",
            lambda name=name: mark_dead(place, name),  # type: ignore[misc]
        )
    if len(entries) > len(dead):
        names = ", ".join(entry["pipeline_name"] for entry in entries if entry not in dead)
        yield Finding("runs", "ok", f"under way: {names}")
    yield from late(latest_runs(connection), pipelines, now)


def mark_dead(place: Place, pipeline: str) -> str:
    """Close the audit rows of a pipeline whose run died. Raises PipelineLocked when it runs after all."""
    from dwcli.pipeline.lock import take_lock
    from dwcli.staging.audit import mark_interrupted

    with closing(open_warehouse(place)) as session:  # the lock ends with the session
        take_lock(session, pipeline, "doctor")
        return f"{count(mark_interrupted(session, pipeline), 'run')} of {pipeline} marked as interrupted"


def late(known: Known, pipelines: list[Pipeline], now: datetime) -> Iterator[Finding]:
    """Pipelines whose last good run is longer ago than `every` says. known: the last runs of each."""
    from dwcli.render.runs import standing

    behind = []
    clocked = [pipeline for pipeline in pipelines if pipeline.config.every]
    for pipeline in clocked:
        name = pipeline.full_name
        stands = standing(name, pipeline.config.every, known.get(name, []), now)
        if stands.last_ok is None and stands.state != "running":
            behind.append(f"{name} (no good run known)")
        elif stands.last_ok is not None and stands.state == "STALE":
            behind.append(f"{name} ({ago(stands.last_ok, now)}, every {pipeline.config.every})")
    if behind:
        shown = ", ".join(behind[:3]) + (f" and {len(behind) - 3} more" if len(behind) > 3 else "")
        yield Finding("runs", "warn", f"late: {shown}", "dw run --due")
    elif clocked:
        yield Finding("runs", "ok", f"no pipeline is late ({len(clocked)} have every:)")


# -- the lake ------------------------------------------------------------------------------------------


def lake(
    connection: psycopg.Connection | None, project: Project, pipelines: list[Pipeline]
) -> Iterator[Finding]:
    """Snapshots that wait to be loaded, that are damaged, or that a killed run has begun.

    connection: None where the warehouse cannot be asked; then nothing can be said of what waits.
    """
    from dwcli.connectors import resolve_name
    from dwcli.pipeline.lock import holder
    from dwcli.staging.writer import MANIFEST, OPEN, REFUSED, source_folder, unfinished

    pending: list[str] = []
    damaged, begun = 0, 0
    for pipeline in pipelines:
        try:
            protocol = resolve_name(pipeline.source.protocol)
        except DwError:
            continue
        folder = source_folder(project.lake, protocol, pipeline.full_name)
        if not folder.is_dir() or (
            connection is not None and holder(connection, pipeline.full_name) is not None
        ):
            continue
        damaged += sum(1 for _ in folder.glob(f"*/*{MANIFEST}{REFUSED}"))
        begun += sum(1 for marker in folder.glob(f"*/*{OPEN}") if unfinished(marker))
        if connection is not None:
            found = _waiting(connection, project.lake, folder, pipeline.full_name)
            pending += [pipeline.full_name] if found else []
    if pending:
        yield Finding(
            "lake",
            "warn",
            f"read and not yet loaded: {', '.join(pending)}",
            f"dw run {' '.join(pending)}",
        )
    if damaged:
        yield Finding("lake", "warn", f"{count(damaged, 'damaged snapshot')} set aside", "dw clean")
    if begun:
        yield Finding("lake", "warn", f"{count(begun, 'snapshot')} of killed runs, unfinished", "dw clean")
    if not (pending or damaged or begun):
        what = "nothing waits, nothing is damaged" if connection is not None else "nothing is set aside"
        yield Finding("lake", "ok", what)


def _waiting(connection: psycopg.Connection, root: Path, folder: Path, name: str) -> bool:
    """Whether a complete snapshot for this warehouse has no receipt."""
    from dwcli.staging.state import receipts
    from dwcli.staging.writer import read_manifest, snapshots

    if not _has(connection, "etl_warehouse"):
        return False
    row = connection.execute("select id::text from etl_warehouse").fetchone()
    loaded = {receipt.snapshot for receipt in receipts(connection, name)}
    for path in snapshots(folder):
        if str(path.relative_to(root)) in loaded:
            continue
        try:
            manifest = read_manifest(path)
        except DwError:
            return True  # its next run sets it aside, and reads the source again
        if (manifest.warehouse_id, manifest.pipeline) == (row[0] if row else None, name):
            return True
    return False


def now_utc() -> datetime:
    return datetime.now(UTC)

"""What can happen around a run that does not kill it: each is one function that gives what was wrong.

After each of them the run says in one error what happened, the table is as it was (or loaded, where the
run says so), the audit log says the same, and a plain run makes everything whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from dwcli.warehouse import embedded
from tests.faults import forker
from tests.faults.disks import BALLAST, fill, make_room, small_disk
from tests.faults.forker import Ended, Forker
from tests.faults.meanwhile import looking
from tests.faults.place import (
    Place,
    Row,
    change,
    make_place,
    source_rows,
    table_rows,
    wrong_after_kill,
    wrong_when_whole,
)
from tests.faults.scenarios import RUN, whole

#: How long something that must come is waited for before the machine, not dw, is to blame.
PATIENCE_SECONDS = 120.0
#: How long a reader may wait for a run that changes the table: dw's lock_timeout, and a second.
READER_SECONDS = 6.0
#: Two numbers that no pipeline's lock has.
GATE = "4711, 1"
#: The exit code after each signal.
STOPPED = {"INT": 130, "TERM": 143, "HUP": 129}
#: Where a run is sent a signal: connecting, reading, copying, merging, committing, after it.
SIGNAL_POINTS = (
    "connect", "fetch", "copy", "copied", "merge", "finished", "commit", "committed", "acknowledged",
)  # fmt: skip
#: What the server is at while something happens, and the write disposition that brings it there.
PHASES = {"copy": "replace", "merge": "merge", "commit": "append"}
#: The folder of a server that a test has to itself.
Home = Path


# -- what a run said ----------------------------------------------------------------------------------


def result_of(ended: Ended) -> dict[str, Any]:
    """The JSON result in what a run wrote to stdout and stderr."""
    start = ended.output.find('{\n  "run_id"')
    if start < 0:
        return {}
    found: dict[str, Any] = json.JSONDecoder().raw_decode(ended.output[start:])[0]
    return found


def wrong_after_failure(
    place: Place,
    before: list[Row] | None,
    session: psycopg.Connection,
    ended: Ended,
    codes: tuple[str, ...],
    audited: bool = True,
) -> list[str]:
    """What is not as it must be after a run that was hindered, and ended by itself.

    codes: of the errors that are right here. audited: whether the warehouse could take an audit row.
    """
    wrong = wrong_after_kill(place, before, session)
    result = result_of(ended)
    if "Traceback" in ended.output or not result:
        return [*wrong, f"it said: {ended.output[-1500:]}"]
    table = table_rows(place, session)
    if result["status"] == "success":
        return (
            wrong if table == source_rows(place) else [*wrong, "a success, and the table is not the source"]
        )
    error = result["error"]
    if (
        error["code"] not in codes
        or not error["message"]
        or (not error["hint"] and error["code"] != "DW-STOPPED")
    ):
        wrong.append(f"the error is {error}")
    if table != before and table != [] and error["code"] != "DW-COMMIT":
        wrong.append("a failure, and the table is not as before")
    row = None
    if session.execute("select to_regclass('etl_audit_log')").fetchone() != (None,):
        row = session.execute(
            "select status, error_code from etl_audit_log where run_id = %s", (result["run_id"],)
        ).fetchone()
    allowed = [("failure", error["code"])] + ([] if audited else [None, ("running", None)])
    if error["code"] != "DW-COMMIT" and row not in allowed:
        wrong.append(f"the audit log says {row}, the run {error['code']}")
    return wrong


# -- signals ------------------------------------------------------------------------------------------


def signalled(run: Forker, place: Place, name: str, point: str, again: bool) -> tuple[bool, list[str]]:
    """Send a signal to a run at a named place. Returns whether it came there, and what was wrong."""
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again)
        ended = forker.run(run, place.root, *RUN, crash=f"{point}:1:{name}")
        reached = ended.code == STOPPED[name]
        if ended.code not in (0, STOPPED[name]):
            wrong.append(f"{name} at {point}: exit {ended.code}")
        if point in ("committed", "acknowledged") and result_of(ended).get("status") != "success":
            wrong.append(f"{name} at {point}, after the COMMIT: {ended.output[-500:]}")
        wrong += wrong_after_failure(place, before, session, ended, ("DW-STOPPED",))
        return reached, wrong + whole(run, place, session, "after")


def signalled_while_waiting(
    run: Forker, place: Place, name: str, phase: str, goes_on: str = ""
) -> tuple[bool, list[str]]:
    """Send a signal to a run while the server is at a statement: copy, merge or commit.

    goes_on: the server is done with the statement all the same. `answered`: while psycopg, which has asked it
    to cancel the statement, still waits for what comes of that; `unheard`: when the run has hung up, and asks
    in another session what came of its COMMIT.
    """
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again=True)
        with _gate(place, phase, deaf=bool(goes_on)) as open_gate:
            output = place.root / "output.txt"
            pid = forker.start(run, place.root, RUN, "", output)
            _await_at_gate(session)
            (now,) = session.execute("select clock_timestamp()::text").fetchone() or ("",)
            os.kill(pid, getattr(signal, f"SIG{name}"))
            if goes_on:
                _await(session, "select is_called from gate_cancelled")
            if goes_on == "unheard":  # it asks again and again, for as long as its first session lives
                _await(session, _asked(now))
            if goes_on:
                open_gate()
            ended = forker.ended(run, {pid: output})[pid]
        if ended.code != STOPPED[name]:
            wrong.append(f"{name} during {phase}: exit {ended.code}")
        if goes_on and result_of(ended).get("status") != "success":
            wrong.append(f"the COMMIT has happened, and the run says: {ended.output[-1500:]}")
        wrong += wrong_after_failure(place, before, session, ended, ("DW-STOPPED",))
        return True, wrong + whole(run, place, session, "after")


def _asked(since: str) -> str:
    """Whether a run has a new session just now."""
    return (
        "select exists (select from pg_stat_activity where datname = current_database()"
        f" and application_name = 'dw' and backend_start > '{since}')"
    )


def _begin(
    run: Forker, place: Place, session: psycopg.Connection, again: bool, new_column: bool = True
) -> tuple[list[Row] | None, list[str]]:
    """With `again`, a run that ends well and a change at the source. Returns the table, and what is wrong."""
    wrong = []
    if again:
        wrong = whole(run, place, session, "before")
        change(place, new_column)
    return table_rows(place, session), wrong


@contextlib.contextmanager
def _gate(place: Place, phase: str, deaf: bool = False) -> Iterator[Callable[[], None]]:
    """Make the server wait in a run's COPY, merge or COMMIT until the function that this yields is called.

    deaf: it goes on waiting when it is asked to cancel, and does not look whether its client is still there.
    """
    table = "etl_load" if phase == "commit" else "orders"
    kind = (
        "create constraint trigger gate after insert on etl_load deferrable initially deferred"
        if phase == "commit"
        else "create trigger gate before insert on orders"
    )
    wait = f"perform pg_advisory_xact_lock_shared({GATE});"
    if deaf:
        wait = (
            f"loop begin {wait} return new;"
            " exception when query_canceled then perform nextval('gate_cancelled'); end; end loop;"
        )
    with contextlib.closing(psycopg.connect(place.url, autocommit=True)) as keeper:
        keeper.execute("create sequence if not exists gate_cancelled")
        keeper.execute(
            "create or replace function gate() returns trigger language plpgsql set lock_timeout = 0"
            f" set client_connection_check_interval = {0 if deaf else 1000}"
            f" as $$ begin {wait} return new; end $$".encode()
        )
        keeper.execute(f"{kind} for each row execute function gate()".encode())
        keeper.execute(f"select pg_advisory_lock({GATE})".encode())
        yield keeper.close
    with psycopg.connect(place.url, autocommit=True) as session:
        session.execute(f"drop trigger gate on {table}".encode())


def _await_at_gate(session: psycopg.Connection) -> None:
    _await(
        session,
        "select exists (select from pg_locks where locktype = 'advisory' and objsubid = 2 and not granted"
        " and database = (select oid from pg_database where datname = current_database()))",
    )


def _await(session: psycopg.Connection, question: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while session.execute(question.encode()).fetchone() != (True,):
        assert time.monotonic() < give_up, f"never true: {question}"
        time.sleep(0.01)


# -- a server that is restarted -----------------------------------------------------------------------


def own_server(project: Path) -> Home:
    """Start a server that may be restarted; it goes with the folder.

    Its port is far from those where others look for a free one: theirs could be this one while it is down.
    """
    home = project / ".dw" / "postgres"
    embedded.start(home, embedded.free_port(20_000 + secrets.randbelow(10_000)))
    return home


@contextlib.contextmanager
def own_place(home: Home, root: Path, write: str, seed: int, tablespace: str = "") -> Iterator[Place]:
    """A project in a database of its own on that server."""
    server = embedded.start(home)
    name, admin_url = f"own_{secrets.token_hex(6)}", embedded.url(server, database="postgres")
    where = f' tablespace "{tablespace}"' if tablespace else ""
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f'create database "{name}"{where}'.encode())
    yield make_place(root / "shop", embedded.url(server, database=name), write, seed)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f'drop database "{name}" with (force)'.encode())


def restarted(run: Forker, place: Place, home: Home, point: str, again: bool) -> tuple[bool, list[str]]:
    """Restart the server (immediate: as if it crashed) while a run is held at a named place.

    point: such as `fetch`, or `fetch:2` for the second time.
    """
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again)
    output = place.root / "output.txt"
    pid = forker.start(run, place.root, RUN, f"{point}:STOP" if ":" in point else f"{point}:1:STOP", output)
    reached = _stands_still(pid)
    if reached:
        restart(home)
        os.kill(pid, signal.SIGCONT)
    ended = forker.ended(run, {pid: output})[pid]
    return reached, wrong + _healed(run, place, before, ended)


def restarted_while_waiting(run: Forker, place: Place, home: Home, phase: str) -> tuple[bool, list[str]]:
    """Restart the server while it is at a statement of a run: copy, merge or commit."""
    with _gate_after_first(run, place, phase) as (before, wrong):
        output = place.root / "output.txt"
        pid = forker.start(run, place.root, RUN, "", output)
        with psycopg.connect(place.url, autocommit=True) as session:
            _await_at_gate(session)
        restart(home)
        ended = forker.ended(run, {pid: output})[pid]
    return True, wrong + _healed(run, place, before, ended)


@contextlib.contextmanager
def _gate_after_first(run: Forker, place: Place, phase: str) -> Iterator[tuple[list[Row] | None, list[str]]]:
    with psycopg.connect(place.url, autocommit=True) as session:
        begun = _begin(run, place, session, again=True)
    with _gate(place, phase):
        yield begun


def _healed(run: Forker, place: Place, before: list[Row] | None, ended: Ended) -> list[str]:
    wrong = [] if ended.code in (0, 1) else [f"exit {ended.code}"]
    codes = ("DW-WAREHOUSE", "DW-CONN-LOST", "DW-CONN-PORT", "DW-COMMIT")
    with psycopg.connect(place.url, autocommit=True) as session:
        # its own session for the audit log has gone with the server
        wrong += wrong_after_failure(place, before, session, ended, codes, audited=False)
        return wrong + whole(run, place, session, "after")


def _stands_still(pid: int) -> bool:
    """Wait until a process has stopped (SIGSTOP) or ended; whether it has stopped."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "TtZX":
            return state in "Tt"
        time.sleep(0.005)
    raise AssertionError("the run neither stopped nor ended")


def restart(home: Home) -> None:
    """End a server at once, without a word to its sessions, and start it again."""
    stop_at_once(home)
    embedded.start(home)


def stop_at_once(home: Home) -> None:
    server = embedded.running(home)
    if server is None:
        return
    os.kill(server.pid, signal.SIGQUIT)  # pg_ctl stop -m immediate
    while embedded.running(home) is not None:
        time.sleep(0.005)


# -- disks that are full ------------------------------------------------------------------------------


def lake_full(
    run: Forker, place: Place, disk: Path, take: Callable[[Path], None], again: bool
) -> tuple[bool, list[str]]:
    """Run while the lake's disk is full, then with room. disk: where the lake, or all of the project, is."""
    lake = place.root / "lake"
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again)
        there = _files(lake)
        take(disk)
        ended = forker.run(run, place.root, *RUN)
        hit = ended.code != 0
        if hit:
            wrong += [f"exit {ended.code}: {ended.output[-1500:]}"] if ended.code != 1 else []
            wrong += wrong_after_failure(place, before, session, ended, ("DW-LAKE",))
            left = _files(lake) - there
            wrong += [f"left in the lake: {sorted(left)}"] if left else []
        make_room(disk)
        return hit, wrong + whole(run, place, session, "after")


def _files(lake: Path) -> set[str]:
    files = (path for path in lake.rglob("*") if path.is_file() and BALLAST not in path.parts)
    return {str(path) for path in files}


def warehouse_full(run: Forker, place: Place, disk: Path, leave: int, again: bool) -> tuple[bool, list[str]]:
    """Run while the disk of the warehouse's tables is full, then with room."""
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again)
        there = _files(place.root / "lake")
        fill(disk, leave)
        ended = forker.run(run, place.root, *RUN)
        hit = ended.code != 0
        if hit:
            wrong += [f"exit {ended.code}: {ended.output[-1500:]}"] if ended.code != 1 else []
            if "no room" not in ended.output:
                wrong.append(f"no word of the disk: {ended.output[-1500:]}")
            # an audit row needs room too; the next run closes what has none
            wrong += _after_full_disk(place, before, session, ended)
            left = _files(place.root / "lake") - there
            wrong += [f"left in the lake: {sorted(left)}"] if left else []
        make_room(disk)
        return hit, wrong + whole(run, place, session, "after")


@contextlib.contextmanager
def small_tablespace(home: Home, label: str) -> Iterator[tuple[Path, str]]:
    """A tablespace on a disk of its own, big enough for a new database and a little more: disk and name."""
    server = embedded.start(home)
    disk, name = home.parent.parent / f"disk-{label}", f"small_{label}"
    url = embedded.url(server, database="postgres")
    with small_disk(disk, "size=32m", server.data), psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"create tablespace {name} location '{disk}'".encode())
        yield disk, name
        admin.execute(f"drop tablespace {name}".encode())


def _after_full_disk(
    place: Place, before: list[Row] | None, session: psycopg.Connection, ended: Ended
) -> list[str]:
    if not result_of(ended) and "Traceback" not in ended.output:
        return wrong_after_kill(place, before, session)  # it could not even begin
    return wrong_after_failure(place, before, session, ended, ("DW-WAREHOUSE",), audited=False)


def temporary_full(place: Place, source: str, disk: Path, leave: int) -> tuple[bool, list[str]]:
    """Run while the folder for temporary files is full, then with room. source: the file sources/shop.yaml.

    The run is a new interpreter: where its temporary files go is asked once in a process.
    """
    config = place.root / "sources" / "shop.yaml"
    config.write_text(source, "utf-8")
    with psycopg.connect(place.url, autocommit=True) as session:
        fill(disk, leave)
        ended = _run_with_temporary(place, disk)
        hit = ended.code != 0
        wrong = [] if ended.code in (0, 1) else [f"exit {ended.code}"]
        if hit:
            wrong += wrong_after_failure(place, None, session, ended, ("DW-ERROR",))
            if "there is no room for" not in ended.output or "TMPDIR=" not in ended.output:
                wrong.append(f"no word of the disk: {ended.output[-1500:]}")
        left = sorted(path.name for path in disk.iterdir() if path.name != BALLAST)
        wrong += [f"left in the folder for temporary files: {left}"] if left else []
        make_room(disk)
        again = _run_with_temporary(place, disk)
        if again.code != 0:
            return hit, [*wrong, f"exit {again.code}: {again.output[-1500:]}"]
        return hit, wrong + wrong_when_whole(place, session)


def _run_with_temporary(place: Place, folder: Path) -> Ended:
    names = dict.fromkeys(("TMPDIR", "SQLITE_TMPDIR"), str(folder))
    done = subprocess.run(
        [*forker.DW, *RUN],
        cwd=place.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(forker.ROOT)} | names,
    )
    return Ended(done.returncode, done.stdout)


def log_full(run: Forker, place: Place, home: Home, disk: Path, point: str) -> tuple[bool, list[str]]:
    """Let the disk of the whole server fill up in a run: it cannot write its log ahead, and goes down."""
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again=True)
        output = place.root / "output.txt"
        pid = forker.start(run, place.root, RUN, f"{point}:1:STOP", output)
        reached = _stands_still(pid)
        fill(disk)
        with contextlib.suppress(psycopg.OperationalError):
            for _ in range(20):  # until no segment is left that was made before
                session.execute("select pg_switch_wal()")
                session.execute("create temporary table t (); drop table t")
    os.kill(pid, signal.SIGCONT)
    ended = forker.ended(run, {pid: output})[pid]
    hit = ended.code != 0
    make_room(disk)
    stop_at_once(home)
    embedded.start(home)
    return reached and hit, wrong + _healed(run, place, before, ended)


# -- readers and others who hold the table --------------------------------------------------------------


@contextlib.contextmanager
def held(url: str, lock: str) -> Iterator[psycopg.Connection]:
    """Hold the table in a transaction, by a lock or, as a reader does, by having looked at it."""
    with psycopg.connect(url) as session:
        session.execute(f"lock table orders in {lock} mode".encode())
        yield session
        session.rollback()


@contextlib.contextmanager
def reading(url: str) -> Iterator[list[float]]:
    """Read the table again and again meanwhile; how long each look took."""
    taken: list[float] = []

    def look(session: psycopg.Connection) -> None:
        began = time.monotonic()
        session.execute("select count(*) from orders")
        taken.append(time.monotonic() - began)

    with looking(url, look, pause=0.02):
        yield taken


def held_by_another(run: Forker, place: Place, lock: str, new_column: bool, waits: bool) -> list[str]:
    """Run while another session holds the table to the end, and others read it.

    waits: whether that lock is in this run's way; then the run fails, after a while, and says why.
    """
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again=True, new_column=new_column)
        with held(place.url, lock), reading(place.url) if lock != "access exclusive" else _nothing() as taken:
            ended = forker.run(run, place.root, *RUN)
        if taken and max(taken) > READER_SECONDS:
            wrong.append(f"a reader waited for {max(taken):.1f} s")
        if waits and ended.code != 1:
            wrong.append(f"exit {ended.code}: {ended.output[-1500:]}")
        if not waits and ended.code != 0:
            wrong.append(f"exit {ended.code}: {ended.output[-1500:]}")
        wrong += wrong_after_failure(place, before, session, ended, ("DW-SCHEMA", "DW-WAREHOUSE"))
        return wrong + whole(run, place, session, "after")


@contextlib.contextmanager
def _nothing() -> Iterator[list[float]]:
    yield []


def let_go_in_time(run: Forker, place: Place, lock: str) -> list[str]:
    """Run while another session holds the table, and lets go when the run waits for it: it goes on."""
    with psycopg.connect(place.url, autocommit=True) as session:
        _, wrong = _begin(run, place, session, again=True)
        output = place.root / "output.txt"
        with held(place.url, lock):
            pid = forker.start(run, place.root, RUN, "", output)
            _await(
                session,
                "select exists (select from pg_locks where locktype = 'relation' and not granted"
                " and relation = 'orders'::regclass)",
            )
        ended = forker.ended(run, {pid: output})[pid]
        if ended.code != 0:
            wrong.append(f"exit {ended.code}: {ended.output[-1500:]}")
        return wrong + whole(run, place, session, "after")


def readable_while_loading(run: Forker, place: Place, point: str) -> list[str]:
    """Hold a run that brings a new column at a named place: readers see the table as it was, at once."""
    with psycopg.connect(place.url, autocommit=True) as session:
        before, wrong = _begin(run, place, session, again=True)
        output = place.root / "output.txt"
        pid = forker.start(run, place.root, RUN, f"{point}:1:STOP", output)
        if not _stands_still(pid):
            return [*wrong, f"the run never came to {point}"]
        session.execute("set lock_timeout = '1s'")
        try:
            wrong += [] if table_rows(place, session) == before else ["half a run is visible"]
        except psycopg.errors.LockNotAvailable:
            wrong.append(f"at {point} nobody can read the table")
        session.execute("set lock_timeout = 0")
        os.kill(pid, signal.SIGCONT)
        ended = forker.ended(run, {pid: output})[pid]
        wrong += [] if ended.code == 0 else [f"exit {ended.code}: {ended.output[-500:]}"]
        return wrong + whole(run, place, session, "after")

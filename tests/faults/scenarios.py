"""What can happen to a run, each as one function that gives what was wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.faults import forker
from tests.faults.forker import ROOT, Forker
from tests.faults.meanwhile import looking
from tests.faults.place import (
    Place,
    Row,
    age_lake,
    change,
    source_rows,
    table_rows,
    visible,
    wait_for_lock,
    wrong_after_kill,
    wrong_when_whole,
)
from tests.faults.proxy import Proxy

RUN = ("run", "orders", "--json", "--no-input")


#: No run takes longer where nothing is wrong.
PATIENCE_SECONDS = 60.0


def named_kill(run: Forker, place: Place, point: str, times: int, when: str) -> tuple[bool, list[str]]:
    """Kill a run at a place, look, run again, look. Returns whether it came there, and what was wrong."""
    with psycopg.connect(place.url, autocommit=True) as session:
        if when == "again":
            wrong = whole(run, place, session, "before")
            if wrong:
                return False, wrong
            age_lake(place)
            change(place)
        before = table_rows(place, session)
        killed = forker.run(run, place.root, *RUN, crash=f"{point}:{times}")
        reached = killed.code == -signal.SIGKILL
        wrong = wrong_after_kill(place, before, session) if reached else []
        if not reached and killed.code != 0:
            wrong.append(f"the run ended with {killed.code}: {killed.output[-500:]}")
        wrong += whole(run, place, session, "after")
        return reached, wrong


def whole(run: Forker, place: Place, session: psycopg.Connection, which: str) -> list[str]:
    """Run once more, to the end."""
    done = forker.run(run, place.root, *RUN)
    if done.code != 0:
        return [f"the run {which} ended with {done.code}: {done.output[-500:]}"]
    return wrong_when_whole(place, session)


def random_kills(run: Forker, place: Place, kills: int, real: bool) -> tuple[int, list[str]]:
    """Kill run after run at moments within the time that one takes while a reader looks, then let one end.

    real: each run is a new interpreter, so that its start is killed too.
    """
    began = time.monotonic()
    _killed_after(run, place, PATIENCE_SECONDS, real)
    seconds = time.monotonic() - began
    chance, wrong, killed = place.chance, [], 0
    read: list[list[Row]] = []  # what runs that were killed have read: the next one may finish it first
    with psycopg.connect(place.url, autocommit=True) as session:
        for _ in range(kills):
            change(place, new_column=chance.random() < 0.3)
            before = table_rows(place, session)
            read = [[row + (None,) * (len(place.columns) - len(row)) for row in rows] for rows in read]
            whole_runs = [before or [], *read, source_rows(place)]
            with _watched(place, {len(rows) for rows in whole_runs}) as seen:
                code = _killed_after(run, place, chance.random() * seconds, real)
            killed += code == -signal.SIGKILL
            wrong += [f"a reader saw {count} rows" for count in seen]
            wrong += wrong_after_kill(place, before, session, read)
            read.append(whole_runs[-1])
        wrong += whole(run, place, session, "after")
    return killed, wrong


def _killed_after(run: Forker, place: Place, seconds: float, real: bool) -> int:
    if not real:
        output = place.root / "output.txt"
        pid = forker.start(run, place.root, RUN, "", output)
        killer = threading.Timer(seconds, _kill, (pid,))
        killer.start()
        code = forker.ended(run, {pid: output})[pid].code
        killer.cancel()
        killer.join()
        return code
    with (place.root / "output.txt").open("w") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dwcli", *RUN],
            cwd=place.root,
            stdin=subprocess.DEVNULL,
            stdout=output_file,
            stderr=output_file,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def _watched(place: Place, allowed: set[int]) -> Iterator[set[int]]:
    """Count the rows again and again meanwhile; what is not allowed is gathered."""
    seen: set[int] = set()

    def look(session: psycopg.Connection) -> None:
        if session.execute("select to_regclass('public.orders')").fetchone() != (None,):
            row = session.execute(f"select count(*) from {visible(place)}".encode()).fetchone()
            assert row is not None
            seen.add(row[0])

    with looking(place.url, look, pause=0.005):
        yield seen
    seen -= allowed


def race(run: Forker, place: Place, runners: int) -> list[str]:
    """Begin one pipeline several times at once: one after the other they run, or say who holds it."""
    with psycopg.connect(place.url, autocommit=True) as session:
        change(place)
        outputs: dict[int, Path] = {}
        for number in range(runners):
            output = place.root / f"output{number}.txt"
            outputs[forker.start(run, place.root, RUN, "", output)] = output
        found = forker.ended(run, outputs)
        wrong = [] if any(one.code == 0 for one in found.values()) else ["nobody ran"]
        for one in found.values():
            if one.code != 0 and "is already running (run " not in one.output:
                wrong.append(f"a loser ended with {one.code}: {one.output[-300:]}")
        overlap = session.execute(
            "select count(*) from etl_audit_log a join etl_audit_log b on a.id < b.id"
            " and a.started_at < b.finished_at and b.started_at < a.finished_at"
            " where a.status = 'success' and b.status = 'success'"
        ).fetchone()
        return wrong + wrong_when_whole(place, session) + ([] if overlap else ["?"])


def cut_commit(run: Forker, place: Place, proxy: Proxy, which: int, forward: bool) -> tuple[bool, list[str]]:
    """Cut a run's connection at its n-th COMMIT, then run again."""
    with psycopg.connect(place.url, autocommit=True) as session:
        change(place)
        before = table_rows(place, session)
        proxy.seen, proxy.cut_at, proxy.forward = 0, which, forward
        first = forker.run(run, place.root, *RUN)
        cut, proxy.cut_at = proxy.seen >= which, 0
        wrong = [] if "Traceback" not in first.output else [first.output[-1500:]]
        wrong += wrong_after_kill(place, before, session)
        if first.code == 0 and table_rows(place, session) != source_rows(place):
            wrong.append("the run said that it succeeded, and the table is not the source")
        return cut, wrong + whole(run, place, session, "after")


def flipped_while_waiting(run: Forker, place: Place) -> list[str]:
    """Flip a bit of a snapshot that waits to be loaded: it is set aside, and the source is read again."""
    with psycopg.connect(place.url, autocommit=True) as session:
        lake = place.root / "lake"
        there = set(lake.rglob("*"))
        change(place, new_column=False)
        killed = forker.run(run, place.root, *RUN, crash="commit")
        assert killed.code == -signal.SIGKILL
        wait_for_lock(session)
        path, flip = _flip(place, [p for p in lake.rglob("*") if p not in there])
        wrong = whole(run, place, session, "after")
        if not list(lake.rglob("*.refused")):
            wrong.append(f"{flip} of {path.name} was not found")
        for refused in lake.rglob("*.refused"):
            refused.unlink()
        return wrong


def flipped_when_loaded(run: Forker, place: Place) -> list[str]:
    """Flip a bit of a snapshot that is in the warehouse: a replay refuses it and changes nothing."""
    with psycopg.connect(place.url, autocommit=True) as session:
        before = table_rows(place, session)
        path, flip = _flip(place, list((place.root / "lake").rglob("*")))
        try:
            words = ("replay", "orders", "--yes", "--json")
            done, found = forker.run(run, place.root, *words), forker.run(run, place.root, "verify", "orders")
        finally:
            _flip_back(path, flip)
        wrong = [] if table_rows(place, session) == before else ["the table has changed"]
        for ended in (done, found):
            if ended.code != 1 or path.name not in ended.output or "Traceback" in ended.output:
                wrong.append(f"{flip} of {path.name}: exit {ended.code}: {ended.output[-500:]}")
        return wrong


def _flip(place: Place, paths: Sequence[Path]) -> tuple[Path, tuple[int, int]]:
    """Flip one bit of one of these that is data or a manifest. Returns which."""
    path = place.chance.choice(sorted(p for p in paths if p.suffix in (".parquet", ".json")))
    flip = (place.chance.randrange(path.stat().st_size), 1 << place.chance.randrange(8))
    _flip_back(path, flip)
    return path, flip


def _flip_back(path: Path, flip: tuple[int, int]) -> None:
    position, bit = flip
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)

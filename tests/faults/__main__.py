"""The long form of the fault tests: `make faults`. Its figures go to docs/reliability.md, between the marks.

    python -m tests.faults [--part NAME]… [--scale 1.0] [--jobs 2]

A scale of 1 is the size at which the promises on that page were tested; anything that was wrong is printed
with the seed that shows it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import queue
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg

from dwcli.crashpoints import POINTS
from dwcli.warehouse import connect, embedded
from tests.conftest import project_folder
from tests.faults import disks, forker, trouble
from tests.faults.model import sequence
from tests.faults.place import WRITES, make_place
from tests.faults.proxy import Proxy, proxied
from tests.faults.scenarios import (
    RUN,
    Forker,
    cut_commit,
    flipped_when_loaded,
    flipped_while_waiting,
    named_kill,
    race,
    random_kills,
)

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


@dataclass
class Figures:
    """What one part came to. hits: kills, cuts, flips or races that really happened."""

    what: str
    cases: int = 0
    hits: int = 0
    seconds: float = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What one worker has to itself for one case: an empty database, a folder, a process that forks."""

    url: str
    folder: Path
    run: Forker
    seed: int


Case = Callable[[Bench], tuple[int, list[str]]]


def named(point: str, write: str, when: str, times: int) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        reached, wrong = named_kill(bench.run, place, point, times, when)
        return int(reached), wrong

    return case


def at_random(write: str, real: bool) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        return random_kills(bench.run, place, 5, 1.5 if real else 0.5, real)

    return case


def raced(bench: Bench) -> tuple[int, list[str]]:
    place = make_place(bench.folder / "shop", bench.url, "merge", bench.seed)
    wrong = [text for _ in range(10) for text in race(bench.run, place, 3)]
    return 10, wrong


def cut(write: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        parts = psycopg.conninfo.conninfo_to_dict(bench.url)
        hits, wrong = 0, []
        with proxied("127.0.0.1", int(parts["port"] or 5432)) as proxy:
            place = make_place(bench.folder / "shop", bench.url, write, bench.seed, _through(parts, proxy))
            for which in range(1, 20):
                happened, found = cut_commit(bench.run, place, proxy, which, place.chance.random() < 0.7)
                wrong += found
                if not happened:
                    break
                hits += 1
        return hits, wrong

    return case


def _through(parts: dict[str, object], proxy: Proxy) -> str:
    return f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{proxy.port}/{parts['dbname']}"


def flipped(bench: Bench) -> tuple[int, list[str]]:
    place = make_place(bench.folder / "shop", bench.url, "merge", bench.seed)
    first = forker.run(bench.run, place.root, *RUN)
    wrong = [] if first.code == 0 else [first.output]
    for _ in range(5):
        wrong += flipped_while_waiting(bench.run, place) + flipped_when_loaded(bench.run, place)
    return 10, wrong


def modelled(bench: Bench) -> tuple[int, list[str]]:
    return sequence(bench.run, bench.folder / "shop", bench.url, bench.seed)


def signal_at(name: str, point: str, write: str, when: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        reached, wrong = trouble.signalled(bench.run, place, name, point, when == "again")
        return int(reached), wrong

    return case


def signal_during(name: str, phase: str, goes_on: bool) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, trouble.PHASES[phase], bench.seed)
        reached, wrong = trouble.signalled_while_waiting(bench.run, place, name, phase, goes_on)
        return int(reached), wrong

    return case


def restarts(cases: Sequence[tuple[str, str, str]]) -> Case:
    """Restart a server of one's own in one run after another: (place or phase, write, first or again)."""

    def case(bench: Bench) -> tuple[int, list[str]]:
        hits, wrong = 0, []
        with project_folder() as project:
            home = trouble.own_server(project)
            for number, (where, write, when) in enumerate(cases):
                folder = bench.folder / str(number)
                with trouble.own_place(home, folder, write, bench.seed + number) as place:
                    if when == "during":
                        hit, found = trouble.restarted_while_waiting(bench.run, place, home, where)
                    else:
                        hit, found = trouble.restarted(bench.run, place, home, where, when == "again")
                hits += hit
                wrong += [f"{where}, {write}, {when}: {text}" for text in found]
        return hits, wrong

    return case


def full_lake(write: str, when: str, names: bool) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        lake = place.root / "lake"
        lake.mkdir()
        take = partial(disks.fill, leave=place.chance.randrange(0, 40, 4) * 1024)
        if names:
            take = partial(disks.fill_names, leave=place.chance.randrange(4))
        with disks.small_disk(lake, "size=2m,nr_inodes=300"):
            hit, wrong = trouble.lake_full(bench.run, place, lake, take, when == "again")
        return int(hit), wrong

    return case


def full_warehouse(cases: Sequence[tuple[str, str]]) -> Case:
    """Fill the disk of a server of one's own, up to some room, in one run after another: (write, when)."""

    def case(bench: Bench) -> tuple[int, list[str]]:
        hits, wrong, chance = 0, [], random.Random(bench.seed)
        with project_folder() as project:
            home = trouble.own_server(project)
            for number, (write, when) in enumerate(cases):
                leave = chance.randrange(0, 400, 8) * 1024
                with trouble.small_tablespace(home, str(number)) as (disk, name):
                    folder = bench.folder / str(number)
                    with trouble.own_place(home, folder, write, bench.seed + number, name) as place:
                        hit, found = trouble.warehouse_full(bench.run, place, disk, leave, when == "again")
                hits += hit
                wrong += [f"{write}, {when}, {leave} bytes left: {text}" for text in found]
        return hits, wrong

    return case


def full_log(point: str, write: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        with project_folder() as project:
            disk = project / ".dw"
            with disks.small_disk(disk, "size=200m,nr_inodes=20000"):
                home = trouble.own_server(project)
                with trouble.own_place(home, bench.folder, write, bench.seed) as place:
                    hit, wrong = trouble.log_full(bench.run, place, home, disk, point)
                embedded.remove(home)
        return int(hit), wrong

    return case


def others(write: str, lock: str, new_column: bool, waits: bool) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        return 1, trouble.held_by_another(bench.run, place, lock, new_column, waits)

    return case


def other_lets_go(write: str, lock: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        return 1, trouble.let_go_in_time(bench.run, place, lock)

    return case


def readable(write: str, point: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        return 1, trouble.readable_while_loading(bench.run, place, point)

    return case


def parts(scale: float) -> Iterator[tuple[str, str, list[Case]]]:
    """(name, what it is, cases) of every part, at a scale."""

    def times(count: float) -> range:
        return range(max(1, math.ceil(count * scale)))

    kills = [
        named(point, write, when, passed)
        for _ in times(5)
        for point in POINTS
        for write in WRITES
        for when in ("first", "again")
        for passed in (1,)
    ]
    yield "named", "kills at a named place, each followed by a plain run", kills
    by_chance = [at_random(WRITES[n % 3], n % 4 == 0) for n in times(60)]
    yield "random", "kills at any moment, five before a run may end", by_chance
    yield "races", "times three runs of one pipeline were begun at once", [raced for _ in times(20)]
    yield "commits", "COMMITs whose connection was cut", [cut(WRITES[n % 3]) for n in times(9)]
    yield "bits", "flipped bits in Parquet and manifests", [flipped for _ in times(10)]
    yield from _parts_of_trouble(times)
    yield "model", "runs in random sequences against a model", [modelled for _ in times(2000)]


def _parts_of_trouble(times: Callable[[float], range]) -> Iterator[tuple[str, str, list[Case]]]:
    """The parts in which nothing is killed."""
    signals = [
        signal_at(name, point, write, when)
        for _ in times(2)
        for point in trouble.SIGNAL_POINTS
        for name in trouble.STOPPED
        for write in WRITES
        for when in ("first", "again")
    ]
    signals += [
        signal_during(name, phase, goes_on)
        for _ in times(5)
        for phase in trouble.PHASES
        for name in trouble.STOPPED
        for goes_on in ((False, True) if phase == "commit" else (False,))
    ]
    yield "signals", "runs ended by SIGINT, SIGTERM or SIGHUP, in every phase", signals
    at_points = [(point, write, when) for point in POINTS for write in WRITES for when in ("first", "again")]
    during = [(phase, trouble.PHASES[phase], "during") for phase in trouble.PHASES for _ in range(4)]
    restarted = [restarts((at_points + during)[n::12]) for _ in times(1) for n in range(12)]
    yield "restarts", "restarts of the warehouse in the midst of a run", restarted
    if reason := disks.why_not():
        print(f"no disk is filled: {reason}")
    else:
        lakes = [
            full_lake(write, when, names)
            for _ in times(10)
            for write in WRITES
            for when in ("first", "again")
            for names in (False, True)
        ]
        yield "lake", "runs whose lake had no room left", lakes
        both = [(write, when) for write in WRITES for when in ("first", "again")]
        warehouses: list[Case] = [full_warehouse(both) for _ in times(12)]
        warehouses += [full_log(p, w) for _ in times(2) for p in ("copied", "finished") for w in WRITES]
        yield "warehouse", "runs whose warehouse had no room left", warehouses
    modes = ("access share", "share row exclusive", "access exclusive")
    held = [
        others(write, lock, new_column, waits=new_column or lock != modes[0])
        for _ in times(1)
        for write in WRITES
        for lock in modes
        for new_column in (False, True)
    ]
    held += [other_lets_go(write, lock) for _ in times(3) for write in WRITES for lock in modes]
    held += [readable(write, point) for _ in times(3) for write in WRITES for point in ("begin", "copied")]
    yield "held", "runs into a table that others read or had locked", held


def main() -> int:
    """Run the parts that are asked for, write their figures, and say what was wrong."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults")
    asked.add_argument("--part", action="append", help="only this part; may be given several times")
    asked.add_argument("--scale", type=float, default=1.0)
    asked.add_argument("--jobs", type=int, default=2)
    asked.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = asked.parse_args()
    found = []
    with project_folder() as project, ExitStack() as stack:
        server = embedded.url(embedded.start(project / ".dw" / "postgres"), database="postgres")
        forkers: queue.Queue[Forker] = queue.Queue()
        for _ in range(options.jobs):
            forkers.put(stack.enter_context(forker.forker()))
        for name, what, cases in parts(options.scale):
            if options.part is None or name in options.part:
                found.append(_measure(what, cases, server, forkers, options.jobs, options.seed))
                if options.part is None and options.scale >= 1:
                    _write(found)
    return int(any(figures.wrong for figures in found))


def _measure(
    what: str, cases: list[Case], server: str, forkers: queue.Queue[Forker], jobs: int, seed: int
) -> Figures:
    figures, lock, began = Figures(what), threading.Lock(), time.monotonic()

    def work(number: int) -> None:
        with _bench(server, forkers, seed + number) as bench:
            try:
                hits, wrong = cases[number](bench)
            except Exception as error:
                hits, wrong = 0, [f"{type(error).__name__}: {error}"]
        with lock:
            figures.cases += 1
            figures.hits += hits
            figures.wrong += [f"seed {seed + number}, case {number}: {text}" for text in wrong]
            for text in wrong:
                print(f"\n{what}: seed {seed + number}, case {number}: {text}", flush=True)
            print(f"\r{what}: {figures.hits} in {figures.cases} of {len(cases)}", end="", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(len(cases))))
    figures.seconds = time.monotonic() - began
    print(f"\r{what}: {figures.hits:,}; wrong: {len(figures.wrong)}; {figures.seconds:,.0f} s        ")
    return figures


@contextmanager
def _bench(server: str, forkers: queue.Queue[Forker], seed: int) -> Iterator[Bench]:
    name, run = f"faults_{secrets.token_hex(6)}", forkers.get()
    with connect(server, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            with tempfile.TemporaryDirectory(prefix="dw-faults-") as folder:
                url = psycopg.conninfo.conninfo_to_dict(server)
                yield Bench(_with_database(url, name), Path(folder), run, seed)
        finally:
            forkers.put(run)
            admin.execute(f'drop database "{name}" with (force)')


def _with_database(server: dict[str, object], name: str) -> str:
    return (
        f"postgresql://{server['user']}:{server['password']}@127.0.0.1:{server['port']}/{name}"
        if server.get("port")
        else ""
    )


def _write(found: list[Figures]) -> None:
    """Put the figures into the page, with the bound that so many tries without a fault allow."""
    lines = ["| What was done | How often | Wrong | With 95 % certainty below |", "|---|---|---|---|"]
    for figures in found:
        wrong = len(figures.wrong)
        bound = f"1 in {figures.hits // 3:,}" if figures.hits >= 3 and not wrong else ""
        lines.append(f"| {figures.what} | {figures.hits:,} | {wrong} | {bound} |")
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, "utf-8")


if __name__ == "__main__":
    sys.exit(main())

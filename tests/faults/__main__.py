"""The long form of the fault tests: `make faults`. Its figures are kept in docs/_reliability.json.

    python -m tests.faults [--part NAME]… [--scale 1.0] [--jobs 2]
    python -m tests.faults --part list

A scale of 1 is the size at which the promises of docs/reliability.md were tested; each part that was run at
it has its figures kept, whether or not others are run with it. Anything that was wrong is printed with the
seed that shows it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import queue
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psycopg

from dwcli.crashpoints import POINTS
from dwcli.warehouse import connect, embedded
from tests.conftest import project_folder
from tests.faults import disks, figures, forker, late, trouble
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

#: Where a run comes more than once: each batch, each file.
PASSED_OFTEN = ("fetch", *(point for point in POINTS if point.startswith("parquet_")), "ddl", "copy")
#: How often a part says how far it has come, in seconds: rewritten in a terminal, a line in a file.
TELL_SECONDS, TELL_A_FILE_SECONDS = 2.0, 10.0


@dataclass(frozen=True)
class Bench:
    """What one worker has to itself for one case: an empty database, a folder, a process that forks."""

    url: str
    folder: Path
    run: Forker
    seed: int


Case = Callable[[Bench], tuple[int, list[str]]]


@dataclass(frozen=True)
class Part:
    """Cases of one kind. tries: of what is counted, in all of them together."""

    name: str
    what: str
    cases: list[Case]
    tries: int


def named(point: str, write: str, when: str, times: int) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        reached, wrong = named_kill(bench.run, place, point, times, when)
        return int(reached), wrong

    return case


def at_random(write: str, real: bool) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        return random_kills(bench.run, place, 5, real)

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
    return 1, sequence(bench.run, bench.folder / "shop", bench.url, bench.seed)


def late_commits(cursor: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        with project_folder() as project, late.roomy_server(project) as source:
            place = late.make_place(bench.folder / "shop", bench.url, source, cursor)
            size = (late.WRITERS, late.RUNS, late.LONGEST_SECONDS)
            return late.RUNS, late.late_commits(bench.run, place, *size, bench.seed)

    return case


def signal_at(name: str, point: str, write: str, when: str) -> Case:
    def case(bench: Bench) -> tuple[int, list[str]]:
        place = make_place(bench.folder / "shop", bench.url, write, bench.seed)
        reached, wrong = trouble.signalled(bench.run, place, name, point, when == "again")
        return int(reached), wrong

    return case


def signal_during(name: str, phase: str, goes_on: str) -> Case:
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


def parts() -> Iterator[Part]:
    """Every part at full size; those that need a small disk only where one can be had."""
    every_write = (*WRITES, "scd2")
    kills = [
        named(point, write, when, passed)
        for passed in (1, 1, 1, 1, 2)
        for point in (POINTS if passed == 1 else PASSED_OFTEN)
        for write in every_write
        for when in ("first", "again")
    ]
    yield part("kills", "kills at a named place, each followed by a plain run", kills)
    by_chance = [at_random(every_write[n % 4], n % 5 == 0) for n in range(72)]
    yield part("random", "kills at any moment, five before a run may end", by_chance, 5)
    yield part("races", "times three runs of one pipeline were begun at once", [raced] * 20, 10)
    yield part("commits", "COMMITs whose connection was cut", [cut(WRITES[n % 3]) for n in range(12)], 5)
    late_runs = [late_commits(("at", "id")[n % 2]) for n in range(10)]
    what = f"runs while {late.WRITERS} writers committed late, and then none was missing"
    yield part("late", what, late_runs, late.RUNS)
    yield part("bits", "flipped bits in Parquet and manifests", [flipped] * 10, 10)
    yield from _parts_of_trouble()
    yield part("model", "random sequences of changes, runs and kills against a model", [modelled] * 2000)


def part(name: str, what: str, cases: list[Case], each: int = 1) -> Part:
    """A part of which every case has so many tries."""
    return Part(name, what, cases, len(cases) * each)


def _parts_of_trouble() -> Iterator[Part]:
    """The parts in which nothing is killed."""
    first_and_again = [(write, when) for write in WRITES for when in ("first", "again")]
    signals = [
        signal_at(name, point, write, when)
        for point in trouble.SIGNAL_POINTS
        for name in trouble.STOPPED
        for write, when in first_and_again
    ] * 2
    signals += [
        signal_during(name, phase, goes_on)
        for phase in trouble.PHASES
        for name in trouble.STOPPED
        for goes_on in (("", "answered", "unheard") if phase == "commit" else ("",))
    ] * 5
    yield part("signals", "runs ended by SIGINT, SIGTERM or SIGHUP, in every phase", signals)
    at_points = [(point, write, when) for point in POINTS for write, when in first_and_again]
    during = [(phase, trouble.PHASES[phase], "during") for phase in trouble.PHASES for _ in range(4)]
    every = at_points + during
    restarted = [restarts(every[n::12]) for n in range(12)]
    yield Part("restarts", "restarts of the warehouse in the midst of a run", restarted, len(every))
    if not disks.why_not():
        lakes = [full_lake(*one, names) for one in first_and_again for names in (False, True)] * 10
        yield part("lake", "runs whose lake had no room left", lakes)
        tables = [full_warehouse(first_and_again)] * 12
        logs = [full_log(point, write) for point in ("copied", "finished") for write in WRITES] * 2
        what, tries = "runs whose warehouse had no room left", len(tables) * len(first_and_again) + len(logs)
        yield Part("warehouse", what, [*tables, *logs], tries)
    modes = ("access share", "share row exclusive", "access exclusive")
    held = [
        others(write, lock, new_column, waits=new_column or lock != modes[0])
        for write in WRITES
        for lock in modes
        for new_column in (False, True)
    ]
    held += [other_lets_go(write, lock) for write in WRITES for lock in modes] * 3
    held += [readable(write, point) for write in WRITES for point in ("begin", "copied")] * 3
    yield part("held", "runs into a table that others read or had locked", held)


def sized(whole: Part, scale: float) -> Part:
    """A part of another size: a sample of its cases, always the same, or all of them more than once."""
    count = max(1, math.ceil(len(whole.cases) * scale))
    times, rest = divmod(count, len(whole.cases))
    cases = whole.cases * times + random.Random(0).sample(whole.cases, rest)
    return replace(whole, cases=cases, tries=math.ceil(whole.tries * count / len(whole.cases)))


def main() -> int:
    """Run the parts that are asked for, keep their figures, and say what was wrong."""
    every = list(parts())
    names = [part.name for part in every]
    asked = argparse.ArgumentParser(
        prog="python -m tests.faults",
        epilog="parts: " + ", ".join(f"{part.name} ({part.tries:,})" for part in every),
    )
    asked.add_argument(
        "--part",
        action="append",
        choices=[*names, "list"],
        metavar="NAME",
        help="only this part; may be given several times. `list` shows them all",
    )
    asked.add_argument("--scale", type=float, default=1.0, help="1: full size, whose figures are kept")
    asked.add_argument("--jobs", type=int, default=2)
    asked.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = asked.parse_args()
    if "list" in (options.part or ()):
        _tell_parts(every)
        return 0
    if reason := disks.why_not():
        print(f"no disk is filled: {reason}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # servers and folders go with us
    wrong = False
    with project_folder() as project, ExitStack() as stack:
        server = embedded.url(embedded.start(project / ".dw" / "postgres"), database="postgres")
        forkers: queue.Queue[Forker] = queue.Queue()
        for _ in range(options.jobs):
            forkers.put(stack.enter_context(forker.forker()))
        for part in every:
            if options.part is None or part.name in options.part:
                found = _measure(sized(part, options.scale), server, forkers, options)
                wrong |= found.wrong > 0
                print(f"  {figures.keep(part.name, found, names)}", flush=True)
    if options.scale >= 1:
        figures.write_page()
    return int(wrong)


def _tell_parts(every: Sequence[Part]) -> None:
    """Every part, its full size, and what it came to when it was last run at that."""
    kept = figures.kept()
    for part in every:
        last = "not run yet"
        if found := kept.get(part.name):
            last = f"{found.date}: {found.hits:,}, {found.wrong} wrong, in {_clock(found.seconds)}"
        print(f"{part.name:<10} {part.tries:>5,}  {part.what}\n{'':<18}{last}")


def _measure(
    part: Part, server: str, forkers: queue.Queue[Forker], options: argparse.Namespace
) -> figures.Figures:
    """Run all cases of a part. A case that raises is one that is wrong."""
    began, hits, wrong = time.monotonic(), 0, 0

    def work(number: int) -> tuple[int, list[str]]:
        with _bench(server, forkers, options.seed + number) as bench:
            try:
                return part.cases[number](bench)
            except Exception as error:
                return 0, [f"{type(error).__name__}: {error}"]

    pool = ThreadPoolExecutor(options.jobs)
    cases = {pool.submit(work, number): number for number in range(len(part.cases))}
    try:
        while cases:
            for case in wait(cases, _pause()).done:
                number = cases.pop(case)
                hit, texts = case.result()
                hits, wrong = hits + hit, wrong + bool(texts)
                for text in texts:
                    _tell(f"{part.name}: seed {options.seed + number}, case {number}: {text}", last=True)
            _tell(_how_far(part, len(cases), hits, wrong, time.monotonic() - began), last=not cases)
    finally:
        pool.shutdown(cancel_futures=True)
    seconds = round(time.monotonic() - began)
    return figures.Figures(part.what, len(part.cases), hits, wrong, seconds, options.scale, options.seed)


def _how_far(part: Part, left: int, hits: int, wrong: int, seconds: float) -> str:
    done = len(part.cases) - left
    rest = f"{_clock(seconds / done * left)} left" if done else "no case has ended yet"
    return (
        f"{part.name}: {done:,} of {len(part.cases):,} cases, {hits:,} {part.what}; wrong: {wrong};"
        f" {_clock(seconds)}, {rest}"
    )


def _tell(text: str, last: bool) -> None:
    """A line; in a terminal the next one takes its place, unless this one is to stay."""
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{text}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def _pause() -> float:
    return TELL_SECONDS if sys.stdout.isatty() else TELL_A_FILE_SECONDS


def _clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


@contextmanager
def _bench(server: str, forkers: queue.Queue[Forker], seed: int) -> Iterator[Bench]:
    """Everything that one case has to itself."""
    name, run = f"faults_{secrets.token_hex(6)}", forkers.get()
    with connect(server, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            with tempfile.TemporaryDirectory(prefix="dw-faults-") as folder:
                yield Bench(_with_database(server, name), Path(folder), run, seed)
        finally:
            forkers.put(run)
            admin.execute(f'drop database "{name}" with (force)')


def _with_database(server: str, name: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(server)
    return f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{parts['port']}/{name}"


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from dwcli.crashpoints import POINTS
from dwcli.warehouse import connect, embedded
from tests.conftest import project_folder
from tests.faults import forker
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
    yield "model", "runs in random sequences against a model", [modelled for _ in times(2000)]


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

"""Pipelines over Python values, for tests that need to say exactly what a source holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from dwcli.connectors import Connector
from dwcli.contract import Cursor, IngestedItem, Resource
from dwcli.events import Event
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine

Rows = list[dict[str, Any]]


@dataclass
class Source:
    """A source of Python values: batches of rows, or whatever `answer` gives for a cursor."""

    answer: Callable[[Cursor], Iterable[IngestedItem]]
    asked: list[Cursor] = field(default_factory=list)
    acknowledged: list[Any] = field(default_factory=list)
    connected: int = 0
    #: whether it wants to know what is in the warehouse
    stream: bool = False
    #: whether it drops what has been acknowledged
    forgets: bool = False
    closed: int = 0

    def connector(self) -> Connector:
        def read(client: Any, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
            self.asked.append(cursor)
            yield from self.answer(cursor)

        def connect(config: Any) -> object:
            self.connected += 1
            return object()

        def close(client: Any) -> None:
            self.closed += 1

        module = SimpleNamespace(
            connect=connect,
            describe=lambda client, query: Resource(query),
            read=read,
            close=close,
            FORGETS=self.forgets,
        )
        if self.stream:
            module.acknowledge = lambda client, position: self.acknowledged.append(position)
        return Connector("values", SimpleNamespace(), module)  # type: ignore[arg-type]


def batches(*rows: Rows) -> Source:
    """A source that gives these batches, whatever it is asked."""
    return Source(lambda cursor: [IngestedItem(payload=batch) for batch in rows])


@dataclass(frozen=True)
class Outcome:
    result: dict[str, Any]
    error: BaseException | None
    events: Sequence[Event]


def run(url: str, lake: Path, source: Source, options: RunOptions | None = None, **config: Any) -> Outcome:
    """Run the pipeline `s.p` from this source into the table `t`, with these settings of its Job."""
    events: list[Event] = []
    settings = {"pipeline": "s.p", "source": "s", "lake_name": "s.p", "query": "q", "table": "t"} | config
    job = Job(connector=source.connector, schema="public", lake=lake, **settings)
    engine = make_engine(url)
    try:
        result, error = attempt(job, engine, options or RunOptions(), events.append)
    finally:
        engine.dispose()
    return Outcome(result, error, events)


def rows_of(connection: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()

"""Every scenario on every connector. One connector: pytest tests/conformance -k redis"""

from __future__ import annotations

import inspect
import random
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dwcli.connectors import create_connector, literals, names, secrets_of
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, DwError, ResourceMissing
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.staging.dw_schema import fold_name
from dwcli.staging.frames import item_frame
from dwcli.warehouse.engine import make_engine
from tests.conformance.case import Case, Place, Row, case_of, protocols, scenario
from tests.conformance.proxy import cutting

START = datetime(2024, 2, 29, 12, 0, 0, tzinfo=UTC)
#: Hard texts, one after the other; None is NULL.
TEXTS = ("plain", "größe 日本 🦆", "a,b;c\t\"d' \\ %s", "line\nbreak", " edges ", None, "00501", "true")
#: Cursor values that would end a statement, a filter or an address, if they were written into one.
HOSTILE = (
    "2024'; DROP TABLE bounds; --",
    '2024"}}) {a: 1} //',
    "2024]; DELETE FROM bounds",
    "x\\' OR 1=1 #",
    "a&b=c/../d",
)
BATCH_BYTES = 64 * 1024
#: Bytes of the server's answer after which a connection is cut; the rows are more than ten times that.
CUT_AFTER = 300 * 1024


def rows_from(first: int, count: int) -> list[Row]:
    """Rows of every kind of column. Five in a row share their `at`; every seventh value is NULL."""
    return [
        {
            "id": number,
            "name": TEXTS[number % len(TEXTS)],
            "amount": None if number % 7 == 3 else Decimal(number * 12345) / 100 + Decimal("0.01"),
            "at": START + timedelta(seconds=number // 5),
            "flag": None if number % 7 == 5 else number % 2 == 0,
            "nothing": None,
        }
        for number in range(first, first + count)
    ]


def wide_rows(count: int) -> list[Row]:
    """Rows of some 700 bytes that no compression makes small."""
    texts = random.Random(1)
    return [
        {"id": number, "at": START + timedelta(seconds=number), "name": texts.randbytes(350).hex()}
        for number in range(count)
    ]


# -- the table ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loader:
    """Runs a pipeline from the place into the test's warehouse."""

    case: Case
    protocol: str
    url: str
    lake: Path

    def run(self, config: Mapping[str, Any], query: str, **settings: Any) -> dict[str, Any]:
        """Load the query into the table `t`; returns the result, success or failure."""
        given = {"protocol": self.protocol, **config}
        job = Job(
            pipeline="s.p",
            source="s",
            lake_name="s.p",
            connector=lambda: create_connector(given),
            query=query,
            schema="public",
            table="t",
            lake=self.lake,
            cursor=self.case.cursor,
            **settings,
        )
        engine = make_engine(self.url)
        try:
            return attempt(job, engine, RunOptions(), lambda event: None)[0]
        finally:
            engine.dispose()

    def loaded(self, config: Mapping[str, Any], query: str, **settings: Any) -> dict[str, Any]:
        """Load the query, which must succeed."""
        result = self.run(config, query, **settings)
        assert result["status"] == "success", result["error"]
        return result


@pytest.fixture
def loader(case: Case, protocol: str, warehouse_url: str, tmp_path: Path) -> Loader:
    return Loader(case, protocol, warehouse_url, tmp_path / "lake")


def in_warehouse(warehouse: psycopg.Connection, case: Case) -> list[tuple[Any, ...]]:
    """The rows of `t` as Python values, by id."""
    kinds = {"id": "bigint", "name": "text", "amount": "numeric", "at": "timestamptz", "flag": "boolean"}
    picked = [f"({case.columns.get(name, name)})::{kind}" for name, kind in kinds.items()]
    warehouse.execute("set timezone = 'UTC'")
    return warehouse.execute(f"select {', '.join(picked)} from t order by 1".encode()).fetchall()


def expected(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [(row["id"], row["name"], row["amount"], row["at"], row["flag"]) for row in rows]


def told_error(protocol: str, config: Mapping[str, Any], act: Callable[[Any], Any]) -> DwError:
    """The error of connecting and doing something, which must be ours, useful, and free of secrets."""
    connector = create_connector({"protocol": protocol, **config})
    try:
        with pytest.raises(DwError) as caught:
            connector.connect()
            act(connector)
    finally:
        connector.close()
    error = caught.value
    said = f"{error.message} {error.why} {error.hint}"
    assert error.hint, f"no hint: {said}"
    assert "Traceback" not in said
    for secret in secrets_of(connector.config):
        assert len(secret) < 4 or secret not in said
    return error


def read_all(connector: Any, query: str) -> list[Any]:
    return list(connector.fetch_data(query).items)


# -- scenarios ----------------------------------------------------------------------------------------


def test_full_read(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """Every value of every row arrives as it was."""
    rows = rows_from(1, 300)
    result = loader.loaded(place.config, place.put("full", rows))
    assert result["rows_loaded"] == 300
    assert in_warehouse(warehouse, case) == expected(rows)


def test_types(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """Columns have the types that the connector's page promises."""
    loader.loaded(place.config, place.put("typed", rows_from(1, 20)))
    found = dict(
        warehouse.execute(
            "select column_name, data_type from information_schema.columns where table_name = 't'"
        ).fetchall()
    )
    assert {name: found.get(name) for name in case.types} == dict(case.types)


def test_empty_resource(case: Case, place: Place, loader: Loader) -> None:
    """A resource without rows is a success of no rows."""
    result = loader.loaded(place.config, place.put("empty", []))
    assert (result["rows_read"], result["rows_loaded"]) == (0, 0)


def test_unicode_names(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """Resources and columns with names that have to be quoted."""
    rows = [{**row, case.strange_column: f"x{row['id']}"} for row in rows_from(1, 5)]
    loader.loaded(place.config, place.put(case.strange_name, rows))
    name = case.columns.get(case.strange_column) or f'"{fold_name(case.strange_column)}"'
    found = warehouse.execute(f"select {name} from t order by 1".encode()).fetchall()
    assert found == [(f"x{number}",) for number in range(1, 6)]


def test_nulls(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """NULL is NULL: no empty text, no zero, no false; also where a whole column has nothing else."""
    rows = rows_from(1, 56)
    loader.loaded(place.config, place.put("holes", rows))
    found = in_warehouse(warehouse, case)
    for index, name in enumerate(("id", "name", "amount", "at", "flag")):
        assert sum(row[index] is None for row in found) == sum(row[name] is None for row in rows), name


def test_incremental_with_ties(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """Rows that come later with the cursor value reached before are neither lost nor loaded twice."""
    first, second = rows_from(1, 48), rows_from(49, 30)
    assert first[-1]["at"] == second[0]["at"]
    query = place.put("ties", first)
    for _ in range(2):
        loader.loaded(place.config, query)
        assert in_warehouse(warehouse, case) == expected(first)
    assert place.put("ties", second) == query
    loader.loaded(place.config, query)
    assert in_warehouse(warehouse, case) == expected([*first, *second])


def test_hostile_cursor(case: Case, protocol: str, place: Place, loader: Loader, warehouse: Any) -> None:
    """A cursor value is a value: what reads as code is compared or refused, and harms nothing."""
    if case.cursor is None:
        return  # it keeps its own place
    rows = rows_from(1, 20)
    query = place.put("bounds", rows)
    for hostile in HOSTILE:
        connector = create_connector({"protocol": protocol, **place.config})
        connector.connect()
        with closing(connector), suppress(DwError):
            for item in connector.fetch_data(query, Cursor(case.cursor, hostile, type="text")).items:
                assert item_frame(item)[0].height <= len(rows)
    loader.loaded(place.config, query)
    assert in_warehouse(warehouse, case) == expected(rows)


def test_resume_after_a_cut_connection(case: Case, place: Place, loader: Loader, warehouse: Any) -> None:
    """A connection that breaks half way is a failure that changes nothing; the next run loads all."""
    rows = wide_rows(6000)
    query = place.put("cut", rows)
    config = {**place.config, "batch_bytes": BATCH_BYTES}
    with cutting(case.address(config), CUT_AFTER) as port:
        result = loader.run(case.through(config, port), query)
    assert result["status"] == "failure", "a source that ends early was taken for one that is read"
    assert re.match(r"DW-(CONN|SOURCE)", result["error"]["code"]), result["error"]
    assert warehouse.execute("select to_regclass('t')").fetchone() == (None,)
    assert loader.loaded(config, query)["rows_loaded"] == len(rows)
    found = warehouse.execute("select count(*), count(distinct id::bigint) from t").fetchone()
    assert found == (len(rows), len(rows))


def test_wrong_password(case: Case, protocol: str, place: Place) -> None:
    """A refused login is told as one."""
    query = place.put("locked", rows_from(1, 2))
    config = {**place.config, **case.wrong_password}
    error = told_error(protocol, config, lambda connector: read_all(connector, query))
    assert isinstance(error, ConnectionFailed) and error.layer in ("login", "permission"), error


def test_unreachable_host(case: Case, protocol: str, place: Place) -> None:
    """A port where nobody listens is told as one, within seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    config = {**case.through(place.config, closed), **case.unreachable}
    error = told_error(protocol, config, lambda connector: list(connector.discover()))
    assert isinstance(error, ConnectionFailed) and error.layer in ("port", "name"), error


def test_missing_resource(case: Case, protocol: str, place: Place) -> None:
    """A resource that is not there is told by its name."""
    place.put("present", rows_from(1, 2))
    error = told_error(protocol, place.config, lambda connector: read_all(connector, case.missing))
    assert isinstance(error, ResourceMissing), repr(error)
    assert case.missing in error.message


def test_memory_bound(case: Case, protocol: str, place: Place) -> None:
    """Batches stay near batch_bytes, whatever the resource holds."""
    if not literals(protocol)["STREAMING"]:
        pytest.skip("holds a whole resource in memory, as its page says")
    rows = wide_rows(3000)
    query = place.put("big", rows)
    connector = create_connector({"protocol": protocol, **place.config, "batch_bytes": BATCH_BYTES})
    connector.connect()
    try:
        frames = [
            item_frame(item)[0] for item in connector.fetch_data(query).items if item.payload is not None
        ]
    finally:
        connector.close()
    assert sum(frame.height for frame in frames) == len(rows)
    assert len(frames) >= 6
    # a batch is full when it is over the bound: by one read of a pipe or a socket at most
    assert max(frame.estimated_size() for frame in frames) <= 2 * BATCH_BYTES + 256 * 1024


# -- the suite itself ---------------------------------------------------------------------------------


def test_every_protocol_has_a_case() -> None:
    assert sorted(names()) == protocols()


def test_every_absent_scenario_is_one() -> None:
    scenarios = {"wizard"} | {
        scenario(function)
        for name, function in globals().items()
        if name.startswith("test_") and "case" in inspect.signature(function).parameters
    }
    for protocol in protocols():
        assert case_of(protocol).absent.keys() <= scenarios, protocol

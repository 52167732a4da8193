"""What the scenarios need to know about one connector."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

#: Folder of the cases.
CASES = Path(__file__).parent / "cases"
#: Servers that a case has started for all its tests; they end with the last scenario.
SERVERS = ExitStack()


@dataclass(frozen=True)
class Place:
    """A corner of a source that one test has to itself; whoever made it removes it.

    config: a connector config that reads from there.
    put: adds rows to a resource, which is made where it is not there, and returns the query that reads it.
        The columns are those of the first row; no rows make a resource with the columns of `rows_like`.
    """

    config: Mapping[str, Any]
    put: Callable[[str, Sequence[Row]], str]


@dataclass(frozen=True)
class Case:
    """One connector.

    place: makes a place; it gets a folder of the test's own.
    types: PostgreSQL type of each column of ROWS in the warehouse, in the words of information_schema.
    cursor: the column that tells new rows, or None where the source keeps its place itself.
    strange_name: a resource name as strange as the source allows.
    wrong_password: what to change in a config for the login to be refused.
    unreachable: what to change for a host that has no such server.
    through: the config that goes through a proxy at this port of 127.0.0.1 instead.
    address: host and port of the server that a config means, for that proxy.
    missing: the query of a resource that is not there.
    columns: where a canonical column is in the warehouse: its SQL, where it is not its name.
    absent: scenarios that have no meaning here, each with the reason.
    inside: there is no server: what stands in for it is put into the process that reads.
    """

    place: Callable[[Path], AbstractContextManager[Place]]
    types: Mapping[str, str]
    cursor: str | None = "at"
    strange_name: str = "größe 日本 \"'"
    strange_column: str = 'naïve ☃ "x"'
    wrong_password: Mapping[str, Any] = field(default_factory=dict)
    unreachable: Mapping[str, Any] = field(default_factory=dict)
    address: Callable[[Mapping[str, Any]], tuple[str, int]] = lambda config: (
        config.get("host", "127.0.0.1"),
        config["port"],
    )
    through: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda config, port: {
        **config,
        "host": "127.0.0.1",
        "port": port,
    }
    missing: str = "no_such_thing"
    columns: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    inside: bool = False


def protocols() -> list[str]:
    """The protocols that have a case."""
    return sorted(path.stem for path in CASES.glob("*.py") if not path.stem.startswith("_"))


@cache
def case_of(protocol: str) -> Case:
    """The case of a protocol. Its module is imported now, so that a missing driver spoils no other's."""
    case: Case = importlib.import_module(f"tests.conformance.cases.{protocol}").CASE
    return case


def scenario(function: Callable[..., Any]) -> str:
    """The name that a test has in `absent`."""
    return function.__name__.removeprefix("test_")

"""What a load is told, what it has done so far, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl
import psycopg

from dwcli.contract import Contract, WriteDisposition
from dwcli.staging.copying import OpenCopy
from dwcli.staging.dw_schema import Change, Table


@dataclass(frozen=True)
class LoadPlan:
    """How a snapshot meets the table.

    key, cursor and overrides speak of source columns. boundary: the cursor value, as text, from which
    this snapshot was read; an append compares the rows that stand exactly there with the table's.
    fresh: forget what the table holds (a full refresh). replaces: column → value of rows that the
    snapshot supersedes. contract `freeze` refuses every change of the schema. states: each row is what
    the source holds of its key now, so it also replaces one that is newer by the cursor; else a row is one
    of several that tell of its key, and the newest of them stands.
    """

    write: WriteDisposition = "append"
    key: tuple[str, ...] = ()
    cursor: str | None = None
    boundary: str | None = None
    run_id: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    contract: Contract = "evolve"
    #: rows that may be set aside; None: none of them, or any number with `discard_row`
    max_rejects: int | None = None
    fresh: bool = False
    states: bool = False


@dataclass
class Load:
    """A load under way. `sink` is where rows go now: the target itself, or a temporary table."""

    connection: psycopg.Connection
    plan: LoadPlan
    schema: str
    table: str
    target: Table | None
    sink: Table | None = None
    rows: int = 0
    rejected: int = 0
    deleted: int = 0
    changes: list[Change] = field(default_factory=list)
    values_changed: dict[str, int] = field(default_factory=dict)
    replaces: list[Mapping[str, str]] = field(default_factory=list)
    #: source columns that some batch had
    seen: set[str] = field(default_factory=set)
    #: soft or hard, and the keys (as text) that are `gone` from the source or there again
    gone: tuple[str, pl.DataFrame] | None = None
    #: name of the temporary table that rows wait in
    stage_name: str = "dw_stage"
    #: when the first of its rows was read
    ingested_at: datetime | None = None
    #: stays open from batch to batch: a COPY for each costs the server a tenth more
    copying: OpenCopy | None = None


@dataclass(frozen=True)
class Counts:
    """What a load did to the table."""

    rows: int
    inserted: int
    updated: int
    deleted: int
    #: set aside in etl_rejects; none of them is in `rows`
    rejected: int = 0

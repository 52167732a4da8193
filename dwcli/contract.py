"""The nouns that every room shares.

A connector yields `IngestedItem`s: bounded batches. What crosses the rooms is a polars DataFrame and,
beside it, the PostgreSQL type of each column that the frame alone cannot tell (`types`).

**How a value keeps its type.** Each column has a PostgreSQL type, the one it will have in the
warehouse: the declared one in `types`, else the one that its polars dtype maps to (design: Types).
The frame may hold such a column in the dtype that fits it best, or as String in PostgreSQL's own text
form; both mean the same, batch by batch. So a `timestamptz` column whose batch holds `infinity`, which
no Arrow timestamp can, is a String column in that batch and still arrives as `timestamptz` exactly.
Naive Datetime values mean UTC once they leave a connector (a connector with a `timezone` applies it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    import polars as pl

WriteDisposition = Literal["append", "replace", "merge", "scd2"]
#: Those that tell rows apart by their key.
KEYED: tuple[WriteDisposition, ...] = ("merge", "scd2")
#: What a change of the source's schema may do.
Contract = Literal["evolve", "freeze", "discard_value", "discard_row"]
#: What becomes of rows that the source no longer has.
Deletes = Literal["ignore", "soft", "hard"]

#: How much memory one batch may take, in bytes, unless the config says otherwise. Some five batches
#: are under way at once between source and warehouse.
BATCH_BYTES = 8 * 1024 * 1024


#: Marks a config field that names a file or folder of this machine.
LOCAL_PATH: dict[str, JsonValue] = {"local_path": True}


class ConnectorConfig(BaseModel):
    """What every connector's `Config` begins with.

    Field descriptions are the questions of the wizard, the help of the flags and the docs, so write
    them for a person: a noun phrase, no period. `SecretStr` fields are never shown, asked hidden, and
    stored as references. `json_schema_extra={"advanced": True}` keeps a field out of the wizard's
    questions; `{"needs": "username"}` asks only where that field has a value, `{"unless": "token"}` only
    where it has none, and `{"needs": {"format": ["excel"]}}` looks for one of these values. Of a field
    with `json_schema_extra=LOCAL_PATH`, a relative value is taken from the project's folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    batch_bytes: int = Field(
        BATCH_BYTES,
        ge=64 * 1024,
        description="memory that one batch may take, in bytes",
        json_schema_extra={"advanced": True},
    )


@dataclass(frozen=True)
class Column:
    """One column of a resource, as the source declares it."""

    name: str
    #: the PostgreSQL type it will have in the warehouse, such as "numeric(12,2)" or "timestamptz"
    type: str
    nullable: bool = True
    #: the type in the source's own words, such as "DATETIME(6)"
    source_type: str = ""


@dataclass(frozen=True)
class CursorCandidate:
    """A column that could tell new rows from old ones, and why."""

    column: str
    reason: str
    #: True when the catalogue proves it (not null, indexed, a column that changes with the row)
    sure: bool = False
    #: only new rows are seen, not changed ones (a growing number, created_at)
    append_only: bool = False


@dataclass(frozen=True)
class Resource:
    """One table-shaped thing that a source offers. `name` is what goes into `query`."""

    name: str
    columns: tuple[Column, ...] = ()
    primary_key: tuple[str, ...] = ()
    #: the catalogue's reason for `primary_key`, such as "primary key in the source"
    key_reason: str = ""
    row_estimate: int | None = None
    bytes_estimate: int | None = None
    #: best first
    cursors: tuple[CursorCandidate, ...] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Cursor:
    """Where a read begins and ends. All bounds are inclusive at `start`, exclusive at `end`.

    column: the cursor column, or "" for a source that keeps its place in `position` alone.
    start: the value reached, in PostgreSQL's text form of `type`, any lookback already taken off;
        None reads from the beginning. Rows whose cursor is NULL are read as well: the pipeline's
        policy for them is not the connector's to decide.
    end: upper bound of a backfill, or None.
    type: the PostgreSQL type of the column, when it is known from an earlier run.
    position: what the last committed item's `position` was; opaque to everyone but the connector.
    again: rows that were given before may be given again, since they are merged by a key. A source that
        can tell which rows were committed late gives those too, wherever their cursor stands.
    """

    column: str = ""
    start: str | None = None
    end: str | None = None
    type: str = ""
    position: Any = None
    again: bool = False


@dataclass(frozen=True)
class IngestedItem:
    """One bounded batch from a source.

    payload: rows as a polars DataFrame, or as one dict or a list of dicts; None with `lake_path`.
    types: PostgreSQL type by column name, where the frame's dtype does not say it.
    lake_path: a Parquet file that already holds these rows (a source that wrote it itself).
    position: for sources that keep their place themselves: everything up to and including this item
        is read once the run commits. JSON-able. It comes back as `Cursor.position`.
    replaces: column → value of rows that this item supersedes: earlier runs' rows that match are
        deleted in the same transaction (a file that changed since it was loaded).
    metadata: anything else worth keeping; JSON-able.
    """

    payload: dict[str, Any] | list[dict[str, Any]] | pl.DataFrame | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    lake_path: str | None = None
    position: Any = None
    replaces: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class IngestionResult:
    """What a source answered. `items` may be lazy: it is read once, batch by batch.

    success is False, with `error`, when the source could not be read at all; an error while `items`
    is being read is raised from the iteration.
    """

    success: bool
    protocol: str = ""
    items: Iterable[IngestedItem] = ()
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

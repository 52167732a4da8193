"""Types, names, CREATE and ALTER TABLE: how a frame's columns become a table's.

Everything that PostgreSQL can hold exactly gets a column that holds it exactly. A type that a later
row contradicts is widened in place, old values reading the same: never a second column, never drop
and add (dropped columns count against PostgreSQL's limit of 1,600).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl
import psycopg
from psycopg import sql

from dwcli import crashpoints
from dwcli.errors import SchemaRefused
from dwcli.log import get_logger
from dwcli.staging.audit import LOCK_KEY
from dwcli.staging.frames import EXACT_DOUBLE, Types
from dwcli.staging.trouble import trouble

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = get_logger(__name__)

#: A column without a value so far: text until the first value decides.
PROVISIONAL = "null"
MAX_NAME_BYTES = 63
SYSTEM_COLUMNS = frozenset(("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"))
#: What dw adds to every table it loads, with the type of each.
ADDED_COLUMNS = {
    "_loaded_at": "timestamptz",
    "_source_file": "text",
    "_ingested_at": "timestamptz",
    "_run_id": "text",
}
#: Those of them that are alike in all rows of a run.
RUN_COLUMNS = ("_loaded_at", "_ingested_at", "_run_id")
#: A table whose rows are updated keeps a tenth of each page free: the new form of a row stays on its page,
#: and no index learns of it (HOT). A merge of one row in a hundred takes a quarter less.
ROOM = " with (fillfactor = 90)"
#: When a row was found to be gone from the source, in tables of pipelines with `deletes: soft`.
DELETED_AT = "_deleted_at"
#: From when, and until when, a row was so, in tables of pipelines with `write: scd2`.
VALID_FROM, VALID_TO, IS_CURRENT = "_valid_from", "_valid_to", "_is_current"
HISTORY_COLUMNS = {VALID_FROM: "timestamptz", VALID_TO: "timestamptz", IS_CURRENT: "boolean"}
OWN_COLUMNS = (*ADDED_COLUMNS, DELETED_AT, *HISTORY_COLUMNS)

# -- types --------------------------------------------------------------------------------------------

_SIMPLE_TYPES: dict[type[pl.DataType], str] = {
    pl.Null: PROVISIONAL,
    pl.String: "text",
    pl.Boolean: "boolean",
    pl.Date: "date",
    pl.Time: "time",
    pl.Duration: "interval",
    pl.Datetime: "timestamptz",
    pl.Binary: "bytea",
    pl.Float32: "double precision",
    pl.Float64: "double precision",
    pl.UInt64: "numeric(20,0)",
    pl.Int128: "numeric",
}
_SPELLINGS = {
    "int": "bigint",
    "int8": "bigint",
    "int4": "integer",
    "int2": "smallint",
    "bool": "boolean",
    "float8": "double precision",
    "float4": "real",
    "float": "double precision",
    "decimal": "numeric",
    "character varying": "varchar",
    "character": "char",
    "bpchar": "char",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "time without time zone": "time",
    "time with time zone": "timetz",
}
WHOLE = ("smallint", "integer", "bigint")
FLOATS = ("real", "double precision")
NUMBERS = (*WHOLE, "numeric", *FLOATS)
#: Types that have a length, which a cast cuts to.
BOUNDED = ("varchar", "char")


def postgres_type(dtype: pl.DataType) -> str:
    """The PostgreSQL type that a polars dtype loads into, exactly; text for what has no better one."""
    if dtype.is_integer() and dtype.base_type() not in _SIMPLE_TYPES:
        return "bigint"
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})" if dtype.precision else "numeric"
    if dtype.is_nested() or dtype == pl.Object:
        return "jsonb"
    return _SIMPLE_TYPES.get(dtype.base_type(), "text")


def frame_types(frame: pl.DataFrame, declared: Mapping[str, str]) -> Types:
    """The PostgreSQL type of every column of a frame: the declared one, else the dtype's."""
    found: Types = {}
    for name, dtype in frame.schema.items():
        found[name] = canonical(declared[name]) if name in declared else postgres_type(dtype)
    return found


def canonical(type_text: str) -> str:
    """One spelling for each PostgreSQL type: `int8` is bigint, `decimal(9, 2)` is numeric(9,2)."""
    lowered = re.sub(r"\s+", " ", type_text.strip().lower())
    match = re.fullmatch(
        r"([a-z_\"][a-z0-9_.\" ]*?) ?(?:\(([\d, ]+)\))?( with(?:out)? time zone)?((?:\[\d*\])*)", lowered
    )
    if not match:
        return type_text.strip()
    base, arguments, zone, array = match[1], match[2], match[3] or "", match[4] or ""
    base = _SPELLINGS.get(base + zone, base + zone)
    inner = f"({arguments.replace(' ', '')})" if arguments else ""
    return f"{base}{inner}{array}"


def base_type(type_text: str) -> str:
    """A type without its precision or length."""
    return re.sub(r"\(.*\)", "", type_text)


def wider(existing: str, incoming: str, fits_double: bool = False) -> str:
    """The narrowest type that holds every value of both exactly, and reads old values the same.

    fits_double: the incoming values, whole numbers, are all exact as doubles.
    """
    if incoming in (existing, PROVISIONAL):
        return existing
    if existing == PROVISIONAL:
        return incoming
    ours, theirs = base_type(existing), base_type(incoming)
    if ours in WHOLE and theirs in WHOLE:
        return max(ours, theirs, key=WHOLE.index)
    if ours in ("double precision", "real") and theirs in WHOLE and fits_double:
        return "double precision"
    if ours in ("double precision", "real") and theirs in ("double precision", "real"):
        return "double precision"
    if ours in NUMBERS and theirs in NUMBERS:
        return _wider_numeric(existing, incoming)
    if {ours, theirs} <= {"date", "timestamptz"}:
        return "timestamptz"
    if {ours, theirs} <= {"json", "jsonb"}:
        return existing
    if ours == theirs == "varchar":
        return "text" if "(" not in incoming else max(existing, incoming, key=_length)
    return "text"


def _length(type_text: str) -> int:
    found = re.search(r"\((\d+)\)", type_text)
    return int(found[1]) if found else 2**31


def _wider_numeric(existing: str, incoming: str) -> str:
    """numeric with room for both: digits before the point and after it are each the larger number."""
    shapes = [_digits(existing), _digits(incoming)]
    if None in shapes:
        return "numeric"
    whole = max(shape[0] for shape in shapes if shape)
    scale = max(shape[1] for shape in shapes if shape)
    return f"numeric({whole + scale},{scale})"


def scale_of(type_text: str) -> int | None:
    """Digits after the point that a numeric keeps; None where it keeps all."""
    shape = _digits(type_text)
    return shape[1] if shape else None


def _digits(type_text: str) -> tuple[int, int] | None:
    """Digits before and after the point, or None where there is no bound."""
    fixed = {"smallint": (5, 0), "integer": (10, 0), "bigint": (19, 0)}
    if type_text in fixed:
        return fixed[type_text]
    match = re.fullmatch(r"numeric\((\d+)(?:,(\d+))?\)", type_text)
    if not match:
        return None
    scale = int(match[2] or 0)
    return int(match[1]) - scale, scale


# -- names --------------------------------------------------------------------------------------------


def fold_name(name: str) -> str:
    """A column or table name as people would write it in SQL without quotes: lower case, no blanks.

    At most 63 bytes, which is what PostgreSQL keeps of a name; a longer one is cut between characters
    and told apart by a hash. Names that differ may fold to one: `fold_names` keeps them apart.
    """
    normal = unicodedata.normalize("NFC", name).strip().lower()
    folded = re.sub(r"[^\w$]+", "_", normal) or "_"
    if folded[0].isdigit() or folded[0] == "$":
        folded = f"_{folded}"
    if folded in SYSTEM_COLUMNS:
        folded = f"{folded}_"
    if len(folded.encode()) > MAX_NAME_BYTES:
        return _with_hash(folded, name)
    return folded


def _with_hash(folded: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    cut = folded.encode()[: MAX_NAME_BYTES - 9].decode(errors="ignore")
    return f"{cut}_{digest}"


def fold_names(
    names: Iterable[str], known: Mapping[str, str], reserved: Collection[str] = ()
) -> dict[str, str]:
    """A column name for every source name: injective, at most 63 bytes, the same on every run.

    known: names that were given before (source name → column); they are kept.
    reserved: column names that are not to be given.

    Names that are already in their folded form come first, so a source that has both `id` and `ID`
    always keeps `id` for the former.
    """
    given = dict(known)
    taken = set(known.values()) | set(reserved)
    for name in sorted((n for n in names if n not in given), key=lambda n: (fold_name(n) != n, n)):
        folded = fold_name(name)
        if folded in taken:
            folded = _with_hash(folded, name)
        given[name] = folded
        taken.add(folded)
    return given


# -- tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the warehouse as it is now."""

    schema: str
    name: str
    #: type of each column, dw's own included; PROVISIONAL for one without a value so far
    columns: Mapping[str, str] = field(default_factory=dict)
    #: column of each source name
    names: Mapping[str, str] = field(default_factory=dict)
    #: made in this transaction: nobody else can see it yet
    created: bool = False

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name) if self.schema else sql.Identifier(self.name)


@dataclass(frozen=True)
class Change:
    """One change of a table's schema: in words, and the DDL that made it."""

    words: str
    ddl: sql.Composed


@contextlib.contextmanager
def transaction(engine: Engine | Connection) -> Iterator[Connection]:
    """A connection to work on: of its own and committed for an Engine, the caller's for a Connection."""
    from sqlalchemy import Engine

    if isinstance(engine, Engine):
        with engine.begin() as connection:
            yield connection
    else:
        if not engine.in_transaction():
            engine.begin()
        yield engine


def raw(connection: Connection) -> psycopg.Connection:
    """The psycopg connection beneath a SQLAlchemy one.

    What is done with it belongs to the transaction that the SQLAlchemy connection knows of, which begins
    here as it would with a statement: else its commit and rollback would do nothing.
    """
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def is_postgres(engine: Engine | Connection) -> bool:
    return engine.dialect.name == "postgresql"


def ensure_table_exists(
    engine: Engine | Connection, table_name: str, frame: pl.DataFrame, schema: str = "public"
) -> None:
    """Create the table that holds a frame, with dw's own columns, or add to it what it lacks.

    Column types follow the frame's dtypes (see the module's docstring); calling it again changes
    nothing. On SQLite, which has no schemas, `schema` is passed over.

    Raises SchemaRefused when the table cannot be made or changed.
    """
    with transaction(engine) as connection:
        if is_postgres(connection):
            ensure_table(raw(connection), schema, table_name, frame_types(frame, {}), frame)
        else:
            _ensure_sqlite_table(connection, table_name, frame)


def _ensure_sqlite_table(connection: Connection, table_name: str, frame: pl.DataFrame) -> None:
    from sqlalchemy import text

    quote = connection.dialect.identifier_preparer.quote_identifier
    types = {name: _sqlite_type(kind) for name, kind in frame_types(frame, {}).items()}
    columns = [f"{quote(name)} {kind}" for name, kind in types.items()]
    columns.append("_loaded_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP")
    columns += [f"{name} TEXT" for name in ("_source_file",) if name not in types]
    ddl = f"CREATE TABLE IF NOT EXISTS {quote(table_name)} ({', '.join(columns)})"
    connection.execute(text(ddl.replace(":", r"\:")))
    log.info("%s", ddl)


def _sqlite_type(kind: str) -> str:
    names = {"timestamptz": "TIMESTAMP WITH TIME ZONE", PROVISIONAL: "TEXT", "jsonb": "TEXT"}
    return names.get(kind, kind.upper())


def read_table(connection: psycopg.Connection, schema: str, name: str) -> Table | None:
    """The table as it stands, or None. Raises SchemaRefused for a view or the like of that name."""
    found = connection.execute(
        """
        select c.oid, c.relkind, to_regclass('etl_columns')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = %s and c.relname = %s
        """,
        (schema, name),
    ).fetchone()
    if found is None:
        return None
    oid, kind, catalogue = found
    if kind not in ("r", "p"):
        raise SchemaRefused(
            f"{schema}.{name} is not a table, so nothing can be loaded into it",
            hint="give the pipeline another target:, or drop it",
        )
    columns = connection.execute(
        """
        select attname, format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = %s and attnum > 0 and not attisdropped and attgenerated = '' order by attnum
        """,
        (oid,),
    ).fetchall()
    notes = _notes(connection, schema, name) if catalogue else []
    types = {column: canonical(kind) for column, kind in columns}
    names = {source: column for source, column, _ in notes if column in types}
    for _, column, provisional in notes:
        if provisional and types.get(column) == "text":
            types[column] = PROVISIONAL
    return Table(schema, name, types, names)


def _notes(connection: psycopg.Connection, schema: str, name: str) -> list[tuple[str, str, bool]]:
    """Source name, column and whether it has no value yet, of the columns of a table that dw has loaded."""
    return connection.execute(
        "select source_name, column_name, provisional from etl_columns"
        " where table_schema = %s and table_name = %s",
        (schema, name),
    ).fetchall()


def ensure_catalogue(connection: psycopg.Connection) -> None:
    """Make the tables in which dw keeps what it knows about columns and every DDL it ran."""
    found = connection.execute(
        "select to_regclass('etl_columns'), to_regclass('etl_schema_history')"
    ).fetchone()
    if found and None not in found:
        return
    connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
    connection.execute(
        """
        create table if not exists etl_columns (
            table_schema text not null, table_name text not null,
            source_name text not null, column_name text not null, provisional boolean not null,
            primary key (table_schema, table_name, source_name),
            unique (table_schema, table_name, column_name)
        )
        """
    )
    connection.execute(
        """
        create table if not exists etl_schema_history (
            id bigserial primary key, run_id text, table_schema text not null, table_name text not null,
            change text not null, ddl text not null, changed_at timestamptz not null default now()
        )
        """
    )


def ensure_table(
    connection: psycopg.Connection,
    schema: str,
    name: str,
    types: Mapping[str, str],
    frame: pl.DataFrame | None = None,
    run_id: str | None = None,
    complete: bool = True,
    updated: bool = False,
) -> tuple[Table, list[Change]]:
    """Create the table, or widen it, so that columns of these types (by source name) go into it.

    frame: the rows that come, which may show that a wider type is not needed after all.
    complete: False leaves RUN_COLUMNS out of a new table; `add_run_columns` adds them.
    updated: whether its rows will be updated in place: see ROOM.
    Returns the table as it is then, and what was changed; each change stands in etl_schema_history.
    """
    ensure_catalogue(connection)
    table = read_table(connection, schema, name)
    if table is None:
        return _create(connection, schema, name, types, run_id, complete, updated)
    return evolve(connection, table, types, frame, run_id)


def _create(
    connection: psycopg.Connection,
    schema: str,
    name: str,
    types: Mapping[str, str],
    run_id: str | None,
    complete: bool,
    updated: bool,
) -> tuple[Table, list[Change]]:
    table, change = new_table(schema, name, types, complete, updated)
    if schema != "public":
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
    run_ddl(connection, change.ddl, table)
    note_columns(connection, table)
    note_changes(connection, table, [change], run_id)
    return table, [change]


def new_table(
    schema: str, name: str, types: Mapping[str, str], complete: bool = True, updated: bool = False
) -> tuple[Table, Change]:
    """The table that `ensure_table` would make for these types, and how. Nothing is made."""
    names = fold_names(types, {}, OWN_COLUMNS)
    added = {name: kind for name, kind in ADDED_COLUMNS.items() if complete or name not in RUN_COLUMNS}
    columns = {names[source]: kind for source, kind in types.items()} | added
    table = Table(schema, name, columns, names, created=True)
    room = sql.SQL(ROOM if updated else "").format()
    ddl = sql.SQL("create table {} ({}){}").format(table.identifier, _definitions(columns), room)
    return table, Change(f"new table {name}", ddl)


def add_run_columns(
    connection: psycopg.Connection, table: Table, ingested_at: datetime, run_id: str | None
) -> Table:
    """Add RUN_COLUMNS to a table whose rows are all of this run. Returns the table as it is then.

    PostgreSQL keeps the value of a new column once, in its catalogue, not in each row that is there: taking
    rows in costs the server a quarter less than with these columns in them.
    """
    if set(RUN_COLUMNS) <= set(table.columns):
        return table
    values = {
        "_loaded_at": sql.SQL("now()"),
        "_ingested_at": sql.Literal(ingested_at),
        "_run_id": sql.Literal(run_id),
    }
    add = [
        sql.SQL("add column {} {} default {}").format(
            sql.Identifier(name), type_sql(ADDED_COLUMNS[name]), value
        )
        for name, value in values.items()
    ]
    keep = [
        sql.SQL("alter column {} drop default").format(sql.Identifier(name))
        for name in ("_ingested_at", "_run_id")
    ]
    ddl = sql.SQL("; ").join(
        sql.SQL("alter table {} {}").format(table.identifier, sql.SQL(", ").join(actions))
        for actions in (add, keep)
    )
    run_ddl(connection, ddl, table)
    note_changes(connection, table, [Change("where and when its rows came from", ddl)], run_id)
    return replace(table, columns=dict(table.columns) | {name: ADDED_COLUMNS[name] for name in RUN_COLUMNS})


def _definitions(columns: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}{}").format(
            sql.Identifier(name),
            type_sql(kind),
            sql.SQL(" default now()" if name == "_loaded_at" else ""),
        )
        for name, kind in columns.items()
    )


def type_sql(kind: str) -> sql.SQL:
    """A type's name as SQL. Raises SchemaRefused for text that is not the name of a type."""
    if kind == PROVISIONAL:
        return sql.SQL("text")
    if not re.fullmatch(r'[A-Za-z_"][\w ."$]*(\(\d+(, ?-?\d+)?\))?( with(out)? time zone)?(\[\d*\])*', kind):
        raise SchemaRefused(
            f"{kind!r} is not a type", hint="write it as PostgreSQL does, such as numeric(12,2)"
        )
    return sql.SQL(kind)


def evolve(
    connection: psycopg.Connection,
    table: Table,
    types: Mapping[str, str],
    frame: pl.DataFrame | None = None,
    run_id: str | None = None,
) -> tuple[Table, list[Change]]:
    """Add the columns a table lacks and widen those that are too narrow, in place."""
    grown, changes = planned(table, types, frame)
    for change in changes:
        run_ddl(connection, change.ddl, table)
    if grown != table:
        note_columns(connection, grown)
    note_changes(connection, grown, changes, run_id)
    return grown, changes


def planned(
    table: Table, types: Mapping[str, str], frame: pl.DataFrame | None = None
) -> tuple[Table, list[Change]]:
    """What `evolve` would do, without doing it: the table as it would be, and the changes."""
    names = names_for(table, types)
    columns = dict(table.columns)
    changes: list[Change] = []
    for column, kind in ADDED_COLUMNS.items():
        if column not in columns and not table.created:
            changes.append(_add_column(table, column, kind))
            columns[column] = kind
    for source, incoming in types.items():
        column = names[source]
        if column not in columns:
            changes.append(_add_column(table, column, incoming))
            columns[column] = incoming
            continue
        kind = wider(columns[column], incoming, _fits_double(frame, source))
        if kind != columns[column]:
            changes.append(_alter_column(table, column, columns[column], kind))
            columns[column] = kind
    return Table(table.schema, table.name, columns, {**table.names, **names}, table.created), changes


def names_for(table: Table, sources: Iterable[str]) -> dict[str, str]:
    """The column of each source name: as given before, or as it is in a table that dw did not make."""
    sources = list(sources)
    known = dict(table.names)
    taken = set(known.values()) | set(OWN_COLUMNS)
    for source in sources:
        for column in (source, fold_name(source)):
            if source not in known and column in table.columns and column not in taken:
                known[source] = column
                taken.add(column)
    given = fold_names(sources, known, [*table.columns, *OWN_COLUMNS])
    return {source: given[source] for source in sources}


def _fits_double(frame: pl.DataFrame | None, column: str) -> bool:
    if frame is None or column not in frame.columns or not frame.schema[column].is_integer():
        return False
    values = frame[column]
    low, high = values.min(), values.max()
    return low is None or (int(low) >= -EXACT_DOUBLE and int(high) <= EXACT_DOUBLE)  # type: ignore[arg-type]


def add_column(
    connection: psycopg.Connection, table: Table, column: str, kind: str, run_id: str | None
) -> Change:
    """Add a column of dw's own to a table, and write that down."""
    change = _add_column(table, column, kind)
    run_ddl(connection, change.ddl, table)
    note_changes(connection, table, [change], run_id)
    return change


def _add_column(table: Table, column: str, kind: str) -> Change:
    ddl = sql.SQL("alter table {} add column {}").format(table.identifier, _definitions({column: kind}))
    return Change(f"new column {column} ({_shown(kind)})", ddl)


def _alter_column(table: Table, column: str, existing: str, kind: str) -> Change:
    ddl = sql.SQL("alter table {} alter column {} type {} using {}").format(
        table.identifier, sql.Identifier(column), type_sql(kind), cast_sql(column, existing, kind)
    )
    return Change(f"column {column}: {_shown(existing)} is now {_shown(kind)}", ddl)


def _shown(kind: str) -> str:
    return "no value yet" if kind == PROVISIONAL else kind


def cast_sql(column: str, have: str, want: str) -> sql.Composable:
    """A column of one type as another, every value reading the same.

    A double becomes numeric through its text: the direct cast keeps 15 digits only.
    """
    name = sql.Identifier(column)
    if have == want or (have == PROVISIONAL and want == "text"):
        return name
    if base_type(want) == "numeric" and base_type(have) in ("double precision", "real"):
        return sql.SQL("{}::text::{}").format(name, type_sql(want))
    if have == "date" and want == "timestamptz":
        return sql.SQL("({}::timestamp at time zone 'UTC')").format(name)
    return sql.SQL("{}::{}").format(name, type_sql(want))


def run_ddl(connection: psycopg.Connection, ddl: sql.SQL | sql.Composed, table: Table) -> None:
    """Run one DDL statement. Raises SchemaRefused with what stands in the way."""
    try:
        connection.execute(ddl)
        crashpoints.reached("ddl")
    except psycopg.errors.LockNotAvailable as error:
        raise SchemaRefused(
            f"{table.schema}.{table.name} is in use, so its columns cannot be changed now",
            why="other sessions hold it for longer than lock_timeout",
            hint="run it again when they are done",
        ) from error
    except psycopg.errors.FeatureNotSupported as error:
        raise SchemaRefused(
            f"{table.schema}.{table.name} cannot change: something depends on the column",
            why=error.diag.message_primary or "",
            hint="drop the view, run it again, and make the view anew",
        ) from error
    except psycopg.Error as error:
        raise trouble(error, table.name) or SchemaRefused(
            f"{table.schema}.{table.name} cannot be made or changed",
            why=error.diag.message_primary or str(error),
        ) from error
    log.info("%s", ddl.as_string(connection))


def note_columns(connection: psycopg.Connection, table: Table) -> None:
    """Keep which source name became which column, and which columns have no value yet."""
    if not table.schema:
        return
    rows = [
        (table.schema, table.name, source, column, table.columns.get(column) == PROVISIONAL)
        for source, column in table.names.items()
    ]
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into etl_columns (table_schema, table_name, source_name, column_name, provisional)"
            " values (%s, %s, %s, %s, %s) on conflict (table_schema, table_name, source_name)"
            " do update set column_name = excluded.column_name, provisional = excluded.provisional"
            " where (etl_columns.column_name, etl_columns.provisional)"
            " is distinct from (excluded.column_name, excluded.provisional)",
            rows,
        )


def note_changes(
    connection: psycopg.Connection, table: Table, changes: Sequence[Change], run_id: str | None
) -> None:
    """Keep every DDL, with the run that made it. Temporary tables are nobody's business."""
    for change in changes if table.schema else ():
        connection.execute(
            "insert into etl_schema_history (run_id, table_schema, table_name, change, ddl)"
            " values (%s, %s, %s, %s, %s)",
            (run_id, table.schema, table.name, change.words, change.ddl.as_string(connection)),
        )

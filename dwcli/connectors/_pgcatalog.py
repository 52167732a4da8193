"""What PostgreSQL's catalogue says: types and how they travel, tables and their keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dwcli.connectors._catalog import cursor_candidates
from dwcli.contract import Column, Resource
from dwcli.documents import nearest
from dwcli.errors import ResourceMissing

if TYPE_CHECKING:
    import psycopg

    from dwcli.connectors._pgcopy import Kind

    Session = psycopg.Connection[tuple[Any, ...]]

# -- types -------------------------------------------------------------------------------------------

#: Types that the decoder knows, by the server's own number for them.
BINARY: Mapping[int, tuple[Kind, str]] = {
    16: ("bool", "boolean"),
    17: ("bytea", "bytea"),
    19: ("text", "text"),  # name
    20: ("int8", "bigint"),
    21: ("int2", "bigint"),
    23: ("int4", "bigint"),
    25: ("text", "text"),
    26: ("oid", "bigint"),
    114: ("text", "json"),
    700: ("float4", "real"),
    701: ("float8", "double precision"),
    1042: ("text", "text"),  # character(n)
    1043: ("text", "text"),  # character varying(n)
    1082: ("date", "date"),
    1083: ("time", "time"),
    1114: ("timestamp", "timestamptz"),
    1184: ("timestamptz", "timestamptz"),
    2950: ("uuid", "uuid"),
    3802: ("jsonb", "jsonb"),
}
NUMERIC = 1700
#: The first number that PostgreSQL gives to types that are not its own.
FIRST_FOREIGN = 16_384

#: Types that any warehouse has and that mean the same there; they travel as text.
PORTABLE = re.compile(
    r"(inet|cidr|macaddr8?|interval.*|time.* with time zone|bit.*|point|line|lseg|box|path|polygon|circle"
    r"|tsvector|tsquery|jsonpath|xml|pg_lsn|xid8?|cid|tid|txid_snapshot|pg_snapshot"
    r"|(int[48]|num|ts|tstz|date)(multi)?range)"
)
#: Elements that an array may have to keep its type.
PORTABLE_ELEMENT = re.compile(
    PORTABLE.pattern
    + r"|boolean|bytea|smallint|integer|bigint|oid|real|double precision|numeric.*|character.*|text|name"
    r"|date|time.*|timestamp.*|uuid|jsonb?"
)


@dataclass(frozen=True)
class SourceType:
    """A type as the source's catalogue has it. `oid`, `modifier`, `name`: domains already taken off."""

    declared: str
    oid: int
    modifier: int
    name: str
    #: an array's elements, domains taken off; 0 where it is none
    element_oid: int
    #: typtype of the elements: b(ase), c(omposite), e(num), r(ange), …
    element_group: str
    element_name: str


@dataclass(frozen=True)
class Plan:
    """How a column travels: cast to `cast` by the server ("" for none), decoded as `kind`."""

    kind: Kind
    #: its type in the warehouse
    type: str
    cast: str = ""
    precision: int | None = None
    scale: int | None = None


TYPES_QUERY = """
WITH RECURSIVE given AS (
    SELECT type, modifier, n
    FROM unnest(%(types)s::oid[], %(modifiers)s::int4[]) WITH ORDINALITY AS g(type, modifier, n)
), base(n, type, modifier) AS (
    SELECT n, type, modifier FROM given
    UNION ALL
    SELECT b.n, t.typbasetype, t.typtypmod
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype = 'd'
), element(n, type, modifier) AS (
    SELECT b.n, t.typelem, b.modifier
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typelem <> 0 AND t.typcategory = 'A'
    UNION ALL
    SELECT e.n, t.typbasetype, t.typtypmod
    FROM element e JOIN pg_catalog.pg_type t ON t.oid = e.type AND t.typtype = 'd'
)
SELECT g.type, g.modifier, pg_catalog.format_type(g.type, g.modifier),
       b.type, b.modifier, pg_catalog.format_type(b.type, b.modifier),
       coalesce(e.type, 0), coalesce(et.typtype::text, ''),
       coalesce(pg_catalog.format_type(e.type, e.modifier), '')
FROM given g
JOIN base b ON b.n = g.n JOIN pg_catalog.pg_type bt ON bt.oid = b.type AND bt.typtype <> 'd'
LEFT JOIN (element e JOIN pg_catalog.pg_type et ON et.oid = e.type AND et.typtype <> 'd') ON e.n = g.n
"""


def source_types(connection: Session, pairs: set[tuple[int, int]]) -> dict[tuple[int, int], SourceType]:
    """What the catalogue knows about these (type, modifier) pairs."""
    ordered = sorted(pairs)
    rows = connection.execute(
        TYPES_QUERY,
        {"types": [oid for oid, _ in ordered], "modifiers": [modifier for _, modifier in ordered]},
    ).fetchall()
    return {(row[0], row[1]): SourceType(*row[2:]) for row in rows}


def plan_of(source: SourceType) -> Plan:
    """How a column of this type travels, and what it becomes in the warehouse."""
    if source.oid in BINARY:
        kind, warehouse = BINARY[source.oid]
        return Plan(kind, warehouse)
    if source.oid == NUMERIC:
        return _numeric_plan(source)
    if source.name == "money":  # its text depends on the server's locale
        return Plan("numeric", "numeric", cast="numeric")
    if source.name == "hstore" or source.name.endswith(".hstore"):
        return Plan("jsonb", "jsonb", cast="jsonb")
    return Plan("text", _text_type(source), cast="text")


def _numeric_plan(source: SourceType) -> Plan:
    if source.modifier < 0:
        return Plan("numeric", "numeric")
    precision, scale = (source.modifier - 4) >> 16, (source.modifier - 4) & 0x7FF
    if precision <= 38 and scale <= precision:
        return Plan("numeric", source.name, precision=precision, scale=scale)
    return Plan("text", source.name, cast="text")


def _text_type(source: SourceType) -> str:
    """The warehouse type of a value that travels as text."""
    if source.element_oid:
        if source.element_group == "e":
            return "text[]"
        known = source.element_oid < FIRST_FOREIGN and PORTABLE_ELEMENT.fullmatch(source.element_name)
        return f"{source.element_name}[]" if known else "text"
    if source.oid < FIRST_FOREIGN and PORTABLE.fullmatch(source.name):
        return source.name
    return "text"


# -- the catalogue -----------------------------------------------------------------------------------

KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}

RELATIONS_QUERY = """
SELECT c.oid, n.nspname, c.relname,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), c.relkind::text,
       CASE WHEN c.relkind = 'p' THEN parts.rows WHEN c.relkind IN ('r', 'm', 'f') THEN c.reltuples END,
       CASE WHEN c.relkind = 'p' THEN parts.bytes
            WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_relation_size(c.oid) END
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT sum(leaf.reltuples) AS rows, sum(pg_catalog.pg_relation_size(leaf.oid)) AS bytes
    FROM pg_catalog.pg_partition_tree(c.oid) tree
    JOIN pg_catalog.pg_class leaf ON leaf.oid = tree.relid
    WHERE c.relkind = 'p' AND tree.isleaf AND leaf.reltuples >= 0
) parts ON true
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND CASE WHEN %(oid)s::oid IS NULL
           THEN n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT c.relispartition
                AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
           ELSE c.oid = %(oid)s END
ORDER BY n.nspname, c.relname
"""

COLUMNS_QUERY = """
SELECT attrelid, attname, atttypid, atttypmod, attnotnull
FROM pg_catalog.pg_attribute
WHERE attrelid = ANY(%(oids)s::oid[]) AND attnum > 0 AND NOT attisdropped
ORDER BY attrelid, attnum
"""

#: Indexes of whole columns over all rows; a primary key first, then the narrowest.
INDEXES_QUERY = """
SELECT i.indrelid, c.relname, i.indisprimary, i.indisunique AND i.indimmediate, k.names, k.not_null
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY key.place) AS names, bool_and(a.attnotnull) AS not_null
    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS key(number, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.number
    WHERE key.place <= i.indnkeyatts
) k
WHERE i.indrelid = ANY(%(oids)s::oid[]) AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indrelid, NOT i.indisprimary, i.indnkeyatts, c.relname
"""


def resources(connection: Session, oid: int | None) -> list[Resource]:
    """One relation, or (None) all that the role may read; a parent stands for its partitions.

    Four queries, however many relations there are, and no table is read.
    """
    relations = connection.execute(RELATIONS_QUERY, {"oid": oid}).fetchall()
    oids = {"oids": [row[0] for row in relations]}
    attributes = connection.execute(COLUMNS_QUERY, oids).fetchall()
    indexes = connection.execute(INDEXES_QUERY, oids).fetchall()
    types = source_types(connection, {(row[2], row[3]) for row in attributes})

    columns: dict[int, list[Column]] = {row[0]: [] for row in relations}
    for relation, name, type_oid, modifier, not_null in attributes:
        columns[relation].append(column_of(name, types[type_oid, modifier], not not_null))
    keys: dict[int, tuple[tuple[str, ...], str]] = {}
    leading: dict[int, set[str]] = {}
    for relation, index, primary, unique, names, not_null in indexes:
        leading.setdefault(relation, set()).add(names[0])
        if unique and not_null:
            reason = "primary key in the source" if primary else f"unique index {index}, never null"
            keys.setdefault(relation, (tuple(names), reason))

    found: list[Resource] = []
    for relation, _, _, name, kind, rows, size in relations:
        key, reason = keys.get(relation, ((), ""))
        known = tuple(columns[relation])
        found.append(
            Resource(
                name=name,
                columns=known,
                primary_key=key,
                key_reason=reason,
                row_estimate=int(rows) if rows is not None and rows >= 0 else None,
                bytes_estimate=int(size) if size is not None else None,
                cursors=cursor_candidates(known, key, leading.get(relation, ())),
                kind=KINDS[kind],
            )
        )
    return found


def never_null(connection: Session, oid: int) -> frozenset[str]:
    """The columns of a table that are declared NOT NULL."""
    rows = connection.execute(COLUMNS_QUERY, {"oids": [oid]}).fetchall()
    return frozenset(row[1] for row in rows if row[4])


def column_of(name: str, source: SourceType, nullable: bool) -> Column:
    """A column as the warehouse will have it."""
    return Column(name, plan_of(source).type, nullable, source.declared)


# -- names -------------------------------------------------------------------------------------------

#: One part of a table's name: in double quotes, or anything without dots and quotes.
PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".]+?))\s*(\.|$)')

FIND_QUERY = """
SELECT c.oid, n.nspname, c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname = ANY(%(names)s)
  AND CASE WHEN %(schemas)s::text[] IS NULL THEN pg_catalog.pg_table_is_visible(c.oid)
           ELSE n.nspname = ANY(%(schemas)s) END
ORDER BY n.nspname <> %(schema)s, c.relname <> %(name)s
LIMIT 1
"""


def find_table(connection: Session, query: str) -> tuple[int, str, str]:
    """(oid, schema, name) of `schema.table`, or of a bare name on the search path; quoted or not.

    A name without quotes is looked for as it is written, then in lower case.
    Raises ResourceMissing with the nearest name.
    """
    *schemas, (name, names) = _name_parts(query)
    schema, schema_names = schemas[-1] if schemas else ("", None)
    row = connection.execute(
        FIND_QUERY, {"schema": schema, "schemas": schema_names, "name": name, "names": names}
    ).fetchone()
    if row is None:
        raise _missing(connection, query, bare=not schemas)
    return row[0], row[1], row[2]


def _name_parts(query: str) -> list[tuple[str, list[str]]]:
    """Each part of a dotted name, with the spellings it may have in the catalogue."""
    parts: list[tuple[str, list[str]]] = []
    at = 0
    while at < len(query):
        match = PART.match(query, at)
        if match is None:
            return [(query, [query])]
        quoted, plain, _ = match.groups()
        name = quoted.replace('""', '"') if quoted else plain
        parts.append((name, [name] if quoted else [name, name.lower()]))
        at = match.end()
    return parts or [("", [""])]


def _missing(connection: Session, query: str, bare: bool) -> ResourceMissing:
    rows = connection.execute(RELATIONS_QUERY, {"oid": None}).fetchall()
    qualified = {row[3]: row[3] for row in rows}
    by_name = {row[2]: row[3] for row in rows} if bare else {}
    close = nearest(query.strip(), [*by_name, *qualified])
    suggestion = next(
        (by_name.get(name, name) for name in [*by_name, *qualified] if f"'{name}'" in close), ""
    )
    return ResourceMissing(
        f"there is no table or view {query.strip()}."
        + (f" Did you mean '{suggestion}'?" if suggestion else ""),
        hint="give schema.table, or a SELECT",
    )

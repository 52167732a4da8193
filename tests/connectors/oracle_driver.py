"""What Oracle's driver gives and takes, without a server behind it.

The types are the driver's own. A NUMBER that nobody asked to have as a Decimal comes as a float where it has
places, a time loses its nanoseconds and its zone, an empty string is NULL and a LOB is a locator: so does the
driver, and a connector that does not ask for better fails here as it would there.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from types import SimpleNamespace

import oracledb


def column(name, type_code, precision=None, scale=None, null_ok=True, internal_size=None):
    """The head of a result's column, as `cursor.description` has it."""
    return SimpleNamespace(
        name=name, type_code=type_code, type=type_code, precision=precision, scale=scale, null_ok=null_ok,
        internal_size=internal_size,
    )  # fmt: skip


class Locator:
    """A LOB: not what is in it."""


def error(code, text):
    """An error of the server, such as ORA-00942."""
    return oracledb.DatabaseError(SimpleNamespace(full_code=code, message=f"{code}: {text}"))


class Database:
    """Tables of one schema, and every statement that was run."""

    def __init__(self):
        self.tables = {}
        self.catalogue = {}
        self.statements = []
        self.fails = None
        self.open = 0
        self.cancelled = 0

    def add(self, name, columns, rows, catalogue=(), key=(), indexed=()):
        """rows: what the server holds; catalogue: rows of ALL_TAB_COLUMNS without the table's name."""
        self.tables[name] = (columns, rows)
        self.catalogue[name] = (catalogue, key, indexed)

    def connect(self, **arguments):
        self.open += 1
        return Connection(self)


class Connection:
    def __init__(self, database):
        self.database = database
        self.username = "shop"
        self.closed = False
        self.cancelled = False

    def cursor(self):
        return Cursor(self)

    def ping(self):
        if self.closed:
            raise error("DPY-1001", "not connected to database")

    def cancel(self):
        self.cancelled = True
        self.database.cancelled += 1

    def close(self):
        self.closed = True
        self.database.open -= 1


class Cursor:
    def __init__(self, connection):
        self.connection = connection
        self.database = connection.database
        self.arraysize = 100
        self.outputtypehandler = None
        self.description = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def var(self, kind, arraysize=1):
        return SimpleNamespace(kind=kind)

    def execute(self, sql, parameters=None, **named):
        parameters = parameters or named
        self.database.statements.append((" ".join(sql.split()), parameters))
        if self.database.fails:
            raise self.database.fails
        if "all_" in sql:
            self.rows = self.looked_up(sql, parameters["owner"])
        elif sql.startswith("SELECT"):
            name = next((n for n in self.database.tables if f'"{n}"' in sql or f"FROM {n}" in sql), None)
            if name is None:
                raise error("ORA-00942", "table or view does not exist")
            columns, rows = self.database.tables[name]
            head = sql.partition(" FROM ")[0]
            if "*" not in head:
                columns, rows = self.chosen(head, columns, rows)
            self.description = columns
            self.rows = [] if "1 = 0" in sql else rows
        self.place = 0
        ask = self.outputtypehandler or (lambda cursor, column: None)
        self.fetched = [ask(self, column) for column in self.description or ()]

    def chosen(self, head, columns, rows):
        """The columns that a SELECT names, in the type that its function around one makes of it."""
        places = [p for p, c in enumerate(columns) if f'AS "{c.name}"' in head]
        picked = []
        for place in places:
            made = columns[place]
            if f'TO_CHAR(dw."{made.name}"' in head or f'TO_CHAR(SYS_EXTRACT_UTC(dw."{made.name}")' in head:
                made = column(made.name, oracledb.DB_TYPE_VARCHAR, internal_size=64)
            if f'JSON_SERIALIZE(dw."{made.name}" RETURNING CLOB)' in head:
                made = column(made.name, oracledb.DB_TYPE_CLOB)
            picked.append(made)
        return picked, [tuple(row[place] for place in places) for row in rows]

    def looked_up(self, sql, owner):
        if owner != "SHOP":
            return []
        catalogue = self.database.catalogue
        if "all_objects" in sql:
            return [
                ("SHOP", name, "TABLE", len(self.database.tables[name][1]), 1) for name in sorted(catalogue)
            ]
        if "all_tab_columns" in sql:
            return [(name, *facts) for name, (columns, *_) in catalogue.items() for facts in columns]
        if "all_constraints" in sql:
            return [(name, "PK", "P", part) for name, (_, key, _) in catalogue.items() for part in key]
        return [(name, part) for name, (*_, indexed) in catalogue.items() for part in indexed]

    def fetchall(self):
        return self.rows

    def fetchmany(self, count):
        if self.database.fails:
            raise self.database.fails
        if self.connection.cancelled:
            raise error("ORA-01013", "user requested cancel of current operation")
        found = self.rows[self.place : self.place + count]
        self.place += len(found)
        heads = list(zip(self.description, self.fetched, strict=True))
        return [tuple(given(value, *head) for value, head in zip(row, heads, strict=True)) for row in found]


def given(value, column, var):
    """A value as the driver gives it, for a column of this type and what was asked for it."""
    kind = column.type_code
    if value is None or value == "":
        return None
    if kind is oracledb.DB_TYPE_NUMBER:
        if var is not None:
            assert var.kind is Decimal
            return Decimal(value)
        return int(value) if column.scale == 0 else float(value)
    if kind in (oracledb.DB_TYPE_CLOB, oracledb.DB_TYPE_NCLOB, oracledb.DB_TYPE_BLOB):
        return value if var is not None else Locator()
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None)
    return value

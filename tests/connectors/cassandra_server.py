"""A server that speaks the CQL binary protocol, version 4, for tests: what Cassandra answers to a reader.

It knows STARTUP, OPTIONS, REGISTER, AUTH_RESPONSE, QUERY, PREPARE and EXECUTE with paging, the tables of
`system` and `system_schema` that a client asks, and SELECT without more than equality in its WHERE.
Values are encoded by the driver's own types. It is written from the protocol's specification
(native_protocol_v4.spec), and is no proof that Cassandra does the same.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import uuid
from dataclasses import dataclass, field

from cassandra import cqltypes
from cassandra.protocol import ResultMessage

CODES = {kind.typename: code for code, kind in ResultMessage.type_codes.items() if hasattr(kind, "typename")}
STARTUP, OPTIONS, QUERY, PREPARE, EXECUTE, REGISTER, AUTH_RESPONSE = 1, 5, 7, 9, 10, 11, 15
ERROR, READY, AUTHENTICATE, SUPPORTED, RESULT, AUTH_SUCCESS = 0, 2, 3, 6, 8, 16
BAD_CREDENTIALS, PROTOCOL_ERROR, SYNTAX_ERROR, UNAUTHORIZED, INVALID = 0x0100, 0x000A, 0x2000, 0x2100, 0x2200
SELECT = re.compile(
    r'(?is)\s*select\s+(?P<what>.+?)\s+from\s+(?P<table>"?[\w$ .]+"?(?:\."[^"]+"|\.\w+)?)'
    r"(?:\s+where\s+(?P<where>.+?))?(?:\s+limit\s+\d+)?\s*\Z"
)


def parsed(text, udts):
    """The driver's type for CQL's name of it."""
    head, _, rest = text.strip().partition("<")
    if head in udts:
        names, kinds = zip(*udts[head], strict=True)
        types = tuple(parsed(kind, udts) for kind in kinds)
        return cqltypes.UserType.make_udt_class("ks", head, names, types)
    if not rest:
        return next(k for k in ResultMessage.type_codes.values() if getattr(k, "typename", "") == head)
    parts, depth = [""], 0
    for letter in rest[:-1]:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    inner = [parsed(part, udts) for part in parts]
    if head == "frozen":
        return inner[0]
    kinds = {"list": "ListType", "set": "SetType", "map": "MapType", "tuple": "TupleType"}
    return getattr(cqltypes, kinds[head]).apply_parameters(tuple(inner))


@dataclass
class Table:
    """Columns as name → CQL type, and rows of Python values, or of bytes as they are stored."""

    columns: dict
    rows: list
    key: tuple = ()
    clustering: tuple = ()


@dataclass
class Server:
    """Its keyspaces are keyspace → table → Table; `password` makes it ask for the user `reader`."""

    keyspaces: dict
    udts: dict = field(default_factory=dict)
    password: str = ""
    #: tables that the user may not read
    forbidden: tuple = ()
    #: connections are closed in place of the page of this number
    cut_at_page: int | None = None
    pages: list = field(default_factory=list)

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = []
        self.prepared = {}
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._cut()

    def _cut(self):
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, ConnectionError), connection, connection.makefile("rb") as stream:
            while len(head := stream.read(9)) == 9:
                version, _, number, opcode, length = struct.unpack(">BBhBi", head)
                body = stream.read(length)
                if version != 4:
                    kind, answer = (
                        ERROR,
                        error(PROTOCOL_ERROR, f"Invalid or unsupported protocol version ({version})"),
                    )
                else:
                    kind, answer = self._answer(opcode, body)
                if kind is None:
                    return self._cut()
                connection.sendall(struct.pack(">BBhBi", 0x84, 0, number, kind, len(answer)) + answer)

    def _answer(self, opcode, body):
        match opcode:
            case 5:
                version = string("CQL_VERSION") + struct.pack(">H", 1) + string("3.4.5")
                return SUPPORTED, struct.pack(">H", 2) + version + string("COMPRESSION") + struct.pack(
                    ">H", 0
                )
            case 1 if self.password:
                return AUTHENTICATE, string("org.apache.cassandra.auth.PasswordAuthenticator")
            case 1 | 11:
                return READY, b""
            case 15:
                if body[4:] == b"\0reader\0" + self.password.encode():
                    return AUTH_SUCCESS, struct.pack(">i", -1)
                return ERROR, error(BAD_CREDENTIALS, "Provided username reader and/or password are incorrect")
            case 7:
                (size,) = struct.unpack(">i", body[:4])
                return self._select(body[4 : 4 + size].decode(), body[4 + size :])
            case 9:
                return self._prepare(body[4:].decode())
            case 10:
                (size,) = struct.unpack(">H", body[:2])
                return self._select(self.prepared[body[2 : 2 + size]], body[2 + size :])
        return ERROR, error(PROTOCOL_ERROR, f"no such opcode {opcode}")

    def _prepare(self, cql):
        found = self._found(cql)
        if len(found) == 2:
            return found
        name = uuid.uuid5(uuid.NAMESPACE_URL, cql).bytes
        self.prepared[name] = cql
        keyspace, table, columns, _ = found
        none = struct.pack(">iii", 0, 0, 0)
        return RESULT, struct.pack(">iH", 4, len(name)) + name + none + metadata(
            keyspace, table, columns, None
        )

    def _select(self, cql, rest):
        found = self._found(cql)
        if len(found) == 2:
            return found
        keyspace, table, columns, rows = found
        _, flags = struct.unpack(">HB", rest[:3])
        place, size, start = 3, len(rows), 0
        if flags & 4:
            (size,) = struct.unpack(">i", rest[place : place + 4])
            place += 4
        if flags & 8:
            start = int(rest[place + 4 : place + 4 + struct.unpack(">i", rest[place : place + 4])[0]])
        part = rows[start : start + size]
        if keyspace not in ("system", "system_schema"):
            self.pages.append(len(part))
            if self.cut_at_page is not None and len(self.pages) > self.cut_at_page:
                return None, b""
        state = str(start + size).encode() if start + size < len(rows) else None
        kinds = [kind for _, kind in columns]
        cells = b"".join(cell(value, kind) for row in part for value, kind in zip(row, kinds, strict=True))
        head = struct.pack(">i", 2) + metadata(keyspace, table, columns, state)
        return RESULT, head + struct.pack(">i", len(part)) + cells

    def _found(self, cql):
        """Keyspace, table, columns and rows that a SELECT means; or an error."""
        match = SELECT.match(cql)
        if match is None:
            return ERROR, error(SYNTAX_ERROR, "line 1:0 no viable alternative")
        keyspace, dot, name = match["table"].replace('"."', '"\0"').replace('".', '"\0').partition("\0")
        if not dot:
            keyspace, dot, name = match["table"].partition(".")
        keyspace, name = (unquoted(part) for part in ((keyspace, name) if dot else ("ks", keyspace)))
        table = self._tables(keyspace).get(name)
        if table is None:
            return ERROR, error(INVALID, f"unconfigured table {name}")
        if name in self.forbidden:
            return ERROR, error(
                UNAUTHORIZED, f"User reader has no SELECT permission on <table {keyspace}.{name}>"
            )
        what = match["what"].strip()
        wanted = (
            list(table.columns)
            if what == "*"
            else [unquoted(w) for w in re.findall(r'"(?:[^"]|"")*"|[^,\s]+', what)]
        )
        missing = [column for column in wanted if column not in table.columns]
        if missing:
            return ERROR, error(INVALID, f"Undefined column name {missing[0]} in table {keyspace}.{name}")
        rows = table.rows
        for column, value in re.findall(r"(\w+)\s*=\s*'((?:[^']|'')*)'", match["where"] or ""):
            place = list(table.columns).index(column)
            rows = [row for row in rows if row[place] == value.replace("''", "'")]
        places = [list(table.columns).index(column) for column in wanted]
        columns = [(column, parsed(table.columns[column], self.udts)) for column in wanted]
        return keyspace, name, columns, [[row[place] for place in places] for row in rows]

    def _tables(self, keyspace):
        tables = {(k, t): table for k, found in self.keyspaces.items() for t, table in found.items()}
        if keyspace == "system":
            return SYSTEM
        if keyspace != "system_schema":
            return self.keyspaces.get(keyspace, {})
        texts = {"keyspace_name": "text", "table_name": "text"}
        described = texts | {"column_name": "text", "kind": "text", "position": "int", "type": "text"}
        rows = [
            [k, t, name, *role(table, name), kind]
            for (k, t), table in tables.items()
            for name, kind in sorted(table.columns.items())
        ]
        return {
            "keyspaces": Table({"keyspace_name": "text"}, [["system"], *([k] for k in self.keyspaces)]),
            "tables": Table(texts, [list(name) for name in tables]),
            "views": Table({"keyspace_name": "text", "view_name": "text"}, []),
            "columns": Table(described, rows),
        }


def role(table, name):
    if name in table.key:
        return "partition_key", table.key.index(name)
    if name in table.clustering:
        return "clustering", table.clustering.index(name)
    return "regular", -1


SYSTEM = {
    "local": Table(
        {
            "key": "text", "cluster_name": "text", "data_center": "text", "rack": "text",
            "partitioner": "text", "release_version": "text", "host_id": "uuid", "schema_version": "uuid",
            "rpc_address": "inet", "broadcast_address": "inet", "listen_address": "inet",
            "tokens": "set<text>",
        },
        [
            [
                "local", "stand-in", "dc1", "r1", "org.apache.cassandra.dht.Murmur3Partitioner", "4.0.0",
                uuid.UUID(int=1), uuid.UUID(int=2), "127.0.0.1", "127.0.0.1", "127.0.0.1", {"0"},
            ]
        ],
    ),
    "peers": Table(
        {
            "peer": "inet", "host_id": "uuid", "data_center": "text", "rack": "text", "rpc_address": "inet",
            "release_version": "text", "schema_version": "uuid", "tokens": "set<text>",
        },
        [],
    ),
}  # fmt: skip


def unquoted(name):
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def string(text):
    return struct.pack(">H", len(text.encode())) + text.encode()


def error(code, message):
    return struct.pack(">i", code) + string(message)


def cell(value, kind):
    raw = value if value is None or isinstance(value, Stored) else kind.to_binary(value, 4)
    return struct.pack(">i", -1) if raw is None else struct.pack(">i", len(raw)) + raw


class Stored(bytes):
    """A value as it is stored, which the driver cannot encode."""


def metadata(keyspace, table, columns, state):
    flags = 1 | (2 if state is not None else 0)
    paging = b"" if state is None else struct.pack(">i", len(state)) + state
    head = struct.pack(">ii", flags, len(columns)) + paging + string(keyspace) + string(table)
    return head + b"".join(string(name) + option(kind) for name, kind in columns)


def option(kind):
    if getattr(kind, "fieldnames", None):
        fields = b"".join(
            string(name) + option(inner) for name, inner in zip(kind.fieldnames, kind.subtypes, strict=True)
        )
        return (
            struct.pack(">H", 0x30)
            + string("ks")
            + string(kind.typename)
            + struct.pack(">H", len(kind.fieldnames))
            + fields
        )
    code = struct.pack(">H", CODES[kind.typename])
    inner = b"".join(map(option, kind.subtypes or ()))
    return code + (struct.pack(">H", len(kind.subtypes)) if kind.typename == "tuple" else b"") + inner

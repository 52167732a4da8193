"""Receive a COPY from the socket itself, beneath libpq.

libpq hands out a COPY row by row, and at a million rows a second that is most of what reading costs.
Here the server's messages are received into the batch's own buffer, and the places of all its rows are
found at once. psycopg opens the connection and logs in as ever; this takes over for one statement, on
connections that nothing encrypts.

Messages and their fields: PostgreSQL documentation, "Message Formats" (protocol version 3).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from dwcli.connectors._pgwire import LARGEST_BATCH, SIGNATURE, TRAILER, Batch

#: A message is a byte that names it, an int32 with the length of itself and the rest, and the rest.
HEAD = struct.Struct(">ci")
ROW = ord("d")
#: How a server says that it has nothing more to say; the byte after it is the transaction's status.
READY = b"Z\0\0\0\x05"
CHUNK = 1 << 15
#: How long a server may think about a query. A dead one is noticed sooner, by TCP keepalives.
SILENCE_SECONDS = 86_400.0

Places = NDArray[np.int64]


def is_plain(connection: psycopg.Connection[Any]) -> bool:
    """Whether the connection carries the protocol as it is, wrapped in neither TLS nor Kerberos."""
    pgconn = connection.pgconn
    return not pgconn.ssl_in_use and not pgconn.used_gssapi


def copy_out(
    connection: psycopg.Connection[Any], statement: bytes, batch_bytes: int, slack: int
) -> Iterator[Batch]:
    """Run `COPY … TO STDOUT (FORMAT binary)`: batches of (buffer, starts, ends) of rows.

    None is empty but the only one of an empty result.

    slack: bytes to leave after the last row of a buffer.

    Raises psycopg.Error: what the server reported, or OperationalError when the stream ends before its
    trailer or with fewer rows than the server counted. After an error the session is of no more use.
    """
    wire = socket.socket(fileno=os.dup(connection.pgconn.socket))
    wire.settimeout(SILENCE_SECONDS)  # a timeout also keeps the socket non-blocking, as libpq has it
    finished = False
    try:
        wire.sendall(_request(statement))
        yield from _batches(wire, min(batch_bytes, LARGEST_BATCH), slack)
        finished = True
    except OSError as error:
        raise psycopg.OperationalError(str(error)) from error
    finally:
        wire.close()
        if not finished:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=2)


def _request(statement: bytes) -> bytes:
    """Parse, Bind, Execute, Sync: the extended protocol takes exactly one statement."""
    parts = (
        (b"P", b"\0" + statement + b"\0\0\0"),
        (b"B", b"\0\0\0\0\0\0\0\0"),
        (b"E", b"\0\0\0\0\0"),
        (b"S", b""),
    )
    return b"".join(HEAD.pack(kind, len(body) + 4) + body for kind, body in parts)


def _batches(wire: socket.socket, limit: int, slack: int) -> Iterator[Batch]:
    fields, first = _beginning(wire)
    buffer = bytearray(limit + CHUNK + slack)
    filled = len(first)
    buffer[:filled] = first
    received, counted, trailer, ready = 0, -1, False, False
    while not ready:
        buffer, filled = _fill(wire, buffer, filled, limit, slack)
        found: list[tuple[Places, Places]] = []
        at = 0
        while True:
            starts, ends, at = _rows(buffer, at, filled, fields)
            if len(starts):
                found.append((starts, ends))
            message = _message_at(buffer, at, filled)
            if message is None:
                break
            kind, body, at = message
            if kind == b"d":
                trailer = body == TRAILER
            elif kind == b"C":
                counted = int(body.rstrip(b"\0").split()[-1])
            elif kind == b"E":
                raise _error(body)
            ready = kind == b"Z"
        rest = buffer[at:filled]
        if found:
            starts, ends = (np.concatenate(places) for places in zip(*found, strict=True))
            received += len(starts)
            yield buffer, starts, ends
            buffer = bytearray(max(limit, len(rest)) + CHUNK + slack)  # the rows' text stays in the old one
        filled = len(rest)
        buffer[:filled] = rest
    if not trailer or counted != received:
        raise psycopg.OperationalError(f"the stream ended after {received} of {counted} rows")
    if not received:
        yield bytearray(slack), np.empty(0, np.int64), np.empty(0, np.int64)


def _beginning(wire: socket.socket) -> tuple[int, bytes]:
    """How many fields a row has, and the first row's message, if it came with the file's header."""
    fields = 0
    while True:
        kind, length = HEAD.unpack(_exactly(wire, HEAD.size))
        body = _exactly(wire, length - 4)
        if kind == b"E":
            raise _error(body)
        if kind == b"H":
            (fields,) = struct.unpack_from(">h", body, 1)
        elif kind == b"d":
            start = len(SIGNATURE)
            if body[:start] != SIGNATURE:
                raise psycopg.OperationalError("the server's answer is not a binary COPY")
            row = body[start + 8 + int.from_bytes(body[start + 4 : start + 8], "big") :]
            return fields, HEAD.pack(b"d", len(row) + 4) + row if row else b""
        elif kind == b"Z":
            raise psycopg.OperationalError("the server's answer is not a COPY")


def _exactly(wire: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = wire.recv(size - len(parts))
        if not part:
            raise psycopg.OperationalError("the server closed the connection")
        parts += part
    return bytes(parts)


def _fill(
    wire: socket.socket, buffer: bytearray, filled: int, limit: int, slack: int
) -> tuple[bytearray, int]:
    """Receive until the buffer holds a batch, or the server has probably said its last word."""
    if filled + slack >= len(buffer):  # one row is larger than a batch
        buffer = buffer + bytes(len(buffer))
    room = memoryview(buffer)[: len(buffer) - slack]
    enough = limit if filled < limit else len(room)
    while True:
        size = wire.recv_into(room[filled:])
        if not size:
            raise psycopg.OperationalError("the server closed the connection")
        filled += size
        if filled >= enough or buffer[filled - 6 : filled - 1] == READY:
            return buffer, filled


def _rows(buffer: bytearray, at: int, filled: int, fields: int) -> tuple[Places, Places, int]:
    """Where the rows are that follow each other from `at` on, and where the first thing else is.

    Whatever looks like the head of a row is a candidate. Rows are the candidates that one comes to
    from the first, each pointing at the next; the others stand inside a row.
    """
    nothing = np.empty(0, np.int64)
    if filled - at < 7:
        return nothing, nothing, at
    view = np.frombuffer(buffer, np.uint8, filled - at, at)
    high, low = divmod(fields, 256)
    heads = np.flatnonzero(view[6:] == low)
    heads = heads[(view[heads] == ROW) & (view[heads + 5] == high)]
    if not len(heads) or heads[0] != 0:
        return nothing, nothing, at
    lengths = np.ndarray((len(view) - 4,), ">i4", buffer, at + 1, (1,))[heads].astype(np.int64)
    after = heads + 1 + lengths
    if not (after[:-1] == heads[1:]).all():
        visited = _follow(heads, after)
        heads, after = heads[visited], after[visited]
    if after[-1] > len(view):
        heads, after = heads[:-1], after[:-1]
    if not len(heads):
        return nothing, nothing, at
    return heads + HEAD.size + at, after + at, int(after[-1]) + at


def _follow(heads: Places, after: Places) -> list[int]:
    """The candidates that the first one leads to."""
    index = np.searchsorted(heads, after)
    reached = np.where(heads[np.minimum(index, len(heads) - 1)] == after, index, -1).tolist()
    visited, here = [], 0
    while here >= 0:
        visited.append(here)
        here = reached[here]
    return visited


def _message_at(buffer: bytearray, at: int, filled: int) -> tuple[bytes, bytes, int] | None:
    """The message that stands there whole: its kind, its body, and where the next one is."""
    if filled - at < HEAD.size:
        return None
    kind, length = HEAD.unpack_from(buffer, at)
    end = at + 1 + length
    return None if end > filled else (kind, bytes(buffer[at + HEAD.size : end]), end)


def _error(body: bytes) -> psycopg.Error:
    """What an ErrorResponse says, as the exception that psycopg has for its SQLSTATE."""
    told = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(told.get(b"C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(told.get(b"M", "the server reported an error"))

"""A PostgreSQL session below psycopg's cursors: describe a statement, and receive a COPY.

psycopg's own `copy()` makes a Python object of every row. Here a batch is one buffer and the places of
its rows in it. Waiting is done outside libpq, so that other threads run meanwhile.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

#: What a binary COPY begins with, before flags and an extension: two int32.
SIGNATURE = b"PGCOPY\n\xff\r\n\0"
TRAILER = b"\xff\xff"
#: A view into a batch has a 31-bit place, and one row may take 1 GB.
LARGEST_BATCH = 1 << 30

Batch = tuple[bytearray, NDArray[np.int64], NDArray[np.int64]]


def describe_statement(connection: psycopg.Connection[Any], statement: str) -> list[tuple[str, int, int]]:
    """(name, type oid, type modifier) of each column that a statement would return; it is not run.

    Raises psycopg.Error when the text is not exactly one statement that the server accepts.
    """
    pgconn = connection.pgconn
    pgconn.send_prepare(b"", statement.encode())
    _result(pgconn)
    pgconn.send_describe_prepared(b"")
    result = _result(pgconn)
    return [
        ((result.fname(i) or b"").decode(), result.ftype(i), result.fmod(i)) for i in range(result.nfields)
    ]


def _result(pgconn: PGconn) -> PGresult:
    """The one result of what was sent. Raises the psycopg.Error it stands for."""
    wait = _waiter(pgconn)
    while pgconn.flush():
        wait()
    found: PGresult | None = None
    while found is None or found.status != ExecStatus.COPY_OUT:
        while pgconn.is_busy():
            wait()
        result = pgconn.get_result()
        if result is None:
            break
        found = result
    if found is None:
        raise psycopg.OperationalError("the server did not answer")
    if found.status == ExecStatus.FATAL_ERROR:
        raise error_from_result(found, "utf-8")
    return found


def copy_out(
    connection: psycopg.Connection[Any], statement: bytes, batch_bytes: int, slack: int
) -> Iterator[Batch]:
    """Run `COPY … TO STDOUT (FORMAT binary)`: batches of (buffer, starts, ends) of rows.

    Only the batch of an empty result is empty; it comes so that there is one.

    slack: zero bytes to leave after the last row of a buffer.

    Raises psycopg.Error: what the server reported, or OperationalError when the stream ends before its
    trailer or with fewer rows than the server counted.
    """
    pgconn = connection.pgconn
    # the extended protocol takes exactly one statement
    pgconn.send_query_params(statement, None)
    _result(pgconn)
    limit = min(batch_bytes, LARGEST_BATCH)
    receive, wait = pgconn.get_copy_data, _waiter(pgconn)
    size, data = receive(1)
    while size == 0:
        wait()
        size, data = receive(1)
    first = bytes(data)
    if size > 0:
        first = first[_header_bytes(first) :]
    received, ended = 0, first == TRAILER
    buffer, sizes = bytearray(), list[int]()
    if first and not ended:
        buffer += first
        sizes.append(len(first))
    # One message is one row. This loop is most of the time that reading takes.
    while size >= 0:
        size, data = receive(1)
        if size > len(TRAILER):
            buffer += data
            sizes.append(size)
        elif size > 0:
            ended = data == TRAILER
        elif size == 0:
            # libpq has given out what it held, some kilobytes: often enough to look at the limit
            if len(buffer) >= limit:
                received += len(sizes)
                yield _batch(buffer, sizes, slack)
                buffer, sizes = bytearray(), []
            wait()
    counted = _result(pgconn).command_tuples
    if not ended or counted != received + len(sizes):
        raise psycopg.OperationalError(f"the stream ended after {received + len(sizes)} of {counted} rows")
    if sizes or not received:
        yield _batch(buffer, sizes, slack)


def _waiter(pgconn: PGconn) -> Callable[[], None]:
    """A function that waits until the server has sent something, or a second, and takes it in."""
    socket = pgconn.socket
    if hasattr(select, "poll"):  # half the cost of a selector, and called for every few rows
        poll = select.poll()
        poll.register(socket, select.POLLIN)

        def wait() -> None:
            poll.poll(1000)
            pgconn.consume_input()
    else:

        def wait() -> None:
            select.select([socket], [], [], 1)
            pgconn.consume_input()

    return wait


def _header_bytes(data: bytes) -> int:
    start = len(SIGNATURE)
    if data[:start] != SIGNATURE or len(data) < start + 8:
        raise psycopg.OperationalError("the server's answer is not a binary COPY")
    return start + 8 + int.from_bytes(data[start + 4 : start + 8], "big")


def _batch(buffer: bytearray, sizes: list[int], slack: int) -> Batch:
    buffer += bytes(slack)
    lengths = np.array(sizes, np.int64)
    ends = np.cumsum(lengths)
    return buffer, ends - lengths, ends

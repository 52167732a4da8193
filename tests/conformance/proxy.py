"""A TCP proxy that cuts its connections after so many bytes from the server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

PIECE_BYTES = 16 * 1024
#: Closing with this sends RST: the other side sees a broken connection and no end.
AT_ONCE = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def cutting(server: tuple[str, int], after: int) -> Iterator[int]:
    """Yield the port of a proxy before `server`. Each connection breaks after `after` bytes of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                try:
                    upstream = socket.create_connection(server)
                except OSError:
                    client.close()
                    continue
                over.extend((client, upstream))
                threading.Thread(target=_copy, args=(client, upstream, None), daemon=True).start()
                threading.Thread(target=_copy, args=(upstream, client, after), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            for end in over:
                _end(end)


def _copy(source: socket.socket, target: socket.socket, left: int | None) -> None:
    """Hand bytes on, at most `left`; then both connections break."""
    with contextlib.suppress(OSError):
        while left is None or left > 0:
            piece = source.recv(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
            if not piece:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(piece)
            left = None if left is None else left - len(piece)
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
    connection.close()

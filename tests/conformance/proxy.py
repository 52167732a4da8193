"""A TCP proxy that breaks for good after so many bytes from the server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

PIECE_BYTES = 16 * 1024
#: Closing with this sends RST: the other side sees a broken connection and no end.
AT_ONCE = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def cutting(server: tuple[str, int], after: int) -> Iterator[int]:
    """Yield the port of a proxy before `server`.

    When `after` bytes of answers have gone through, over all connections, every one breaks, and so does each
    that is made later: who only tries again comes no further.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        budget = _Budget(after)

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
                budget.open.extend((client, upstream))
                threading.Thread(target=_copy, args=(client, upstream, None), daemon=True).start()
                threading.Thread(target=_copy, args=(upstream, client, budget), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            budget.cut()


@dataclass
class _Budget:
    """What may still go through, and the connections that it goes through."""

    left: int
    open: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, wanted: int) -> int:
        """How many of these bytes may pass."""
        with self.lock:
            granted = min(wanted, self.left)
            self.left -= granted
            return granted

    def cut(self) -> None:
        for end in self.open:
            _end(end)


def _copy(source: socket.socket, target: socket.socket, budget: _Budget | None) -> None:
    """Hand bytes on until the budget is used up."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            passing = len(piece) if budget is None else budget.take(len(piece))
            target.sendall(piece[:passing])
            if budget is not None and passing < len(piece):
                budget.cut()
                return
        target.shutdown(socket.SHUT_WR)
        return
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
    connection.close()

"""A TCP proxy in front of the warehouse that cuts a connection at a COMMIT: before the server sees it, or
after the server has done it and before its answer comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

#: libpq's message for COMMIT: type, length, text.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


@dataclass
class Proxy:
    """cut_at: which COMMIT of those to come is cut (0: none); forward: whether the server still sees it.

    stays_down: whether nobody is let through after that.
    """

    port: int = 0
    cut_at: int = 0
    forward: bool = True
    seen: int = 0
    stays_down: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """A proxy to a server, on a port of its own."""
    proxy = Proxy()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]
        accepting = threading.Thread(target=_accept, args=(proxy, listener, host, port), daemon=True)
        accepting.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
    accepting.join()


def _accept(proxy: Proxy, listener: socket.socket, host: str, port: int) -> None:
    pumps = []
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            break
        if proxy.stays_down and 0 < proxy.cut_at <= proxy.seen:
            client.close()
            continue
        server = socket.create_connection((host, port))
        answered = threading.Event()
        for work in (_to_server, _to_client):
            pumps.append(threading.Thread(target=work, args=(proxy, client, server, answered), daemon=True))
            pumps[-1].start()
    for pump in pumps:
        pump.join(5)


def _to_server(proxy: Proxy, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            if data.endswith(COMMIT) and _is_the_one(proxy):
                cutting.set()
                if proxy.forward:
                    server.sendall(data)
                else:
                    _end(client, server)
                continue
            server.sendall(data)
    _end(client, server)


def _to_client(proxy: Proxy, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(65536):
            if cutting.is_set():
                break
            client.sendall(data)
    _end(client, server)


def _is_the_one(proxy: Proxy) -> bool:
    with proxy.lock:
        proxy.seen += 1
        return proxy.seen == proxy.cut_at


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
            one.close()

"""The first two layers of every connection: does the name resolve, does the port answer."""

from __future__ import annotations

import socket

from dwcli.errors import ConnectionFailed

TIMEOUT_SECONDS = 10.0


def reach(host: str, port: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Resolve `host` and open a TCP connection to `port`, then close it.

    Raises ConnectionFailed with layer `name` or `port`, so that the driver's own error later can only
    be about TLS, login, database or permission.
    """
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(
            f"the name '{host}' does not resolve",
            layer="name",
            why=getattr(error, "strerror", None) or str(error),
            hint="check the host's spelling, or try its IP address",
        ) from None
    try:
        socket.create_connection((host, port), timeout=timeout).close()
    except TimeoutError:
        raise ConnectionFailed(
            f"no answer from {host}:{port} within {timeout:g} s",
            layer="port",
            why="timed out: a firewall may drop the packets",
            hint="check the port and the firewall between here and there",
        ) from None
    except OSError as error:
        raise ConnectionFailed(
            f"{host}:{port} does not accept connections",
            layer="port",
            why=error.strerror or str(error),
            hint="check the port, and that the server is running and listens there",
        ) from None

"""What goes wrong between here and a web service, told by the layer that failed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from dwcli.errors import ConnectionFailed

Answer = TypeVar("Answer")

#: How often somebody who waits for an answer looks whether it is still wanted.
PATIENCE_SECONDS = 0.2


def answered(call: Callable[[], Answer], closing: threading.Event) -> Answer:
    """What `call` returns or raises; ConnectionFailed as soon as `closing` is set.

    A service may take minutes before its first byte, and `requests` cannot be woken from that. So it
    waits in a thread of its own, which is left behind, and whose answer nobody reads.
    """
    found: queue.Queue[tuple[bool, object]] = queue.Queue()

    def wait() -> None:
        try:
            found.put((True, call()))
        except Exception as error:
            found.put((False, error))

    threading.Thread(target=wait, daemon=True, name="dw-answer").start()
    while not closing.is_set():
        try:
            good, value = found.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            continue
        if good:
            return value  # type: ignore[return-value]  # what `call` returned
        assert isinstance(value, Exception)
        raise value
    raise ConnectionFailed("the read was stopped", layer="lost")


def unreachable(error: Exception, url: str, stopped: bool = False) -> ConnectionFailed:
    """The error for an exception of `requests` (or of google-auth, which wraps one).

    stopped: the connection was closed from this side.
    """
    text = f"{type(error).__name__} {error}"
    host = urlsplit(url).netloc.rpartition("@")[2] or url
    if stopped:
        return ConnectionFailed("the read was stopped", layer="lost")
    if "resolve" in text or "getaddrinfo" in text:
        return ConnectionFailed(
            f"the name '{host}' does not resolve",
            layer="name",
            hint="check the address's spelling, and this machine's network",
        )
    if "SSL" in text or "certificate" in text:
        return ConnectionFailed(f"no trusted TLS connection to {host}", layer="tls", why=text[:300])
    if "Max retries" in text or "ConnectTimeout" in text or "refused" in text:
        return ConnectionFailed(
            f"{host} cannot be reached", layer="port", hint="check the port, the firewall and the proxy"
        )
    if "Timeout" in text or "timed out" in text:
        return ConnectionFailed(f"{host} did not answer in time", layer="lost", hint="set the timeout higher")
    return ConnectionFailed(f"the connection to {host} was lost", layer="lost", why=type(error).__name__)

"""What goes wrong between here and a web service, told by the layer that failed."""

from __future__ import annotations

from urllib.parse import urlsplit

from dwcli.errors import ConnectionFailed


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

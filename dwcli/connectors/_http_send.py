"""One request and its whole answer: retries, waiting as told, redirects, and the body's bytes.

An answer is whole or an error: the length that was announced has arrived, packed bodies are unpacked to
their end. Bodies up to `batch_bytes` stay in memory, larger ones lie in a temporary file that has no name.
"""

from __future__ import annotations

import email.utils
import mmap
import random
import socket
import ssl
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from dwcli.connectors._http_auth import (
    Tokens,
    fetch_token,
    has_credentials,
    headers_of,
    needs_token,
    parameters_of,
    unreachable,
    without_secrets,
)
from dwcli.connectors._http_body import error_text
from dwcli.connectors._temporary import room_for
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

if TYPE_CHECKING:
    import httpx2

    from dwcli.connectors.http import Config

#: The longest wait before the first repetition; it doubles with each further one.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
MOST_REDIRECTS = 5
#: A body that brings fewer bytes than this within `timeout_seconds` has stopped.
LEAST_BYTES = 1024
BUSY = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 256 * 1024

_log = get_logger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked for: a GET of `url`, or a GraphQL query that is posted to it."""

    url: str
    graphql: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A whole answer with a status that says success."""

    url: str
    status: int
    headers: Mapping[str, str]
    #: bytes, or a memory map of a temporary file
    body: Any
    #: address of the next page in the Link header, or ""
    next_link: str = ""


@dataclass
class Client:
    """A configured source: its connections, its token, and what ends the reads under way."""

    config: Config
    http: httpx2.Client
    tokens: Tokens = field(default_factory=Tokens)
    #: set to end what is under way, including a wait
    stopped: threading.Event = field(default_factory=threading.Event)
    #: the same client for each read under way, with a `stopped` of its own
    reads: list[Client] = field(default_factory=list)
    #: the connections opened last
    streams: deque[Any] = field(default_factory=lambda: deque(maxlen=8))
    #: on the clock of time.monotonic(): when the server lets the next request in
    free_at: float = 0.0


def for_a_read(client: Client) -> Client:
    """The client for one read, which can be stopped without closing the client."""
    mine = replace(client, stopped=threading.Event(), reads=[])
    client.reads = [read for read in client.reads if not read.stopped.is_set()] + [mine]
    return mine


def stop(client: Client) -> None:
    """End what is under way. A read that waits for the server's bytes gets to know it at once."""
    client.stopped.set()
    for stream in [*client.streams]:
        raw = stream.get_extra_info("socket")
        with suppress(OSError):
            # of an SSL socket too, whose own shutdown would pull its state from under the reading thread
            socket.socket.shutdown(raw, socket.SHUT_RDWR)


def close(client: Client) -> None:
    """End the reads that are under way and close the connections."""
    for read in client.reads:
        read.stopped.set()
    stop(client)
    with suppress(Exception):
        client.http.close()


def send(client: Client, request: Request, name: str) -> Answer:
    """The answer to a request, after as many tries as `retries` allows.

    name: how messages call what is read.

    Raises ConnectionFailed (login for 401, permission for 403, tls, lost), ResourceMissing for 404 and 410,
    QueryFailed for other refusals, SourceData for a body that cannot be used.
    """
    refreshed = False
    attempt = 0
    while True:
        _wait_until_free(client, name)
        try:
            answer = _follow(client, request, name)
        except _Again as again:
            attempt += 1
            if attempt > client.config.retries:
                raise again.error from None
            seconds = _pause(attempt) if again.seconds is None else again.seconds
            _log.info("%s: %s; again in %.1f s", name, again.error.why or again.error.message, seconds)
            _wait(client, seconds, name)
            continue
        if answer is not None:
            return answer
        if refreshed or not client.config.token_url:
            raise _refused_login(client, name)
        refreshed = True
        client.tokens.access = ""


class _Again(Exception):
    """A failure that may pass; `seconds` is the wait that the server asked for."""

    def __init__(self, error: DwError, seconds: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.seconds = seconds


def _pause(attempt: int) -> float:
    """Seconds before a repetition: longer each time, and not the same for everyone who waits."""
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    return random.uniform(longest / 2, longest)


def _wait(client: Client, seconds: float, name: str) -> None:
    if client.stopped.wait(seconds):
        raise _closed(name)


def _closed(name: str) -> ConnectionFailed:
    return ConnectionFailed(f"{name}: the connection was closed while reading", layer="lost")


def _refused_login(client: Client, name: str) -> ConnectionFailed:
    if client.config.token_url:
        why = "status 401, also with a new token"
        hint = "check what client_id may read, and scope"
    elif has_credentials(client.config):
        why, hint = "status 401", "check the credentials; a token may have expired"
    else:
        why, hint = "status 401", "set token, username and password, api_key, or token_url and client_id"
    return ConnectionFailed(f"{name}: the server does not let us in", layer="login", why=why, hint=hint)


# -- where a request may go ----------------------------------------------------------------------------


def same_host(one: str, other: str) -> bool:
    """Whether two addresses are of the same server; https where it was http is the same."""
    a, b = urlsplit(one), urlsplit(other)
    if a.hostname != b.hostname:
        return False
    return _port(one) == _port(other) or (
        a.scheme == "http" and b.scheme == "https" and a.port in (None, 80) and b.port in (None, 443)
    )


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def allowed(config: Config, here: str, target: str, what: str, name: str) -> str:
    """An address that the answer of `here` names, if the source may be led there.

    An http address of an https source, as servers behind a proxy write it, becomes https. Raises QueryFailed
    for another host that allow_hosts does not name, for https → http, and for what is no HTTP.
    """
    base = urlsplit(config.base_url)
    try:
        target = urljoin(here, target)
        parts = urlsplit(target)
        host = parts.hostname or ""
        downgrade = base.scheme == "https" and parts.scheme == "http"
        if downgrade and host == base.hostname and parts.port in (None, 80, base.port):
            netloc = base.netloc.rpartition("@")[2]
            return urlunsplit(parts._replace(scheme="https", netloc=netloc))
        known = parts.scheme in ("http", "https")
        own = known and same_host(config.base_url, target)
    except ValueError as error:
        raise QueryFailed(f"{name}: {what} leads to what is no address", why=str(error)) from None
    if not known or downgrade or not (own or host in config.allow_hosts):
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        hint = "" if not known or downgrade else f"if that is right: allow_hosts: [{host}]"
        why = "https is not left for http" if known and downgrade else "it is not the source's own host"
        raise QueryFailed(f"{name}: {what} leads to {where}", why=why, hint=hint)
    return target


def _follow(client: Client, request: Request, name: str) -> Answer | None:
    """The answer, after redirects; None for 401."""
    config, seen = client.config, [request.url]
    while True:
        url = seen[-1]
        if needs_token(config, client.tokens):
            try:
                fetch_token(client.http, config, client.tokens)
            except ConnectionFailed as error:
                raise _Again(error) if error.layer == "lost" else error from None
        answer, location, moved = _receive(client, replace(request, url=url), name)
        if not location:
            return answer
        if request.graphql and not moved:
            raise QueryFailed(f"{name}: the answer is a redirect, which a POST does not follow")
        target = allowed(config, url, location, "a redirect", name)
        if target in seen or len(seen) > MOST_REDIRECTS:
            raise QueryFailed(
                f"{name}: redirects without end", why=f"{len(seen)} of them", hint="check base_url"
            )
        seen.append(target)


# -- one exchange --------------------------------------------------------------------------------------


def _receive(client: Client, request: Request, name: str) -> tuple[Answer | None, str, bool]:
    """(answer, redirect's location, whether it keeps the method). Raises _Again for what may pass."""
    import httpx2

    config = client.config
    own = same_host(config.base_url, request.url)
    headers = headers_of(config, client.tokens) if own else {}
    url = with_parameters(request.url, parameters_of(config)) if own else request.url
    headers |= {"Accept": headers.get("Accept", "application/json"), "Accept-Encoding": "gzip"}
    body = {"query": request.graphql, "variables": dict(request.variables)} if request.graphql else None
    try:
        call = client.http.build_request(
            "POST" if body else "GET", url, headers=headers, json=body, extensions={"trace": _noting(client)}
        )
        response = client.http.send(call, stream=True)
    except httpx2.TransportError as error:
        raise _broken(client, request.url, error, name) from None
    except (httpx2.InvalidURL, RuntimeError) as error:
        if client.stopped.is_set():
            raise _closed(name) from None
        why = without_secrets(str(error), config, client.tokens)
        raise QueryFailed(f"{name}: the address cannot be used", why=why) from None
    try:
        if response.is_redirect and response.headers.get("location"):
            return None, response.headers["location"], response.status_code in (307, 308)
        if response.status_code == 401:
            return None, "", False
        packed = _body(client, response, name)
    except httpx2.TransportError as error:
        raise _broken(client, request.url, error, name) from None
    finally:
        response.close()
    _note_limits(client, response.headers)
    if response.status_code == 202:
        raise _Again(QueryFailed(f"{name}: the answer is not ready yet", why="status 202"))
    if response.status_code >= 400:
        raise _refused(client, response, packed, name)
    link = response.links.get("next", {}).get("url", "")
    return Answer(request.url, response.status_code, response.headers, packed, link), "", False


def _noting(client: Client) -> Callable[[str, Mapping[str, Any]], None]:
    """Keeps the connections that are opened, so that `stop` can reach them."""

    def note(event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            client.streams.append(info["return_value"])

    return note


def _broken(client: Client, url: str, error: Exception, name: str) -> Exception:
    if client.stopped.is_set():
        return _closed(name)
    found = unreachable(url, error)
    tls = isinstance(found, ConnectionFailed) and found.layer == "tls"
    return found if tls else _Again(found)


def _body(client: Client, response: httpx2.Response, name: str) -> Any:
    """The unpacked bytes, as UTF-8. Raises SourceData for a body that is cut off or too large."""
    limit, held, size = client.config.batch_bytes, bytearray(), 0
    chunks = _as_utf8(_unpacked(_moving(client, response), response.headers, name), response, name)
    spool: IO[bytes] | None = None
    with room_for(name), ExitStack() as opened:
        for chunk in chunks:
            size += len(chunk)
            if size > client.config.max_page_bytes:
                raise SourceData(
                    f"{name}: one page is larger than {client.config.max_page_bytes:,} bytes",
                    hint="ask for smaller pages, or raise max_page_bytes",
                )
            if spool is None and size > limit:
                spool = opened.enter_context(tempfile.TemporaryFile())
                spool.write(held)
                held = bytearray()
            if spool is None:
                held += chunk
            else:
                spool.write(chunk)
        if spool is None:
            return bytes(held)
        spool.flush()
        return mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)


def _moving(client: Client, response: httpx2.Response) -> Iterator[bytes]:
    """The bytes as they come, as long as they do: a server that drips single bytes has stopped."""
    import httpx2

    patience = client.config.timeout_seconds
    since, arrived = time.monotonic(), 0
    for chunk in response.iter_raw():
        arrived += len(chunk)
        if time.monotonic() - since > patience:
            if arrived < LEAST_BYTES:
                raise httpx2.ReadTimeout(f"fewer than {LEAST_BYTES} bytes in {patience:g} s")
            since, arrived = time.monotonic(), 0
        if client.stopped.is_set():
            raise httpx2.ReadError("closed")
        yield chunk


def _unpacked(chunks: Iterator[bytes], headers: Mapping[str, str], name: str) -> Iterator[bytes]:
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        yield from chunks
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise SourceData(f"{name}: the answer is packed as {coding}, where gzip was asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for chunk in chunks:
            rest = chunk
            while rest and not unpack.eof:
                yield unpack.decompress(rest, _CHUNK * 4)
                rest = unpack.unconsumed_tail
        yield unpack.flush()
    except zlib.error as error:
        raise SourceData(f"{name}: the answer cannot be unpacked", why=str(error)) from None
    if not unpack.eof:
        raise SourceData(f"{name}: the answer is cut off", why="its gzip data has no end")


def _as_utf8(chunks: Iterator[bytes], response: httpx2.Response, name: str) -> Iterator[bytes]:
    """The bytes in the encoding that JSON has, from the one that the answer says it is written in."""
    import codecs

    charset = (response.charset_encoding or "utf-8").lower()
    try:
        known = codecs.lookup(charset).name
    except LookupError:
        raise SourceData(f"{name}: there is no encoding '{charset}', which the answer names") from None
    if known in ("utf-8", "ascii"):
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(known)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        raise SourceData(f"{name}: the answer is not {charset}, as it says", why=error.reason) from None


def _refused(client: Client, response: httpx2.Response, body: Any, name: str) -> Exception:
    """The error for a status of 400 and above, or _Again for one that may pass."""
    status = response.status_code
    said = without_secrets(_said(body), client.config, client.tokens)
    why = f"status {status}" + (f": {said}" if said else "")
    seconds = _told_to_wait(response.headers)
    limited = status == 403 and (_remaining(response.headers) == 0 or "retry-after" in response.headers)
    if status in BUSY or limited:
        longest = client.config.max_wait_seconds
        error: DwError
        if status == 429 or limited:
            error = QueryFailed(f"{name}: too many requests", why=why, hint="run it again later")
        else:
            error = ConnectionFailed(
                f"{name}: the server fails", layer="lost", why=why, hint="run it again later"
            )
        if seconds is not None and seconds > longest:
            error.why = (
                f"{why}; it asks to wait {seconds:,.0f} s, more than max_wait_seconds ({longest:,.0f})"
            )
            return error
        return _Again(error, seconds)
    if status == 403:
        hint = "check what the credentials may read"
        message = f"{name}: the credentials may not read this"
        return ConnectionFailed(message, layer="permission", why=why, hint=hint)
    if status in (404, 410):
        return ResourceMissing(f"{name}: there is no such endpoint", why=why, hint="check base_url and query")
    return QueryFailed(f"{name}: the server refuses the request", why=why, hint="check the query")


def _said(body: Any) -> str:
    start = bytes(body[:4096])
    if start.lstrip().startswith(b"<") or not start.strip():
        return ""
    from msgspec import DecodeError

    try:
        return error_text(bytes(body[:])) if len(body) < 1024 * 1024 else ""
    except DecodeError:
        return start[:200].decode("utf-8", "replace")


# -- how fast the server lets us ------------------------------------------------------------------------


def _told_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; None where it does not say."""
    text = headers.get("retry-after", "").strip()
    if text:
        with suppress(ValueError):
            return max(0.0, float(text))
        with suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return _reset_in(headers) if _remaining(headers) == 0 else None


def _remaining(headers: Mapping[str, str]) -> int | None:
    for name in ("x-ratelimit-remaining", "ratelimit-remaining", "x-rate-limit-remaining"):
        with suppress(ValueError, KeyError):
            return int(headers[name])
    return None


def _reset_in(headers: Mapping[str, str]) -> float | None:
    """Seconds until requests are free again: the header holds seconds, or a moment of the Unix clock."""
    for name in ("x-ratelimit-reset", "ratelimit-reset", "x-rate-limit-reset"):
        with suppress(ValueError, KeyError):
            value = float(headers[name])
            moment = value / 1000 if value > 1e11 else value
            return max(0.0, moment - time.time() if moment > 1e9 else moment)
    return None


def _note_limits(client: Client, headers: Mapping[str, str]) -> None:
    """Remember that this answer used up the last request that is free for now."""
    if _remaining(headers) == 0 and (seconds := _reset_in(headers)) is not None:
        client.free_at = time.monotonic() + min(seconds, client.config.max_wait_seconds)


def _wait_until_free(client: Client, name: str) -> None:
    seconds = client.free_at - time.monotonic()
    if client.stopped.is_set():
        raise _closed(name)
    if seconds > 0:
        _log.info("%s: the server's limit is reached; on in %.1f s", name, seconds)
        _wait(client, seconds, name)
    client.free_at = 0.0


# -- addresses and TLS ----------------------------------------------------------------------------------


def with_parameters(url: str, parameters: Mapping[str, str]) -> str:
    """The address with these query parameters, in the place of any of the same names."""
    if not parameters:
        return url
    parts = urlsplit(url)
    kept = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k not in parameters]
    return urlunsplit(parts._replace(query=urlencode([*kept, *parameters.items()])))


@lru_cache(maxsize=4)
def tls(ca: str) -> ssl.SSLContext:
    """TLS that checks certificate and name. Raises ConnectionFailed for a file that is no authority."""
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise ConnectionFailed(
            f"the certificate file {ca} cannot be read",
            layer="tls",
            why=error.strerror or str(error),
            hint="check ssl_ca: it is a PEM file",
        ) from None

"""Requests to web servers that have files: streamed bodies, redirects without credentials, errors by layer.

Everything is asked in the background loop, so that a silent server can be left at any time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, SecretStr

from dwcli.connectors._background import Background, ask, end, later, start, stop
from dwcli.connectors._remote_files import TIMEOUT_SECONDS, RemoteFileConfig, Server
from dwcli.contract import LOCAL_PATH
from dwcli.errors import ConnectionFailed, QueryFailed
from dwcli.log import get_logger

if TYPE_CHECKING:
    import httpx2

_log = get_logger(__name__)

MOST_REDIRECTS = 5
_CHUNK = 1024 * 1024
_CONNECT_SECONDS = 10.0


class WebConfig(RemoteFileConfig):
    """What both kinds of files on web servers have in their `Config`."""

    username: str = Field("", description="user")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    token: SecretStr = Field(
        SecretStr(""),
        description="bearer token, where there is no user",
        json_schema_extra={"unless": "username"},
    )
    headers: dict[str, SecretStr] = Field(
        {}, description="further headers of every request", json_schema_extra={"advanced": True}
    )
    ca_file: str = Field(
        "",
        description="file of the authority that signed the server's certificate",
        json_schema_extra=LOCAL_PATH | {"advanced": True},
    )
    timeout_seconds: float = Field(
        TIMEOUT_SECONDS,
        gt=0,
        description="seconds without an answer that end a request",
        json_schema_extra={"advanced": True},
    )


@dataclass
class WebClient:
    """The connections to one server."""

    config: Any
    #: the address that all paths are below, without a slash at its end
    base: str
    background: Background
    http: httpx2.AsyncClient
    server: Server = field(init=False)
    #: whole addresses of files, by name, where the name does not tell them
    addresses: dict[str, str] = field(default_factory=dict)


def checked_address(value: str) -> str:
    """An http(s) address. Raises ValueError for what is none, or has credentials in it."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address that begins with https:// or http://")
    if parts.username or parts.password:
        raise ValueError("no user and password in the address: set username and password")
    return value


def web_client(config: WebConfig, base: str) -> WebClient:
    """Connections to the server of `base`; nothing is asked yet. Raises ImportError without httpx2."""
    import httpx2

    _keep_quiet()
    host = urlsplit(base).hostname or ""
    if base.startswith("http://") and _has_credentials(config) and not _is_this_machine(host):
        _log.warning("credentials go to %s over http, which anyone on the way can read; use https", host)
    verify = True if not config.ca_file else ssl.create_default_context(cafile=_ca_file(config))
    http = httpx2.AsyncClient(
        verify=verify,
        timeout=httpx2.Timeout(config.timeout_seconds, connect=min(_CONNECT_SECONDS, config.timeout_seconds)),
        follow_redirects=False,
    )
    return WebClient(config, base.rstrip("/"), start(), http)


def _keep_quiet() -> None:
    """The driver logs the address of every request, in which a token may stand."""
    logger = logging.getLogger("httpx2")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


def _has_credentials(config: WebConfig) -> bool:
    return bool(config.username or config.token.get_secret_value() or config.headers)


def _is_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _ca_file(config: WebConfig) -> str:
    if not Path(config.ca_file).is_file():
        raise ConnectionFailed(f"there is no file {config.ca_file}", layer="tls", hint="check ca_file")
    return config.ca_file


def close_web(client: WebClient) -> None:
    """End what is under way and the connections. May be called twice."""
    stop(client.background)
    if not client.background.ended:
        with contextlib.suppress(Exception):
            ask(client.background, client.http.aclose(), 2)
    end(client.background)


def address(client: WebClient, path: str) -> str:
    """The address of a path below the base."""
    return f"{client.base}/{quote(path)}" if path else client.base


def send(
    client: WebClient, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> httpx2.Response:
    """The answer, its body unread; `finish` it or read it by `body_of`. Raises FileNotFoundError for 404.

    Credentials go to the server of the base alone, wherever it redirects to.
    """
    import httpx2

    for _ in range(MOST_REDIRECTS + 1):
        own = _origin(url) == _origin(client.base)
        request = client.http.build_request(
            method, url, headers=_headers(client, own) | dict(headers or {}), content=body or None
        )
        try:
            response = ask(
                client.background, client.http.send(request, stream=True), what=client.server.where
            )
        except (httpx2.TransportError, OSError) as error:
            raise _unreachable(client, url, error) from None
        except httpx2.InvalidURL as error:
            raise QueryFailed(
                f"{client.server.where} has no such address", why=str(error), hint="check the query"
            ) from None
        if not response.has_redirect_location:
            return _accepted(client, response, url)
        finish(client, response)
        target = str(response.request.url.join(response.headers["location"]))
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise QueryFailed(
                f"{client.server.where} leads from https to {_origin(target)}",
                why="the rest of the way would not be encrypted",
            )
        url = target
    raise QueryFailed(f"{client.server.where} redirects without end", hint="check the address")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _headers(client: WebClient, own: bool) -> dict[str, str]:
    config = client.config
    # The bytes as they are: a packed transfer has no length that could be checked.
    found = {"Accept-Encoding": "identity"}
    if not own:
        return found
    if config.username:
        import base64

        pair = f"{config.username}:{config.password.get_secret_value()}"
        found["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    elif config.token.get_secret_value():
        found["Authorization"] = f"Bearer {config.token.get_secret_value()}"
    return found | {name: value.get_secret_value() for name, value in config.headers.items()}


def _accepted(client: WebClient, response: httpx2.Response, url: str) -> httpx2.Response:
    status = response.status_code
    if status < 400:
        return response
    finish(client, response)
    what = unquote(urlsplit(url).path) or "/"
    why = f"status {status} {response.reason_phrase}".strip()
    if status in (404, 410):
        raise FileNotFoundError(what)
    if status in (401, 407):
        given = client.config.username or client.config.token.get_secret_value()
        raise ConnectionFailed(
            f"{client.server.where} refuses the login"
            if given
            else f"{client.server.where} asks for a login",
            layer="login",
            why=why,
            hint="check username and password, or token",
        )
    if status == 403:
        raise ConnectionFailed(
            f"{client.server.where} does not let us read {what}", layer="permission", why=why
        )
    if status in (408, 425, 429) or status >= 500:
        raise ConnectionFailed(
            f"{client.server.where} fails at {what}", layer="lost", why=why, hint="run it again later"
        )
    raise QueryFailed(f"{client.server.where} refuses the request for {what}", why=why)


def _unreachable(client: WebClient, url: str, error: BaseException) -> ConnectionFailed:
    """The layer that failed, by what lies beneath the driver's error."""
    import httpx2

    host, where = urlsplit(url).hostname or "", _origin(url)
    beneath: BaseException | None = error
    while beneath is not None:
        if isinstance(beneath, ssl.SSLCertVerificationError):
            return ConnectionFailed(
                f"the certificate of {host} cannot be trusted",
                layer="tls",
                why=beneath.verify_message,
                hint="give the authority's certificate as ca_file, and the host as the certificate names it",
            )
        if isinstance(beneath, ssl.SSLError):
            return ConnectionFailed(f"no TLS with {where}", layer="tls", why=beneath.reason or str(beneath))
        if isinstance(beneath, socket.gaierror):
            return ConnectionFailed(
                f"the name '{host}' does not resolve", layer="name", hint="check the host's spelling"
            )
        beneath = beneath.__cause__ or beneath.__context__
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectionFailed(
            f"{where} does not accept connections",
            layer="port",
            why=str(error),
            hint="check the address, and that the server is running",
        )
    silent = isinstance(error, httpx2.TimeoutException)
    return ConnectionFailed(
        f"the connection to {where} broke",
        layer="lost",
        why=f"nothing came for {client.config.timeout_seconds:g} s" if silent else str(error),
        hint="run again: nothing that is loaded is fetched twice",
    )


def finish(client: WebClient, response: httpx2.Response) -> None:
    """End an answer whose body is not wanted."""
    ask(client.background, response.aclose(), what=client.server.where)


def body_of(client: WebClient, response: httpx2.Response) -> Iterator[bytes]:
    """The body in pieces of about a megabyte, as it was sent; the answer is finished then."""
    import httpx2

    raw = response.aiter_raw()

    async def piece() -> bytes:
        found = bytearray()
        async for chunk in raw:
            found += chunk
            if len(found) >= _CHUNK:
                break
        return bytes(found)

    try:
        while chunk := ask(client.background, piece(), what=client.server.where):
            yield chunk
    except (httpx2.TransportError, OSError) as error:
        raise _unreachable(client, str(response.request.url), error) from None
    finally:
        later(client.background, response.aclose())

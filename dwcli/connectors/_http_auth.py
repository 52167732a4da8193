"""Credentials of an HTTP source: which headers and parameters carry them, and the OAuth2 token's life."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, urljoin, urlsplit

from dwcli.connectors import secrets_of
from dwcli.errors import ConnectionFailed, DwError
from dwcli.log import get_logger

if TYPE_CHECKING:
    import httpx2

    from dwcli.connectors.http import Config

#: A token is fetched anew this long before it ends.
EARLY_SECONDS = 30.0
#: What stands in the place of a secret that an answer repeats.
HIDDEN = "***"

_log = get_logger(__name__)


@dataclass
class Tokens:
    """The OAuth2 access token of a source, as long as it holds."""

    access: str = ""
    #: on the clock of time.monotonic(); None for a server that does not say
    ends_at: float | None = None
    #: whether the client's secret goes into the form instead of the Authorization header
    in_form: bool = False
    #: every token so far, to keep them out of messages
    given: list[str] = field(default_factory=list)


def has_credentials(config: Config) -> bool:
    """Whether requests carry something that must not be sent elsewhere."""
    return any(value for value in secrets_of(config)) or bool(config.username)


def warn_of_plain_text(config: Config) -> None:
    """Say in the log that credentials would cross the network readable."""
    for url in (config.base_url, config.token_url):
        parts = urlsplit(url)
        if parts.scheme == "http" and has_credentials(config) and not _is_this_machine(parts.hostname or ""):
            _log.warning(
                "credentials go to %s over http, which anyone on the way can read; use https", parts.hostname
            )


def _is_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def headers_of(config: Config, tokens: Tokens) -> dict[str, str]:
    """The headers that a request to the source's own host carries."""
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    if config.auth == "none":
        return headers
    api_key = config.api_key.get_secret_value()
    if api_key and config.api_key_in == "header":
        headers[config.api_key_name] = api_key
    if tokens.access:
        headers["Authorization"] = f"Bearer {tokens.access}"
    elif token := config.token.get_secret_value():
        headers["Authorization"] = f"Bearer {token}"
    elif config.username:
        headers["Authorization"] = _basic(config.username, config.password.get_secret_value())
    return headers


def parameters_of(config: Config) -> dict[str, str]:
    """The query parameters that carry credentials."""
    api_key = config.api_key.get_secret_value()
    if not api_key or config.auth == "none" or config.api_key_in != "query":
        return {}
    return {config.api_key_name: api_key}


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def without_secrets(text: str, config: Config, tokens: Tokens) -> str:
    """Text of a server, which may repeat what it was sent, with the credentials taken out."""
    secrets = [s for s in (*secrets_of(config), *tokens.given) if s]
    if config.username:
        secrets.append(_basic(config.username, config.password.get_secret_value()).removeprefix("Basic "))
    for secret in sorted(_spellings(secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _spellings(secrets: Iterable[str]) -> set[str]:
    return {spelled for s in secrets for spelled in (s, quote(s, safe=""), quote_plus(s))}


# -- OAuth2 client credentials -------------------------------------------------------------------------


def needs_token(config: Config, tokens: Tokens) -> bool:
    """Whether an OAuth2 token has to be fetched before the next request."""
    if not config.token_url or config.auth == "none":
        return False
    return not tokens.access or (
        tokens.ends_at is not None and time.monotonic() > tokens.ends_at - EARLY_SECONDS
    )


def fetch_token(client: httpx2.Client, config: Config, tokens: Tokens) -> None:
    """Ask the token endpoint for a new token. Raises ConnectionFailed; layer `lost` may pass.

    The client's id and secret go into the Authorization header, as servers have to accept; where one
    answers 400 or 401, into the form.
    """
    url = urljoin(config.base_url.rstrip("/") + "/", config.token_url)
    status, body = _ask(client, config, url, tokens.in_form)
    if status in (400, 401) and not tokens.in_form:
        retried, second = _ask(client, config, url, in_form=True)
        if retried == 200:
            status, body, tokens.in_form = retried, second, True
    token = body.get("access_token")
    if status == 429 or status >= 500:
        raise ConnectionFailed(
            f"{_host(url)} gives no OAuth2 token", "lost", f"status {status}", "run it again later"
        )
    if status != 200 or not isinstance(token, str) or not token:
        why = str(body.get("error_description") or body.get("error") or f"status {status}")
        raise ConnectionFailed(
            f"{_host(url)} gives no OAuth2 token",
            layer="login",
            why=without_secrets(why[:300], config, tokens),
            hint="check token_url, client_id, client_secret and scope",
        )
    tokens.access = token
    tokens.given.append(token)
    tokens.ends_at = _ends_at(body.get("expires_in"))


def _ask(client: httpx2.Client, config: Config, url: str, in_form: bool) -> tuple[int, Mapping[str, Any]]:
    import httpx2

    secret = config.client_secret.get_secret_value()
    form = {"grant_type": "client_credentials"}
    if config.scope:
        form["scope"] = config.scope
    headers = {"Accept": "application/json"}
    if in_form:
        form |= {"client_id": config.client_id, "client_secret": secret}
    else:
        headers["Authorization"] = _basic(quote_plus(config.client_id), quote_plus(secret))
    try:
        answer = client.post(url, data=form, headers=headers)
    except httpx2.TransportError as error:
        raise unreachable(url, error) from None
    try:
        body = json.loads(answer.content)
    except ValueError:
        body = {}
    return answer.status_code, body if isinstance(body, dict) else {}


def _ends_at(expires_in: Any) -> float | None:
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError):
        return None
    # A token that lives less than the safety margin is used once and fetched again.
    return time.monotonic() + max(seconds, EARLY_SECONDS + 1)


def unreachable(url: str, error: Exception) -> DwError:
    """The error for a request that brought no answer; layer `tls`, or `lost` for what may pass."""
    import httpx2

    why = str(error) or type(error).__name__
    where = _host(url)
    if isinstance(error, httpx2.ConnectError) and re.search(r"(?i)certificate|ssl|tls", why):
        hint = "set ssl_ca to the server's certificate authority, or check the address"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    hint = "run it again: nothing was committed"
    return ConnectionFailed(f"no whole answer from {where}", layer="lost", why=why, hint=hint)


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2]

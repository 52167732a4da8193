"""REST and GraphQL: pages of JSON over HTTP, each fetched while the one before it is loaded.

Numbers arrive as they are written, nested values as jsonb. How the source pages and where its rows stand
is found in the first answer, or configured. An answer is whole or an error; so is a read that would turn
in a circle, or that ends with fewer rows than the source says it has.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from dwcli.ahead import ahead
from dwcli.connectors import _http_send as sending
from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._formats.frames import SOURCE_PATH, Frame, Seen, frame_of_arrays
from dwcli.connectors._formats.items import columns_of, told_changes, within
from dwcli.connectors._formats.json_file import columns_of_records, columns_of_rows
from dwcli.connectors._formats.json_records import Known, Piece, decode
from dwcli.connectors._http_auth import warn_of_plain_text
from dwcli.connectors._http_body import (
    Row,
    at,
    fields,
    flattened,
    pieces_in,
    rows_in,
    rows_of,
    scalar,
    unwrapped,
)
from dwcli.connectors._http_paging import Page, pages
from dwcli.connectors._http_query import filled, parent_column, spelled, target_of, with_cursor
from dwcli.connectors._http_send import Client, Request
from dwcli.connectors._probe import reach
from dwcli.connectors._rows import slices
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

if TYPE_CHECKING:
    import pyarrow as pa

    from dwcli.connectors._formats.texts import Kind

TITLE = "REST or GraphQL API"
ALIASES = ("rest", "api")
EXTRA = "http"
STAND_IN = "fake-gcs-server, graphql-core, and http.server in the manner of other APIs"
QUERY = "an endpoint with its parameters, such as /orders?since={cursor}, or GraphQL"
INCREMENTAL = "{cursor} in the query"
#: What a run asks of an API, with its place in the query and without.
SENT = "the API is asked for what is new"
UNSENT = "all pages are read, as {cursor} is not in the query"
TYPING = "inferred"
STREAMING = True
#: What `dw test-connection` says where `discover` finds nothing, as in most APIs.
UNLISTED = "answers, and lists no endpoints: name a path as the query, such as /orders"

_ADVANCED: dict[str, Any] = {"advanced": True}
_SAMPLE_BYTES = 1024 * 1024
_MOST_OFFERED = 500
#: Empty pages that a description passes on its way to the first row.
_PAGES_LOOKED_AT = 20

_log = get_logger(__name__)

#: Pages, each with the parent's fields that its rows get.
Pages = Generator[tuple[Page, Mapping[str, Any]], None, None]


class Config(ConnectorConfig):
    """A REST or GraphQL API."""

    base_url: str = Field(description="address of the API, such as https://api.example.com/v1")
    auth: Literal["auto", "none", "bearer", "basic", "api_key", "oauth2"] = Field(
        "auto", description="way to log in; auto takes the one that is filled in", json_schema_extra=_ADVANCED
    )
    token: SecretStr = Field(SecretStr(""), description="bearer token")
    username: str = Field(
        "", description="user, for basic authentication", json_schema_extra={"unless": "token"}
    )
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    api_key: SecretStr = Field(
        SecretStr(""), description="API key", json_schema_extra={"unless": {"token": [], "username": []}}
    )
    api_key_name: str = Field(
        "X-API-Key", description="header or parameter of the API key", json_schema_extra=_ADVANCED
    )
    api_key_in: Literal["header", "query"] = Field(
        "header", description="where the API key goes", json_schema_extra=_ADVANCED
    )
    token_url: str = Field(
        "", description="address that gives OAuth2 tokens (client credentials)", json_schema_extra=_ADVANCED
    )
    client_id: str = Field("", description="OAuth2 client", json_schema_extra=_ADVANCED)
    client_secret: SecretStr = Field(
        SecretStr(""), description="the OAuth2 client's secret", json_schema_extra=_ADVANCED
    )
    scope: str = Field("", description="OAuth2 scope", json_schema_extra=_ADVANCED)
    headers: dict[str, SecretStr] = Field(
        {}, description="further headers of every request", json_schema_extra=_ADVANCED
    )
    data_path: str = Field(
        "", description="path to the rows in an answer, such as data.items", json_schema_extra=_ADVANCED
    )
    parent_data_path: str = Field(
        "", description="the same for the parents of a child endpoint", json_schema_extra=_ADVANCED
    )
    pagination: Literal["auto", "none", "link", "next_url", "cursor", "page", "offset"] = Field(
        "auto", description="how the API goes from page to page", json_schema_extra=_ADVANCED
    )
    page_param: str = Field(
        "", description="parameter that carries the page, offset or cursor", json_schema_extra=_ADVANCED
    )
    next_path: str = Field(
        "", description="path to the next cursor or address in an answer", json_schema_extra=_ADVANCED
    )
    flatten: bool = Field(False, description="whether fields of nested objects become columns")
    cursor_format: Literal["iso", "date", "epoch", "epoch_ms"] = Field(
        "iso", description="how the API takes a time in {cursor}", json_schema_extra=_ADVANCED
    )
    test_path: str = Field(
        "", description="endpoint that the connection test asks", json_schema_extra=_ADVANCED
    )
    allow_hosts: list[str] = Field(
        [],
        description="other hosts that redirects and next pages may lead to, without credentials",
        json_schema_extra=_ADVANCED,
    )
    ssl_ca: Path | None = Field(
        None, description="file with the certificate authority", json_schema_extra=_ADVANCED | LOCAL_PATH
    )
    timeout_seconds: float = Field(
        60, gt=0, description="seconds without an answer that end a request", json_schema_extra=_ADVANCED
    )
    retries: int = Field(
        5, ge=0, le=20, description="further tries of a request", json_schema_extra=_ADVANCED
    )
    max_wait_seconds: float = Field(
        300, ge=0, description="longest wait that the server may ask for", json_schema_extra=_ADVANCED
    )
    max_pages: int = Field(100_000, ge=1, description="most pages of one read", json_schema_extra=_ADVANCED)
    max_page_bytes: int = Field(
        1024**3, ge=1024, description="largest page, unpacked, in bytes", json_schema_extra=_ADVANCED
    )
    check_total: bool = Field(
        True,
        description="whether the total that the API tells has to arrive",
        json_schema_extra=_ADVANCED,
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address that begins with https:// or http://")
        if parts.username or parts.password:
            raise ValueError("no user and password in the address: set username and password")
        if parts.query or parts.fragment:
            raise ValueError("no parameters in the address: they belong into query")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_one_login(self) -> Config:
        given = {
            "bearer": ("token", bool(self.token.get_secret_value())),
            "basic": ("username", bool(self.username)),
            "oauth2": ("token_url", bool(self.token_url)),
            "api_key": ("api_key", bool(self.api_key.get_secret_value())),
        }
        used = [field for way, (field, there) in given.items() if there and way != "api_key"]
        if len(used) > 1:
            raise ValueError(f"{' and '.join(used)} are different ways to log in: give one of them")
        if self.auth in given and not given[self.auth][1]:
            raise ValueError(f"auth: {self.auth} needs {given[self.auth][0]}")
        if self.token_url and not self.client_id:
            raise ValueError("token_url needs client_id and client_secret")
        return self


def connect(config: Config) -> Client:
    """Look whether the server is there. Raises ConnectionFailed with layer name or port, DriverMissing."""
    try:
        import httpx2
    except ImportError as error:
        raise driver_missing("http", error) from None
    parts = urlsplit(config.base_url)
    if not _behind_a_proxy(config.base_url):
        reach(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    warn_of_plain_text(config)
    _keep_addresses_out_of_logs()
    secure = sending.tls(str(config.ssl_ca) if config.ssl_ca else "")
    agent = {"User-Agent": "dw"}
    return Client(config, httpx2.Client(verify=secure, timeout=config.timeout_seconds, headers=agent))


def _keep_addresses_out_of_logs() -> None:
    """The driver logs the address of every request, in which an API key may stand."""
    logger = logging.getLogger("httpx2")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


def _behind_a_proxy(url: str) -> bool:
    """Whether the environment sends requests to this host through a proxy, which then resolves the name."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname or "")


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    sending.close(client)


# -- what there is -------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """What the API says about itself: the endpoints of its OpenAPI document, or of a list of addresses.

    Most APIs say nothing; then there is only the test of connection and login. Raises ConnectionFailed.
    """
    config = client.config
    name = _name(config.base_url)
    try:
        answer = sending.send(client, Request(_address(config, config.test_path)), name)
        offered = _offered(config, answer.body)
    except (QueryFailed, ResourceMissing):
        if config.test_path:
            raise
        offered = []  # there need not be anything at the base address itself
    except ConnectionFailed as error:
        if error.layer != "permission" or config.test_path:
            raise
        offered = []
    if not offered and not config.test_path:
        offered = _from_openapi(client)
    for path in offered[:_MOST_OFFERED]:
        yield Resource(path, kind="endpoint")


def _offered(config: Config, body: Any) -> list[str]:
    """Endpoints of an answer that is an object of addresses: {"orders": "https://…/orders", …}."""
    import msgspec

    try:
        values = [scalar(value) for value in fields(body).values()]
    except msgspec.DecodeError:
        return []
    base = config.base_url + "/"
    own = [v for v in values if isinstance(v, str) and v.startswith(base) and "{" not in v]
    return ["/" + v.removeprefix(base).rstrip("/") for v in own] if own and len(own) == len(values) else []


def _from_openapi(client: Client) -> list[str]:
    """The paths without parameters that an OpenAPI document beside the base address lets one GET."""
    import msgspec

    try:
        answer = sending.send(client, Request(_address(client.config, "openapi.json")), "openapi.json")
        paths = fields(at(answer.body, "paths"))
    except (DwError, msgspec.DecodeError):
        return []
    return [path for path, methods in paths.items() if "{" not in path and "get" in fields(methods)]


def describe(client: Client, query: str) -> Resource:
    """Columns and cursor candidates, from the first page. Raises what `read` raises."""
    config = client.config
    seen: Seen = {}
    mine = sending.for_a_read(client)
    sample = min(config.batch_bytes, _SAMPLE_BYTES)
    frames = _frames(mine, query, _first_with_rows(_pages(mine, query, Cursor())), sample, seen)
    with closing(frames):
        frame = next(frames, None)
    if frame is None:
        return Resource(query, kind="endpoint")
    columns = tuple(c for c in columns_of(frame) if c.name != SOURCE_PATH)
    target = target_of(query)
    key = () if target.parent or "id" not in frame.data.columns else ("id",)
    if key and (frame.data["id"].null_count() or frame.data["id"].n_unique() < frame.data.height):
        key = ()
    return Resource(
        query,
        columns,
        primary_key=key,
        key_reason="each id once on the first page" if key else "",
        cursors=cursor_candidates(columns, key, (), SENT if "cursor" in query else UNSENT),
        kind="query" if target.graphql else "endpoint",
    )


def estimate(client: Client, query: str) -> tuple[None, None]:
    """An API tells how much there is when it is read: to ask before would be a request for nothing."""
    return None, None


def _first_with_rows(arriving: Pages) -> Pages:
    """The first page that has rows, of as many as a person would wait for."""
    with closing(arriving):
        for page, added in islice(arriving, _PAGES_LOOKED_AT):
            yield page, added
            if page.count:
                return


# -- reading -------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The rows in batches, from `cursor.start` (inclusive) to `cursor.end`, and those whose cursor is NULL.

    Raises ConnectionFailed, ResourceMissing, QueryFailed, SourceData, ConfigError for a query that cannot be.
    """
    limit = client.config.batch_bytes
    held: list[Frame] = []
    size = 0
    mine = sending.for_a_read(client)
    with closing(_frames(mine, query, _pages(mine, query, cursor), limit, {})) as frames:
        for frame in frames:
            kept = within(frame, cursor)
            bytes_of_it = int(kept.data.estimated_size())
            if held and (size + bytes_of_it > limit or not _alike(held[-1], kept)):
                yield from _items(held, limit)
                held, size = [], 0
            held.append(kept)
            size += bytes_of_it
            if size >= limit:
                yield from _items(held, limit)
                held, size = [], 0
    yield from _items(held, limit)


def _items(frames: Sequence[Frame], limit: int) -> Iterator[IngestedItem]:
    import polars as pl

    if not frames:
        return
    data = pl.concat([frame.data for frame in frames]).drop(SOURCE_PATH)
    told = told_changes(frames)
    for part in slices(data, limit):
        yield IngestedItem(part, frames[0].types, metadata=told)
        told = {}


def _alike(one: Frame, other: Frame) -> bool:
    return one.types == other.types and one.data.schema == other.data.schema


@dataclass
class _Part:
    """A piece of a page's rows: as records where they are like those before, else as rows."""

    piece: Piece
    node: str
    #: the parent's fields
    added: Mapping[str, Any]
    records: list[Any] | None = None
    rows: list[Row] = field(default_factory=list)


def _frames(
    client: Client, query: str, arriving: Pages, limit: int, seen: Seen
) -> Generator[Frame, None, None]:
    """Typed rows, some `limit / 4` bytes of JSON at a time; pages are fetched ahead in a thread."""
    config = client.config
    block = max(64 * 1024, limit // 4)
    names: dict[tuple[str, ...], str] = {}
    name = _name(query if not target_of(query).graphql else config.base_url)
    known: Known | None = None
    parts: list[_Part] = []
    size = 0
    changed: Counter[str] = Counter()

    def in_general(part: _Part) -> list[Row]:
        try:
            return _made(config, rows_of(part.piece, name), part.node, part.added, names, name)
        except UnicodeDecodeError:
            raise _not_utf8(name, "the name of a field") from None

    with closing(ahead(arriving, stop=lambda: sending.stop(client))) as fetched:
        for page, added in fetched:
            known = known or Known(frozenset(added))
            changed.update(page.changed)
            for piece in pieces_in(page.rows, block):
                part = _Part(piece, page.node, added)
                if piece.commas and not config.flatten:
                    part.records = decode(known, piece, page.node)
                if part.records is None:
                    part.rows = in_general(part)
                parts.append(part)
                size += len(piece.text)
                if size >= block:
                    yield replace(_frame(name, parts, in_general, known, seen), changed=dict(changed))
                    parts, size = [], 0
                    changed.clear()
    if known and any(part.records or part.rows for part in parts):
        yield replace(_frame(name, parts, in_general, known, seen), changed=changed)


def _made(
    config: Config,
    rows: list[Row],
    node: str,
    added: Mapping[str, Any],
    names: dict[tuple[str, ...], str],
    name: str,
) -> list[Row]:
    """Rows as they are loaded: out of their `edges`, flattened, with their parent's fields."""
    if node:
        rows = unwrapped(rows, node)
    if config.flatten:
        rows = flattened(rows, names)
    return _with(added, rows, name) if added else rows


def _frame(
    name: str, parts: Sequence[_Part], in_general: Callable[[_Part], list[Row]], known: Known, seen: Seen
) -> Frame:
    """Rows as columns, each of the narrowest type that holds every value as it is written.

    Where not all parts are records, those that are become rows as well.
    """
    if columns := _columns_of_records(parts, known, seen):
        return frame_of_arrays(name, *columns, sum(len(part.records or ()) for part in parts))
    rows = [row for part in parts for row in (part.rows if part.records is None else in_general(part))]
    try:
        columns = columns_of_rows(rows, known, seen)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, f"field {error.reason!r}") from None
    return frame_of_arrays(name, *columns, len(rows))


def _not_utf8(name: str, what: str) -> SourceData:
    return SourceData(
        f"{name}: {what} is not in UTF-8, as JSON has to be",
        hint="the server should say in Content-Type which encoding it uses",
    )


def _columns_of_records(
    parts: Sequence[_Part], known: Known, seen: Seen
) -> tuple[dict[str, pa.Array], dict[str, Kind]] | None:
    if any(part.records is None or part.node != parts[0].node for part in parts):
        return None
    records = list(chain.from_iterable(part.records or () for part in parts))
    beside = {
        key: list(chain.from_iterable([part.added[key]] * len(part.records or ()) for part in parts))
        for key in parts[0].added
    }
    return columns_of_records(records, [part.piece for part in parts], known, seen, parts[0].node, beside)


def _with(added: Mapping[str, Any], rows: list[Row], name: str) -> list[Row]:
    """Children with their parent's fields in front."""
    for row in rows:
        taken = added.keys() & row.keys()
        if taken:
            raise SourceData(
                f"{name}: a row has a field '{min(taken)}', which is the parent's",
                hint="read the parents and the children as GraphQL, or without their parents",
            )
    return [{**added, **row} for row in rows]


def _pages(client: Client, query: str, cursor: Cursor) -> Pages:
    """Every page, with the parent's fields that its rows get."""
    config, target = client.config, target_of(query)
    if target.graphql:
        request = Request(config.base_url, query, _variables(query, cursor, config.cursor_format))
        for page in pages(client, request, config.data_path, _name(config.base_url)):
            yield page, {}
        return
    path = with_cursor(target.path, cursor, config.cursor_format)
    if not target.parent:
        for page in pages(client, Request(_address(config, path)), config.data_path, _name(path)):
            yield page, {}
        return
    yield from _children(client, target.parent, path, target.fields, cursor)


def _children(client: Client, parent: str, path: str, names: Sequence[str], cursor: Cursor) -> Pages:
    """The pages of each parent's children. A parent that is gone by then has none."""
    config = client.config
    url = _address(config, with_cursor(parent, cursor, config.cursor_format))
    read_parents = missing = 0
    last: ResourceMissing | None = None
    for page in pages(client, Request(url), config.parent_data_path, _name(parent)):
        for rows, _ in rows_in(page.rows, _name(parent), config.batch_bytes // 4):
            for row in rows:
                keys = {name: _key(row, name, parent) for name in names}
                child = filled(path, {name: str(scalar(value)) for name, value in keys.items()})
                added = {parent_column(parent, name): value for name, value in keys.items()}
                read_parents += 1
                arrived = False
                try:
                    for inner in pages(
                        client, Request(_address(config, child)), config.data_path, _name(child)
                    ):
                        yield inner, added
                        arrived = True
                except ResourceMissing as error:
                    if arrived:
                        raise
                    missing, last = missing + 1, error
                    _log.warning("%s is not there: its parent may be deleted by now", _name(child))
    if last is not None and missing == read_parents:
        raise last


def _key(row: Row, name: str, parent: str) -> Any:
    head, _, rest = name.partition(".")
    value = row.get(name) if name in row else at(row.get(head), rest) if rest else None
    if value is None or scalar(value) is None:
        raise SourceData(
            f"{_name(parent)}: a row has no '{name}', which its children are read by",
            why=f"its fields: {', '.join([*row][:20])}",
        )
    return value


def _variables(query: str, cursor: Cursor, format: str) -> dict[str, Any]:
    """The variables of a GraphQL query that carry the place reached: `$cursor`, `$cursor_end`."""
    values = {"cursor": cursor.start, "cursor_end": cursor.end}
    return {
        name: spelled(value, cursor.type, format)
        for name, value in values.items()
        if value is not None and re.search(rf"\${name}\s*:", query)
    }


def _address(config: Config, path: str) -> str:
    """An endpoint under the base address, or a full address of the same host."""
    if not path:
        return config.base_url
    if path.startswith(("http://", "https://")):
        return sending.allowed(config, config.base_url, path, "the query", _name(path))
    return f"{config.base_url}/{path.lstrip('/')}"


def _name(path: str) -> str:
    """How messages call an endpoint: without its parameters, which may hold anything."""
    return path.partition("?")[0]

"""Data files on a web server, by their addresses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field, field_validator

from dwcli.connectors import driver_missing
from dwcli.connectors._background import stop
from dwcli.connectors._formats.items import Listed
from dwcli.connectors._remote_files import (
    Server,
    changed,
    describe_listed_remote,
    read_listed_remote,
)
from dwcli.connectors._web_files import (
    WebClient,
    WebConfig,
    body_of,
    checked_address,
    close_web,
    finish,
    send,
    web_client,
)
from dwcli.contract import Cursor, IngestedItem, Resource
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData

TITLE = "Web address of a file"
ALIASES = ("web", "https")
EXTRA = "http"
TRIED = "Cheroot 11"
QUERY = "a file, such as orders.csv.gz, or its whole address"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True
#: What `dw test-connection` says where `discover` finds nothing.
UNLISTED = "a web server does not tell what is in a folder: name a file as the query, such as orders.csv"

_MAGIC = set("*?[")


class Address(BaseModel):
    """What is asked first."""

    url: str = Field(description="address of a file, or of a folder that files are named below")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return checked_address(value)


class Config(WebConfig, Address):
    """Data files on a web server."""


Client = WebClient


def connect(config: Config) -> Client:
    """Ask for the address. Raises ConnectionFailed with the layer, ResourceMissing where it is a file's."""
    try:
        client = web_client(config, config.url)
    except ImportError as error:
        raise driver_missing("url", error) from None
    client.server = Server(
        f"{urlsplit(config.url).scheme}://{urlsplit(config.url).netloc}",
        entries=lambda folder: [],
        chunks=partial(_chunks, client),
        stop=partial(stop, client.background),
        parallel=4,
    )
    try:
        _try(client, config.url)
    except BaseException:
        close_web(client)
        raise
    return client


def _try(client: Client, address: str) -> None:
    """Ask for the address. A folder's may be missing or closed though files in it can be had."""
    try:
        _ask_for(client, address)
    except ResourceMissing:
        if not address.endswith("/"):
            raise
    except ConnectionFailed as error:
        if not address.endswith("/") or error.layer != "permission":
            raise


def discover(client: Client) -> Iterator[Resource]:
    """The file itself; a web server does not tell what is in a folder."""
    if not client.config.url.endswith("/"):
        file = _listed(client, "")
        yield Resource(file.name, bytes_estimate=max(file.size, 0) or None, kind="file")


def describe(client: Client, query: str) -> Resource:
    """The columns and size of a file."""
    return describe_listed_remote(client.server, client.config, [_listed(client, query)], query)


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Batches of the file, unless `cursor.position` has it in the same state.

    query: a path below `url`, or its whole address; "" for `url` itself. Raises ResourceMissing when nothing
    is there, SourceData for what cannot be read exactly, ConnectionFailed for a file that broke off.
    """
    yield from read_listed_remote(client.server, client.config, [_listed(client, query)], cursor)


def close(client: Client) -> None:
    """End what is under way, and the connections."""
    close_web(client)


# -- one file ------------------------------------------------------------------------------------------


def _address(client: Client, query: str) -> str:
    """The address that a query means. Raises QueryFailed for a glob, or one that leads elsewhere."""
    from urllib.parse import urljoin

    base: str = client.config.url
    name = _name(client, base)
    if query in ("", ".", base, name):
        if base.endswith("/"):
            raise QueryFailed(
                f"a web server does not tell which files it has in {base}",
                hint="name one of them: query: orders.csv",
            )
        return base
    if _MAGIC & set(query.partition("?")[0]):
        raise QueryFailed(
            "a web server does not tell which files it has, so a glob matches nothing",
            hint="name each file in a pipeline of its own; for WebDAV servers there is protocol: webdav",
        )
    target = urljoin(base, query)
    parts = urlsplit(base)
    folder = f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}/"
    if not target.startswith(folder) or ".." in unquote(urlsplit(target).path).split("/"):
        raise QueryFailed(f"{query} is not below {folder}", hint="make it a source of its own")
    return target


def _name(client: Client, address: str) -> str:
    """How the file is called in `_source_path`: its path, without parameters, which may hold secrets."""
    path = urlsplit(client.config.url).path
    folder = path.rpartition("/")[0] + "/"
    return unquote(urlsplit(address).path.removeprefix(folder)) or urlsplit(address).netloc


def _listed(client: Client, query: str) -> Listed:
    address = _address(client, query)
    headers = _ask_for(client, address)
    # Some servers say 0 to HEAD where they do not know.
    size = int(headers.get("content-length") or 0) or -1
    mark = headers.get("etag") or headers.get("last-modified")
    # Without a mark, no stamp is had twice, so the file is read every time.
    stamp = f"{size}:{mark}" if mark else f"{size}:read at {time.time_ns()}"
    file = Listed(_name(client, address), size, stamp)
    client.addresses[file.name] = address
    return file


def _ask_for(client: Client, address: str) -> Mapping[str, str]:
    """What the server says of a file, without sending it."""
    try:
        try:
            response = send(client, "HEAD", address)
        except (QueryFailed, ConnectionFailed) as error:
            if getattr(error, "layer", "permission") not in ("permission", "lost"):
                raise
            response = send(client, "GET", address)  # not every server, and no signed address, knows HEAD
    except FileNotFoundError as error:
        raise ResourceMissing(
            f"{client.server.where} has no {error}", hint="check the address and the query"
        ) from None
    finish(client, response)
    packed = response.headers.get("content-encoding", "identity") != "identity"
    return {
        name.lower(): value
        for name, value in response.headers.items()
        if not (packed and name.lower() == "content-length")
    }


def _chunks(client: Client, file: Listed) -> Iterator[bytes]:
    response = send(client, "GET", client.addresses[file.name])
    kind = response.headers.get("content-type", "")
    if kind.startswith("text/html"):
        finish(client, response)
        raise SourceData(
            f"{file.name} is a web page, not a data file",
            why=f"the server says {kind}; it may be a login page or an error",
            hint="open the address in a browser that is not logged in",
        )
    length = int(response.headers.get("content-length") or -1)
    if length >= 0 and file.size >= 0 and length != file.size:
        finish(client, response)
        raise changed(file, f"{length} bytes")
    yield from body_of(client, response)

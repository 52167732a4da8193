"""Files on a WebDAV server, such as Nextcloud."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field, field_validator

from dwcli.connectors import driver_missing
from dwcli.connectors._background import stop
from dwcli.connectors._formats.items import Listed
from dwcli.connectors._remote_files import (
    Entry,
    Server,
    changed,
    describe,
    discover,
    join,
    read,
)
from dwcli.connectors._web_files import (
    WebClient,
    WebConfig,
    address,
    body_of,
    checked_address,
    close_web,
    send,
    web_client,
)
from dwcli.errors import QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "WebDAV"
ALIASES = ("nextcloud", "owncloud")
EXTRA = "webdav"
TRIED = "WsgiDAV 4.4"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True

#: Far more than the listing of a folder with 100,000 files.
_MOST_LISTING_BYTES = 256 * 1024 * 1024
_ASK = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>"
)


class Address(BaseModel):
    """What is asked first."""

    base_url: str = Field(description="address of the server's folder, such as https://host/dav")
    remote_base_path: str = Field("", description="folder that all paths are below; empty for the top")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return checked_address(value)


class Config(WebConfig, Address):
    """Files on a WebDAV server."""


Client = WebClient


def connect(config: Config) -> Client:
    """Ask for the folder. Raises ConnectionFailed with the layer, ResourceMissing for the folder."""
    try:
        import defusedxml  # type: ignore[import-untyped]  # noqa: F401

        client = web_client(config, join(config.base_url.rstrip("/"), config.remote_base_path.strip("/")))
    except ImportError as error:
        raise driver_missing("webdav", error) from None
    client.server = Server(
        client.base,
        entries=partial(_entries, client),
        chunks=partial(_chunks, client),
        stop=partial(stop, client.background),
        parallel=4,
    )
    try:
        list(_properties(client, "", 0))
    except FileNotFoundError:
        close_web(client)
        raise ResourceMissing(
            f"there is no folder at {client.base}", hint="check base_url and remote_base_path"
        ) from None
    except BaseException:
        close_web(client)
        raise
    return client


def close(client: Client) -> None:
    """End what is under way, and the connections."""
    close_web(client)


# -- what is there, and what is in it ------------------------------------------------------------------


def _entries(client: Client, folder: str) -> list[Entry]:
    found = list(_properties(client, folder, 1))
    if not found:
        return []
    # The folder itself is the shortest of the paths. A proxy may have put another prefix before all of them.
    base = min((path.rstrip("/") for path, _ in found), key=len)
    entries = []
    for path, entry in found:
        inner = path.rstrip("/")
        if inner == base:
            if not entry.folder:
                raise FileNotFoundError(folder)
            continue
        above, _, name = inner.rpartition("/")
        if above != base:
            raise SourceData(
                f"{client.server.where} lists {unquote(path)} in {folder or 'its root'}",
                why="that is not in this folder",
            )
        entries.append(Entry(unquote(name), entry.folder, entry.size, entry.stamp))
    return entries


def _properties(client: Client, path: str, depth: int) -> Iterator[tuple[str, Entry]]:
    """(path as the server writes it, what is there) of a path, and with depth 1 of all that is in it."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

    url = address(client, path) + ("/" if depth or not path else "")
    headers = {"Depth": str(depth), "Content-Type": "application/xml"}
    response = send(client, "PROPFIND", url, headers, _ASK)
    text = bytearray()
    for chunk in body_of(client, response):
        text += chunk
        if len(text) > _MOST_LISTING_BYTES:
            raise SourceData(f"the listing of {url} is larger than {_MOST_LISTING_BYTES:,} bytes")
    if response.status_code != 207:
        raise QueryFailed(
            f"{client.server.where} does not speak WebDAV",
            why=f"status {response.status_code} to PROPFIND",
            hint="check base_url: Nextcloud's is https://HOST/remote.php/dav/files/USER",
        )
    try:
        tree = fromstring(bytes(text))
    except (ParseError, DefusedXmlException) as error:
        raise SourceData(f"{url} is listed in a form that cannot be read", why=str(error)) from None
    for one in tree.iter("{DAV:}response"):
        yield urlsplit(one.findtext("{DAV:}href", "").strip()).path, _entry(one)


def _entry(response: Element) -> Entry:
    """Size and stamp, from the properties that the server has."""
    found: dict[str, str] = {}
    folder = False
    for group in response.iter("{DAV:}propstat"):
        if " 200" not in group.findtext("{DAV:}status", " 200"):
            continue
        folder = folder or group.find(".//{DAV:}resourcetype/{DAV:}collection") is not None
        for one in group.iterfind("{DAV:}prop/*"):
            found[one.tag] = (one.text or "").strip()
    size = int(found.get("{DAV:}getcontentlength") or -1)
    mark = found.get("{DAV:}getetag") or found.get("{DAV:}getlastmodified", "")
    return Entry("", folder, size, f"{size}:{mark}")


def _chunks(client: Client, file: Listed) -> Iterator[bytes]:
    yield from body_of(client, send(client, "GET", address(client, file.name)))
    now = next((entry.stamp for _, entry in _properties(client, file.name, 0)), "")
    if now != file.stamp:
        raise changed(file, now)

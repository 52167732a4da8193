"""Object stores (S3, Google Cloud Storage, Azure), which all list and give objects alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from dwcli.connectors._background import Background, ask, end, start, stop
from dwcli.connectors._formats.items import Listed
from dwcli.connectors._probe import reach
from dwcli.connectors._remote_files import TIMEOUT_SECONDS, Entry, RemoteFileConfig, Server, changed
from dwcli.contract import LOCAL_PATH
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from obstore import ObjectMeta

_CHUNK = 4 * 1024 * 1024


class ObjectsConfig(RemoteFileConfig):
    """What every object store has in its `Config`."""

    remote_base_path: str = Field("", description="folder that all paths are below; empty for the top")
    endpoint: str = Field(
        "",
        description="address of the store, if not the usual one",
        json_schema_extra={"advanced": True},
    )
    ca_file: str = Field(
        "",
        description="file of the authority that signed the store's certificate",
        json_schema_extra=LOCAL_PATH | {"advanced": True},
    )
    timeout_seconds: float = Field(
        TIMEOUT_SECONDS,
        gt=0,
        description="seconds without an answer that end a request",
        json_schema_extra={"advanced": True},
    )


@dataclass
class ObjectsClient:
    """One bucket or container."""

    config: Any
    #: how people know it, such as s3://bucket/exports
    where: str
    #: the address that is asked, for finding out why it does not answer
    endpoint: str
    store: Any
    background: Background = field(default_factory=start)
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(
            self.where,
            entries=partial(_entries, self),
            chunks=partial(_chunks, self),
            stop=partial(stop, self.background),
            parallel=4,
            look=partial(_look, self),
            deep=partial(_deep, self),
        )


def store_options(config: ObjectsConfig) -> dict[str, Any]:
    """What every store is opened with: patience, certificates, few repetitions, and the folder."""
    from datetime import timedelta
    from pathlib import Path

    seconds = config.timeout_seconds
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=min(10, seconds)),
        "read_timeout": timedelta(seconds=seconds),
        "timeout": timedelta(days=1),  # of a whole file; one that stands still ends by read_timeout
        "allow_http": config.endpoint.startswith("http://"),
    }
    if config.ca_file:
        try:
            client["root_certificate"] = Path(config.ca_file).read_bytes()
        except OSError as error:
            raise ConnectionFailed(
                f"{config.ca_file} cannot be read: {error.strerror}", layer="tls", hint="check ca_file"
            ) from None
    found: dict[str, Any] = {
        "client_options": client,
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=seconds)},
    }
    return found | ({"prefix": config.remote_base_path.strip("/")} if config.remote_base_path else {})


def try_objects(client: ObjectsClient) -> ObjectsClient:
    """Ask for the first object. Raises ConnectionFailed with the layer, or ResourceMissing."""
    try:
        some = _ask(client, _first(client.store))
    except SourceData:
        return client  # an object whose name is no path: so there is something
    except BaseException:
        close(client)
        raise
    if not some and client.config.remote_base_path:
        close(client)
        raise ResourceMissing(f"there is nothing in {client.where}", hint="check remote_base_path")
    return client


def close(client: ObjectsClient) -> None:
    """End what is under way. May be called twice."""
    end(client.background)


async def _first(store: Any) -> list[ObjectMeta]:
    import obstore

    async for some in obstore.list(store, chunk_size=1):
        return list(some)
    return []


# -- errors --------------------------------------------------------------------------------------------


def _ask(client: ObjectsClient, answer: Any) -> Any:
    """The answer of a coroutine; the driver's errors become those of dw. FileNotFoundError stays."""
    from obstore.exceptions import BaseError

    try:
        return ask(client.background, answer, what=client.where)
    except FileNotFoundError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _told(client, error) from None


def _told(client: ObjectsClient, error: Exception) -> DwError:
    """The error in dw's words: by the store's own code where there is one, else by the status."""
    text = str(error).partition("\n\nDebug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d+)", text)
    said = re.search(r"<Message>([^<]*)</Message>", text)
    name = code[1] if code else ""
    why = " ".join(filter(None, (name, said[1] if said else ""))) or (f"status {status[1]}" if status else "")
    if name in ("NoSuchBucket", "ContainerNotFound") or (status and status[1] == "404"):
        return ResourceMissing(
            f"there is no {client.where}", why=why, hint="check the name, and the endpoint"
        )
    if name in _REGION or "redirect without LOCATION" in text:
        return ConnectionFailed(
            f"{client.where} is in another region", layer="name", why=why, hint="set region to the bucket's"
        )
    if "Encountered object with invalid path" in text:
        return SourceData(
            f"{client.where} has an object whose name is no path",
            why=text.partition(": ")[2].partition("\n")[0],
            hint="read other folders by their paths, or rename it",
        )
    if name == "AccessDenied" or ("PermissionDenied" in type(error).__name__ and name not in _LOGIN):
        return ConnectionFailed(
            f"these credentials may not read {client.where}",
            layer="permission",
            why=why,
            hint="they must be allowed to list it and to get its objects",
        )
    if name in _LOGIN or (status and status[1] in ("400", "401", "403")) or _without_credentials(text):
        return ConnectionFailed(
            f"{client.where} refuses the login",
            layer="login",
            why=why or _short(text),
            hint="check the keys; for public data set anonymous",
        )
    if status and not status[1].startswith("5"):
        return QueryFailed(f"{client.where} refuses the request", why=why)
    return _unreachable(client, text, why)


_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_LOGIN = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthenticationFailed",
    "NoAuthenticationInformation",
    "InvalidAuthenticationInfo",
)


def _without_credentials(text: str) -> bool:
    """Whether it was the machine's own identity that was asked for, and there is none."""
    return any(
        sign in text for sign in ("169.254.169.254", "metadata.google", "service account", "oauth2/token")
    )


def _short(text: str) -> str:
    return text.partition("\n")[0][:200]


def _unreachable(client: ObjectsClient, text: str, why: str) -> ConnectionFailed:
    parts = urlsplit(client.endpoint)
    if "error sending request" in text and parts.hostname:
        try:
            reach(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        except ConnectionFailed as found:
            return found
        if parts.scheme == "https":
            return ConnectionFailed(
                f"no TLS with {parts.netloc}",
                layer="tls",
                why="its certificate cannot be trusted, or it does not speak TLS",
                hint="give the authority's certificate as ca_file",
            )
    return ConnectionFailed(
        f"the connection to {client.where} broke",
        layer="lost",
        why=why or _short(text),
        hint="run again: nothing that is loaded is fetched twice",
    )


# -- what is there, and what is in it ------------------------------------------------------------------


def _stamp(meta: ObjectMeta) -> str:
    mark = (meta.get("e_tag") or "").strip('"') or meta["last_modified"].isoformat()
    return f"{meta['size']}:{mark}"


def _listed(meta: ObjectMeta) -> Listed:
    return Listed(meta["path"], meta["size"], _stamp(meta))


def _entries(client: ObjectsClient, folder: str) -> list[Entry]:
    import obstore

    async def listing() -> Any:
        return await obstore.list_with_delimiter_async(client.store, folder or None)

    found = _ask(client, listing())
    entries = [Entry(path.rpartition("/")[2], folder=True) for path in found["common_prefixes"]]
    for meta in found["objects"]:
        if meta["path"] != folder:  # an empty object that stands for the folder itself
            name = meta["path"].rpartition("/")[2]
            entries.append(Entry(name, size=meta["size"], stamp=_stamp(meta)))
    if not entries and folder:
        raise FileNotFoundError(folder)
    return entries


def _look(client: ObjectsClient, path: str) -> Listed | None:
    import obstore

    async def head() -> Any:
        return await obstore.head_async(client.store, path)

    try:
        return _listed(_ask(client, head()))
    except FileNotFoundError:
        return None


def _deep(client: ObjectsClient, folder: str) -> Iterator[Listed]:
    import obstore

    async def listing() -> list[Listed]:
        found: list[Listed] = []
        async for some in obstore.list(client.store, folder or None, chunk_size=1000):
            found += map(_listed, some)
        return found

    found = _ask(client, listing())
    folders = {file.name.rpartition("/")[0] for file in found}
    yield from (file for file in found if file.size or file.name not in folders)


def _chunks(client: ObjectsClient, file: Listed) -> Iterator[bytes]:
    import obstore

    async def get() -> Any:
        return await obstore.get_async(client.store, file.name)

    result = _ask(client, get())
    now = _stamp(result.meta)
    if now != file.stamp:
        raise changed(file, now)
    stream = result.stream(min_chunk_size=_CHUNK).__aiter__()

    async def piece() -> Any:
        return await anext(stream, b"")

    while chunk := _ask(client, piece()):
        yield chunk

"""Files on a server: listed, brought to this machine while the one before is being read, then removed.

A connector describes its server by a `Server` of a few functions; what a path or a glob means, which files
are new, and how they become rows is the same as for `files`.

    list_remote       what a query means on the server
    read_remote       the rows of all that is new or changed
    describe_remote   the columns of one query, by a look at the beginning of its first file
    discover_remote   everything that is there
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import partial
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from pydantic import Field

from dwcli.ahead import ahead
from dwcli.connectors._formats import FileFields, Options, known_format, options_of
from dwcli.connectors._formats.items import Listed, describe_listed, groups_of, read_listed
from dwcli.connectors._formats.streams import base_name
from dwcli.connectors._temporary import no_room
from dwcli.contract import ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import NO_ROOM, ConnectionFailed, QueryFailed, ResourceMissing, SourceData

#: Files above this size are fetched one after the other, so that few of them lie on this machine at once.
_LARGE = 64 * 1024 * 1024
#: As much of a text file is fetched to see its columns.
_HEAD_BYTES = 8 * 1024 * 1024
_TEXT_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".ndjson", ".jsonl")


Format = Literal["auto", "csv", "tsv", "json", "ndjson", "parquet", "excel"]


class RemoteFileConfig(ConnectorConfig, FileFields):
    """What every connector for files on a server has in its `Config`."""

    # What the files tell themselves is no question for the wizard.
    format: Format = Field("auto", description="format of the files", json_schema_extra={"advanced": True})
    sheet: str = Field(
        "", description="sheet of a workbook, by name or number", json_schema_extra={"advanced": True}
    )


#: What is wrong when nothing comes for so long, in seconds, unless the config says otherwise.
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """One line of a folder's listing."""

    name: str
    folder: bool = False
    size: int = 0
    #: changes whenever the content does, as far as the server tells
    stamp: str = ""
    #: a symbolic link: `**` does not go into it, since it may lead back
    link: bool = False


@dataclass(frozen=True)
class Server:
    """What a server can do. All paths are below the source's root, with slashes; "" is the root.

    entries, look and chunks raise FileNotFoundError for what is not there, and ConnectionFailed.
    """

    #: how people know the root, such as ftp://host/exports
    where: str
    #: what is in one folder
    entries: Callable[[str], Iterable[Entry]]
    #: the bytes of a file as it was listed; SourceData where it is another one by now. Called in a thread.
    chunks: Callable[[Listed], Iterator[bytes]]
    #: ends what `chunks` is waiting for, from another thread
    stop: Callable[[], None]
    #: how many files may be fetched at once
    parallel: int = 1
    #: one file, where that is cheaper than listing its folder; None when there is no such file
    look: Callable[[str], Listed | None] | None = None
    #: all files at any depth below a folder, where that is one question to the server
    deep: Callable[[str], Iterable[Listed]] | None = None
    #: a file with an exact stamp, where a folder's listing has none
    exact: Callable[[Listed], Listed] | None = None
    #: whether a query may begin with a slash, as a path from the server's own root
    absolute: bool = False
    #: files that `describe` brought, which the next read need not bring again
    kept: dict[Listed, Fetched] = field(default_factory=dict)


class RemoteClient(Protocol):
    """The client of a connector that takes `discover`, `describe` and `read` from here."""

    @property
    def server(self) -> Server: ...

    @property
    def config(self) -> RemoteFileConfig: ...


@dataclass(frozen=True, eq=False)
class Fetched:
    """A file on this machine; it is gone when this record is. None: it was gone on the server."""

    path: Path | None = None


# -- what is there -------------------------------------------------------------------------------------


def list_remote(server: Server, query: str, format: str) -> list[Listed]:
    """The files that a path or glob means, by name. Raises ResourceMissing, with the nearest name, for none.

    format: the configured one; with "auto", a folder means those of its files that have a known ending.
    """
    pattern = _pattern(server, query)
    folder, _, name = pattern.rpartition("/")
    if pattern.startswith("/") and not folder:
        folder = "/"
    found: dict[str, Listed] = {}
    if pattern and (not has_magic(pattern) or "[" in pattern):  # a name may have brackets of its own
        single = _single(server, pattern, folder, name)
        if single:
            return _stamped(server, [single])
    if has_magic(pattern):
        anything = "." in name or format != "auto"
        found = {f.name: f for f in _glob(server, pattern) if anything or known_format(f.name)}
        if not found:
            raise ResourceMissing(
                f"no file matches {pattern} in {server.where}", hint="see what is there: dw preview"
            )
    if not found:
        wanted = join(pattern, "**")
        found = {f.name: f for f in _glob(server, wanted) if format != "auto" or known_format(f.name)}
    if not found:
        raise _missing(server, pattern, folder, name)
    return _stamped(server, sorted(found.values(), key=lambda file: file.name))


def _stamped(server: Server, files: Sequence[Listed]) -> list[Listed]:
    return [server.exact(file) if server.exact else file for file in files]


def _pattern(server: Server, query: str) -> str:
    """What a query means below the root. Raises QueryFailed for what leads out of it."""
    parts = query.split("/")
    if ".." in parts:
        raise QueryFailed(f"{query} leads out of {server.where}", hint="give a path below the source's")
    absolute = "/" if query.startswith("/") and server.absolute else ""
    return absolute + "/".join(part for part in parts if part not in ("", "."))


def join(folder: str, name: str) -> str:
    """A path below a folder; "" is the root."""
    return f"{folder.rstrip('/')}/{name}" if folder else name


def _single(server: Server, pattern: str, folder: str, name: str) -> Listed | None:
    if server.look:
        return server.look(pattern)
    try:
        entries = _entries(server, folder)
    except FileNotFoundError:
        return None
    return next((_listed(folder, e) for e in entries if e.name == name and not e.folder), None)


def _entries(server: Server, folder: str) -> list[Entry]:
    """A folder's listing. Raises SourceData for a name that no file in it can have."""
    entries = list(server.entries(folder))
    for entry in entries:
        if "/" in entry.name or "\0" in entry.name or entry.name in ("", ".", ".."):
            raise SourceData(
                f"{server.where} lists a file named {entry.name!r} in {folder or 'its root'}",
                why="a name with a slash leads out of its folder",
                hint="tell whoever runs the server; name other files by a path or glob",
            )
    return entries


def _listed(folder: str, entry: Entry) -> Listed:
    return Listed(join(folder, entry.name), entry.size, entry.stamp)


def _glob(server: Server, pattern: str) -> Iterator[Listed]:
    """Files that a glob matches, as `glob.iglob` does: `**` is any depth, hidden names match no wildcard."""
    parts = pattern.strip("/").split("/")
    fixed = 0
    while fixed < len(parts) - 1 and not has_magic(parts[fixed]):
        fixed += 1
    folder = ("/" if pattern.startswith("/") else "") + "/".join(parts[:fixed])
    if server.deep and "**" in parts:
        for file in server.deep(folder):
            inner = file.name[len(folder) :].strip("/") if folder else file.name
            if _matches(inner.split("/"), parts[fixed:]):
                yield file
        return
    yield from _walk(server, folder, parts[fixed:], {})


def _walk(
    server: Server, folder: str, parts: Sequence[str], known: dict[str, list[Entry]]
) -> Iterator[Listed]:
    """known: folders that were listed already."""
    head, rest = parts[0], parts[1:]
    if rest and head != "**" and not has_magic(head):
        yield from _walk(server, join(folder, head), rest, known)
        return
    if folder not in known:
        try:
            known[folder] = _entries(server, folder)
        except FileNotFoundError:
            known[folder] = []
    if head == "**":
        yield from _walk(server, folder, rest or ["*"], known)
        for entry in known[folder]:
            if entry.folder and not entry.link and not entry.name.startswith("."):
                yield from _walk(server, join(folder, entry.name), parts, known)
        return
    for entry in known[folder]:
        if not _fits(entry.name, head):
            continue
        if rest and entry.folder:
            yield from _walk(server, join(folder, entry.name), rest, known)
        elif not rest and not entry.folder:
            yield _listed(folder, entry)


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a glob match a path as a whole."""
    if not parts:
        return not names
    if parts[0] == "**":
        rest = parts[1:] or ["*"]
        return _matches(names, rest) or (
            len(names) > 1 and not names[0].startswith(".") and _matches(names[1:], parts)
        )
    return bool(names) and _fits(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _fits(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return re.match(translate(part), name) is not None


def _missing(server: Server, pattern: str, folder: str, name: str) -> ResourceMissing:
    """The error for a path that is not there, or a folder without files that can be read."""
    try:
        if not pattern or _entries(server, pattern):
            return ResourceMissing(
                f"there is no file that can be read in {join(server.where, pattern.strip('/'))}",
                why="names end in .csv, .tsv, .json, .ndjson, .parquet, .xlsx …, packed or not",
                hint="name other files by a path or glob, and their format",
            )
    except FileNotFoundError:
        pass
    try:
        there = sorted(entry.name for entry in _entries(server, folder))
    except FileNotFoundError:
        there = []
    some = ", ".join(there[:10]) or "nothing"
    return ResourceMissing(
        f"{pattern} does not exist in {server.where}.{nearest(name, there)}",
        hint=f"there is in {folder or 'its root'}: {some}{' …' if len(there) > 10 else ''}",
    )


# -- bringing files here -------------------------------------------------------------------------------


def _temporary() -> tuple[int, Fetched]:
    """A new file that only this user can read, open for writing.

    Where the system can, it has no name at all, so that it is gone with the process, however that ends.
    """
    folder = tempfile.gettempdir()
    try:
        number = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fetched = Fetched(Path(f"/proc/self/fd/{number}"))
        if not os.path.exists(f"/proc/self/fd/{number}"):  # noqa: PTH110
            os.close(number)
            raise OSError
    except (AttributeError, OSError):  # not Linux, or a file system without nameless files
        number, name = tempfile.mkstemp(prefix="dw-", dir=folder)
        fetched = Fetched(Path(name))
        weakref.finalize(fetched, Path(name).unlink, missing_ok=True)
    weakref.finalize(fetched, os.close, number)
    return number, fetched


def fetch(server: Server, file: Listed, limit: int | None = None) -> Fetched:
    """The file on this machine, whole, or at least its first `limit` bytes.

    Raises ConnectionFailed where fewer bytes come than were listed: an end is no proof of being whole.
    """
    number, fetched = _temporary()
    got = 0
    try:
        with closing(_closable(server.chunks(file))) as chunks:
            for chunk in chunks:
                got += _write(number, chunk)
                if limit is not None and got >= limit:
                    return fetched
    except FileNotFoundError:
        return Fetched()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(file.name, f"{error.strerror}; the file has {file.size:,} bytes") from None
    if file.size >= 0 and got != file.size:
        raise ConnectionFailed(
            f"{file.name} ended after {got:,} of {file.size:,} bytes",
            layer="lost",
            why="the connection broke, or the file is being written",
            hint="run again: nothing of it was loaded",
        )
    return fetched


def _write(number: int, chunk: bytes) -> int:
    view = memoryview(chunk)
    while view:
        view = view[os.write(number, view) :]
    return len(chunk)


def _closable(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """As a generator, which can be closed, and closes what is beneath it."""
    yield from chunks


def _arriving(server: Server, files: Sequence[Listed]) -> Generator[Fetched, None, None]:
    """The files in order, the next ones fetched while one is being read."""
    small = all(0 <= file.size <= _LARGE for file in files)
    lanes = min(server.parallel if small else 1, len(files))
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(ahead(map(partial(fetch, server), lane), stop=server.stop)))
            for lane in (files[number::lanes] for number in range(lanes))
        ]
        for number in range(len(files)):
            fetched = next(streams[number % lanes])
            if number + lanes >= len(files):
                next(streams[number % lanes], None)  # its end, so that leaving it now stops nothing
            yield fetched


# -- reading -------------------------------------------------------------------------------------------


def read(client: RemoteClient, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Batches of all files that `query` means, without those that `cursor.position` has in the same state.

    query: a path or glob below the base; "" or "." for everything. Raises ResourceMissing when nothing is
    there, SourceData for what cannot be read exactly, ConnectionFailed for a file that broke off.
    """
    server, config = client.server, client.config
    yield from read_listed_remote(server, config, list_remote(server, query, config.format), cursor)


def read_listed_remote(
    server: Server, config: RemoteFileConfig, files: Sequence[Listed], cursor: Cursor
) -> Iterator[IngestedItem]:
    """The same of files that are known already."""
    position = (cursor.position or {}).get("files", {})
    wanted = [file for file in files if position.get(file.name) != file.stamp]
    kept = dict(server.kept)
    server.kept.clear()
    arriving = _arriving(server, [file for file in wanted if file not in kept])

    @contextmanager
    def local(file: Listed) -> Iterator[Path]:
        fetched = kept.pop(file, None) or next(arriving)
        if fetched.path is None:
            raise FileNotFoundError(file.name)
        yield fetched.path

    with closing(arriving):
        # What is read is a copy: the server's file cannot change beneath it.
        yield from read_listed(files, local, lambda file: file.stamp, _options(config), cursor)


def describe(client: RemoteClient, query: str) -> Resource:
    """The columns and size of what a path or glob means."""
    server, config = client.server, client.config
    return describe_listed_remote(server, config, list_remote(server, query, config.format), query or "**")


def describe_listed_remote(
    server: Server, config: RemoteFileConfig, files: Sequence[Listed], name: str
) -> Resource:
    """The same of files that are known already."""
    try:
        found = describe_listed(files, partial(_beginning, server, config), name, _options(config))
    except SourceData:
        # The cut may have hidden what the reader needs; with the whole file, the error is the file's own.
        found = describe_listed(files, partial(_whole, server), name, _options(config))
    if any(file.size < 0 for file in files):
        return replace(found, row_estimate=None, bytes_estimate=None)
    return found


@contextmanager
def _beginning(server: Server, config: RemoteFileConfig, file: Listed) -> Iterator[Path]:
    if file.size <= _HEAD_BYTES or not _is_text(file.name, config):
        with _whole(server, file) as path:
            yield path
        return
    fetched = fetch(server, file, _HEAD_BYTES)
    if fetched.path is None:
        raise ResourceMissing(f"{file.name} is gone since it was listed")
    yield fetched.path


@contextmanager
def _whole(server: Server, file: Listed) -> Iterator[Path]:
    fetched = server.kept.get(file) or fetch(server, file)
    if fetched.path is None:
        raise ResourceMissing(f"{file.name} is gone since it was listed")
    server.kept.clear()
    server.kept[file] = fetched
    yield fetched.path


def _is_text(name: str, config: RemoteFileConfig) -> bool:
    """Whether the beginning of such a file can be read without its end."""
    if config.compression == "zip" or name.lower().endswith(".zip"):
        return False
    if config.format != "auto":
        return config.format in ("csv", "tsv", "ndjson")
    return PurePosixPath(base_name(name).lower()).suffix in _TEXT_ENDINGS


def discover(client: RemoteClient) -> Iterator[Resource]:
    """Groups of files that look alike, then single files. Their columns are known when one is described."""
    for name, files in groups_of(list_remote(client.server, "", client.config.format)):
        kind = "file" if len(files) == 1 else "files"
        yield Resource(name, bytes_estimate=sum(file.size for file in files), kind=kind)


def _options(config: RemoteFileConfig) -> Options:
    return options_of(config, config.batch_bytes)


def changed(file: Listed, now: str) -> SourceData:
    """The error for a file that is another one than was listed."""
    return SourceData(
        f"{file.name} changed while it was being fetched",
        why=f"it was {file.stamp} when it was listed, and is {now}",
        hint="run again when it is written to the end; writers should write elsewhere and rename",
    )

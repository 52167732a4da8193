"""Files on this machine: one, a folder of them, or all that a glob matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from dwcli.connectors._formats import FileFields, Options, known_format, options_of
from dwcli.connectors._formats.items import Listed, Local, describe_listed, groups_of, read_listed
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing

TITLE = "Files (CSV, JSON, Parquet, Excel)"
ALIASES = ("file", "csv", "json", "parquet", "excel")
TRIED = "files on Linux"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "files that are new or changed"
TYPING = "inferred"
STREAMING = True


class Place(BaseModel):
    """What is asked first."""

    path: str = Field(
        min_length=1, description="file, folder or glob, such as data/*.csv", json_schema_extra=LOCAL_PATH
    )


class Config(ConnectorConfig, FileFields, Place):
    """Files on this machine."""

    @field_validator("path")
    @classmethod
    def _path_is_local(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if separator:
            protocol = "url" if scheme in ("http", "https") else scheme
            raise ValueError(f"{scheme}:// is no file on this machine; use the protocol {protocol}")
        return value


@dataclass(frozen=True)
class Client:
    """Where the files are: all names are relative to `root`."""

    config: Config
    root: Path
    #: what `path` itself means below `root`: a name, a glob, or "" for the whole folder
    pattern: str

    @property
    def options(self) -> Options:
        return options_of(self.config, self.config.batch_bytes)


def connect(config: Config) -> Client:
    """Find the folder. Raises ResourceMissing where it is not, ConnectionFailed where it may not be read."""
    path = Path(config.path).expanduser()
    if path.is_dir():
        client = Client(config, path, "")
    elif path.exists():
        client = Client(config, path.parent, path.name)
    elif not glob.has_magic(str(path)):
        raise _missing(path)
    else:
        parts = path.parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        client = Client(config, Path(*parts[:fixed]), str(Path(*parts[fixed:])))
    if not client.root.is_dir():
        raise _missing(client.root)
    if not os.access(client.root, os.R_OK | os.X_OK):
        raise ConnectionFailed(
            f"{client.root} may not be read",
            layer="permission",
            hint=f"let this user read it: chmod +rx {client.root}",
        )
    return client


def discover(client: Client) -> Iterator[Resource]:
    """Groups of files that look alike, then single files, each with the columns of its first block."""
    files = list_files(client, "")
    offers = groups_of(files) if not client.pattern else iter([(client.pattern, files)])
    for name, members in offers:
        yield describe_listed(members, _local(client), name, client.options)


def describe(client: Client, query: str) -> Resource:
    """The columns and size of what a path or glob means."""
    files = list_files(client, query)
    return describe_listed(files, _local(client), query or client.config.path, client.options)


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Batches of all files that `query` means, without those that `cursor.position` has in the same state.

    query: a path or glob below `path`; "" or "." for everything. Raises ResourceMissing when nothing is
    there, SourceData, with file and line, for what cannot be read exactly.
    """
    files = list_files(client, query)

    def stamp_now(file: Listed) -> str:
        return _listed(client.root, file.name).stamp

    yield from read_listed(files, _local(client), stamp_now, client.options, cursor)


def close(client: Client) -> None:
    """Nothing stays open between two reads."""


def list_files(client: Client, query: str) -> list[Listed]:
    """The files that a query means, by name. Raises ResourceMissing, with the nearest name, for none."""
    pattern = _pattern(client, query)
    found = sorted(_expand(client, pattern))
    if not found and not (client.root / pattern).is_dir():
        if not glob.has_magic(pattern):
            raise _missing(client.root / pattern)
        raise ResourceMissing(
            f"no file matches {_shown(client.root)}/{pattern}",
            hint=f"see what is there: ls {_shown(client.root)}",
        )
    if not found:
        raise ResourceMissing(
            f"there is no file that can be read in {client.root / pattern}",
            why="names end in .csv, .tsv, .json, .ndjson, .parquet, .xlsx …, packed or not",
            hint="name other files by a path or glob, and their format",
        )
    return [_listed(client.root, name) for name in found]


def _pattern(client: Client, query: str) -> str:
    """What a query means below the root: a name, a glob, or "" for everything in it."""
    path = Path(query).expanduser()
    if query in ("", ".", client.config.path):
        return client.pattern
    if path.is_absolute():
        if not path.is_relative_to(client.root.absolute()):
            raise QueryFailed(f"{query} is not under {client.root}", hint="give a path below the source's")
        path = path.relative_to(client.root.absolute())
    if ".." in path.parts:
        raise QueryFailed(f"{query} leads out of {client.root}", hint="give a path below the source's")
    return "" if str(path) == "." else str(path)


def _expand(client: Client, pattern: str) -> Iterator[str]:
    """Names below the root, unsorted. Hidden files never; of a whole folder, those of known formats."""
    target = client.root / pattern
    if pattern and target.is_file():
        yield Path(pattern).as_posix()
        return
    if target.is_dir():
        prefix = glob.escape(pattern) + "/" if pattern else ""
        pattern = f"{prefix}**"
    named = "." in Path(pattern).name or client.config.format != "auto"
    for name in glob.iglob(pattern, root_dir=client.root, recursive=True):  # noqa: PTH207 - Path.glob's ** is folders alone
        if (named or known_format(name)) and (client.root / name).is_file():
            yield Path(name).as_posix()


def _listed(root: Path, name: str) -> Listed:
    stat = (root / name).stat()
    return Listed(name, stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}")


def _local(client: Client) -> Local:
    return lambda file: nullcontext(client.root / file.name)


def _missing(path: Path) -> ResourceMissing:
    """The error for a path that is not there: how far it exists, and the nearest name there."""
    above = next(parent for parent in [*path.parents, Path("/")] if parent.is_dir())
    wanted = path.relative_to(above).parts[0] if path.is_relative_to(above) else path.name
    there = sorted(entry.name for entry in above.iterdir())
    like = nearest(wanted, there)
    return ResourceMissing(
        f"{_shown(path)} does not exist{'.' if like else ''}{like}",
        hint=f"see what is there: ls {_shown(above)}",
    )


def _shown(path: Path) -> Path:
    """A path without the detours that lead from the project folder to it."""
    return path.resolve() if ".." in path.parts else path

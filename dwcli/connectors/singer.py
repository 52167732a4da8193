"""Singer taps: any of them is a source. dw runs the tap, reads its messages and keeps its state.

A tap is a program that writes JSON lines: SCHEMA, RECORD and STATE. The state is the tap's own note of how
far it has come. It is committed with the rows, in the warehouse, and given back to the tap by the next run;
so a run that dies is as if it had never been. Each pipeline runs the tap for its stream alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from dwcli.connectors import _singerrows, _singertap
from dwcli.connectors._within import within
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, CursorCandidate, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData

TITLE = "Singer tap"
ALIASES = ("tap", "meltano")
TRIED = "tap-jsonl 0.3.1 and a tap of its own"
QUERY = "a stream of the tap"
INCREMENTAL = "the tap's state"
TYPING = "declared"
STREAMING = True

#: A catalogue larger than this is none.
MAX_CATALOG_BYTES = 256 * 1024 * 1024


class Config(ConnectorConfig):
    """A Singer tap."""

    tap: str = Field(
        description="path of the tap's program, or the package that brings it",
        min_length=1,
        examples=["tap-jsonl==0.3.1"],
    )
    tap_config: dict[str, JsonValue] = Field(
        default_factory=dict, description="settings of the tap, as its own documentation has them", repr=False
    )
    catalog: Path | None = Field(
        None,
        description="file with the tap's catalogue, where it is not the one that --discover prints",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    executable: str = Field(
        "",
        description="name of the program in the package, where it is not the package's",
        json_schema_extra={"advanced": True},
    )
    taps_folder: Path = Field(
        Path("~/.cache/dwcli/taps"),
        description="folder that packages are installed into, each in an environment of its own",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )


@dataclass
class Client:
    """A tap that can be run, and its catalogue once it has been asked for."""

    config: Config
    program: str
    secrets: list[str]
    catalog: dict[str, Any] | None = None
    running: list[_singertap.Tap] = field(default_factory=list)
    #: folders with secrets in them
    folders: list[Path] = field(default_factory=list)
    closed: bool = False


def connect(config: Config) -> Client:
    """Find the tap, or install it. Raises ConnectionFailed when there is none."""
    program = _singertap.locate(config.tap, config.executable, config.taps_folder)
    return Client(config, program, _singertap.secrets_in(config.tap_config))


def close(client: Client) -> None:
    """End the taps that run; a read that is under way ends with an error."""
    client.closed = True
    for tap in [*client.running]:
        _singertap.stop(tap)
    _singertap.discard(client.folders)


# -- the catalogue ---------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """The tap's streams. Raises QueryFailed when the tap cannot reach its source."""
    for stream in _catalog(client)["streams"]:
        yield _resource(stream)


def describe(client: Client, query: str) -> Resource:
    """Columns, key and bookmark of one stream. Raises ResourceMissing."""
    return _resource(_stream(client, query))


def _catalog(client: Client) -> dict[str, Any]:
    if client.catalog is None:
        path = client.config.catalog
        client.catalog = _checked(client, _from_file(path) if path else _discovered(client))
    return client.catalog


def _from_file(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ResourceMissing(
            f"the catalogue {path} cannot be read", why=error.strerror or str(error), hint="check catalog"
        ) from None


def _discovered(client: Client) -> bytes:
    with _singertap.papers({"config": client.config.tap_config}, client.folders) as paths:
        tap = _started(client, ["--config", paths["config"], "--discover"])
        found = bytearray()
        try:
            for piece in _singertap.output(tap):
                found += piece
                if len(found) > MAX_CATALOG_BYTES:
                    raise QueryFailed(f"{tap.name} --discover does not come to an end")
        finally:
            client.running.remove(tap)
            _singertap.release(tap)
    return bytes(found)


def _started(client: Client, arguments: Sequence[str]) -> _singertap.Tap:
    if client.closed:
        raise ConnectionFailed("the read was stopped", layer="lost")
    tap = _singertap.start([client.program, *arguments], client.secrets)
    client.running.append(tap)
    if client.closed:  # in the meantime
        _singertap.stop(tap)
    return tap


def _checked(client: Client, text: bytes) -> dict[str, Any]:
    """The catalogue, in which lines that are no JSON may come before the object."""
    name = Path(client.program).name
    try:
        catalog = json.loads(text[max(0, text.find(b"{")) :])
        streams = catalog["streams"]
        if not all(isinstance(stream["tap_stream_id"], str) for stream in streams):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise QueryFailed(
            f"{name} gives no catalogue",
            why="a catalogue is a JSON object with a list of streams",
            hint="check the tap: it has to know --discover; or give the file with catalog",
        ) from None
    return dict(catalog)


def _stream(client: Client, query: str) -> dict[str, Any]:
    wanted = query.strip()
    streams: list[dict[str, Any]] = _catalog(client)["streams"]
    for name in ("tap_stream_id", "stream", "stream_alias", "table_name"):
        for stream in streams:
            if stream.get(name) == wanted:
                return stream
    known = [stream["tap_stream_id"] for stream in streams]
    raise ResourceMissing(
        f"the tap has no stream '{wanted}'.{nearest(wanted, known)}",
        hint=f"its streams: {', '.join(known[:20])}" if known else "check tap_config: it offers nothing",
    )


def _facts(stream: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata says of the stream as a whole."""
    for entry in stream.get("metadata") or ():
        if not entry.get("breadcrumb"):
            return dict(entry.get("metadata") or {})
    return {}


def _key(stream: Mapping[str, Any]) -> tuple[str, ...]:
    facts = _facts(stream)
    found = (
        stream.get("key_properties")
        or facts.get("table-key-properties")
        or facts.get("view-key-properties")
        or ()
    )
    return tuple(str(name) for name in found)


def _method(stream: Mapping[str, Any]) -> str:
    """INCREMENTAL, FULL_TABLE or LOG_BASED."""
    facts = _facts(stream)
    given = (
        facts.get("replication-method")
        or stream.get("replication_method")
        or facts.get("forced-replication-method")
    )
    return str(given or ("INCREMENTAL" if _bookmark(stream) else "FULL_TABLE"))


def _bookmark(stream: Mapping[str, Any]) -> str:
    facts = _facts(stream)
    valid = facts.get("valid-replication-keys") or [""]
    return str(facts.get("replication-key") or stream.get("replication_key") or valid[0])


def _resource(stream: Mapping[str, Any]) -> Resource:
    columns = _singerrows.columns_of(stream.get("schema") or {})
    key, method, bookmark = _key(stream), _method(stream), _bookmark(stream)
    by_name = {column.name: column for column in columns}
    columns = tuple(replace(c, nullable=False) if c.name in key else c for c in columns)
    cursors: tuple[CursorCandidate, ...] = ()
    if method == "INCREMENTAL" and bookmark in by_name:
        # without a key, changed rows cannot take the place of the old ones
        cursors = (CursorCandidate(bookmark, "the tap's bookmark", sure=True, append_only=not key),)
    return Resource(
        stream["tap_stream_id"],
        columns,
        key,
        "key properties of the tap" if key else "",
        cursors=cursors,
        # a tap without a bookmark gives every row each time
        kind="table" if method == "FULL_TABLE" else "stream",
    )


def _selected(catalog: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue with one stream chosen. Marks are set in all the places where taps look for them."""
    chosen = copy.deepcopy(dict(catalog))
    for stream in chosen["streams"]:
        mine = stream["tap_stream_id"] == wanted["tap_stream_id"]
        stream["selected"] = mine
        if isinstance(stream.get("schema"), dict):
            stream["schema"]["selected"] = mine
        entries = stream.setdefault("metadata", [])
        whole = next((entry for entry in entries if not entry.get("breadcrumb")), None)
        if whole is None:
            whole = {"breadcrumb": [], "metadata": {}}
            entries.append(whole)
        facts = whole.setdefault("metadata", {})
        facts["selected"] = mine
        if mine:
            facts.setdefault("replication-method", _method(stream))
            if _method(stream) == "INCREMENTAL" and _bookmark(stream):
                facts.setdefault("replication-key", _bookmark(stream))
            _select_columns(stream, entries)
    return chosen


def _select_columns(stream: Mapping[str, Any], entries: list[dict[str, Any]]) -> None:
    """Choose every column on which the catalogue says nothing."""
    told = {tuple(entry.get("breadcrumb") or ()): entry for entry in entries}
    for name in (stream.get("schema") or {}).get("properties") or {}:
        entry = told.get(("properties", name))
        if entry is None:
            entries.append({"breadcrumb": ["properties", name], "metadata": {"selected": True}})
            continue
        facts = entry.setdefault("metadata", {})
        if facts.get("inclusion") != "unsupported" and facts.get("selected-by-default") is not False:
            facts.setdefault("selected", True)


# -- reading ---------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The records of a stream, from where the tap's state left off.

    Raises ResourceMissing, QueryFailed when the tap fails or is killed, SourceData for messages that
    cannot be read or a state that is not a tap's.
    """
    stream = _stream(client, query)
    documents: dict[str, Any] = {
        "config": client.config.tap_config,
        "catalog": _selected(_catalog(client), stream),
    }
    if cursor.position is not None and (state := _state(cursor.position)) is not None:
        documents["state"] = state
    names = {
        stream[key] for key in ("tap_stream_id", "stream", "stream_alias", "table_name") if stream.get(key)
    }
    names |= {_facts(stream).get("stream-alias") or stream["tap_stream_id"]}
    with _singertap.papers(documents, client.folders) as paths:
        arguments = [part for name, path in paths.items() for part in (f"--{name}", path)]
        tap = _started(client, arguments)
        try:
            reading = _singerrows.Read(
                tap.name, names, _singerrows.fields_of(stream.get("schema") or {}), client.config.batch_bytes
            )
            for item in _singerrows.items_of(reading, _singertap.output(tap)):
                # what a key merges is let through: a tap may look back for rows that were committed late
                late = cursor.again and cursor.end is None
                yield item if late else within(item, cursor, query)
        finally:
            client.running.remove(tap)
            _singertap.release(tap)


def _state(position: Any) -> Any:
    if not isinstance(position, dict) or "state" not in position:
        raise SourceData(
            "the place reached is not the state of a tap",
            hint="read everything again: dw run NAME --full-refresh",
        )
    return position["state"]

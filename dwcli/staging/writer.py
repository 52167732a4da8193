"""IngestionResult → Parquet in the lake, and the manifest that makes a snapshot of it.

    <lake>/<protocol>/<source>/<YYYY-MM-DD>/<source>_<utc>_<n>.parquet
    <lake>/<protocol>/<source>/<YYYY-MM-DD>/<source>_<utc>.manifest.json

Every file is written under a temporary name, fsynced, and renamed. Files without a manifest never
happened; the manifest, written last, is what makes them a snapshot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from dwcli import crashpoints
from dwcli.contract import IngestedItem, IngestionResult
from dwcli.errors import LakeError
from dwcli.log import get_logger
from dwcli.staging.frames import Types, item_frame

TYPES_KEY = "dw.types"
MANIFEST = ".manifest.json"
OPEN = ".open"
REFUSED = ".refused"
#: The manifest's key for the checksum of all the others.
CHECKSUM = "checksum"
TEMPORARY = ".tmp"

log = get_logger(__name__)


@dataclass(frozen=True)
class StagedFile:
    """One Parquet file of a snapshot."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What one run read: written last, it makes the files a snapshot."""

    run_id: str
    pipeline: str
    protocol: str
    warehouse_id: str
    schema: str
    table: str
    write: str
    key: tuple[str, ...]
    cursor: str | None
    cursor_from: str | None
    cursor_to: str | None
    cursor_type: str
    position: Any
    replaces: tuple[Mapping[str, str], ...]
    fresh: bool
    files: tuple[StagedFile, ...]
    rows: int
    written_at: str
    values_changed: Mapping[str, int] = field(default_factory=dict)
    #: when its first row was read; loading it again says the same
    ingested_at: str = ""
    #: a column whose NULL rows are in the files and not in the table
    nulls_left_out: str = ""
    #: soft or hard, and the file of keys that the source no longer had (and those it had again)
    deletes: str = "ignore"
    gone: StagedFile | None = None
    #: each row was all that the source had of its key
    states: bool = False

    @property
    def every_file(self) -> tuple[StagedFile, ...]:
        return (*self.files, *((self.gone,) if self.gone else ()))


def write_ingestion_result_to_parquet(
    result: IngestionResult, lake_path: str | Path, source_name: str
) -> list[str]:
    """Write what a source answered into the lake; one Parquet file per item.

    Items that a source wrote into the lake itself (`lake_path` set) are not written again: their own
    path is returned. A result without success, or without items, writes nothing and returns [].

    Raises LakeError when the lake cannot be written, and whatever reading the items raises.
    """
    if not result.success:
        return []
    folder = partition(lake_path, result.protocol, source_name)
    stem = file_stem(source_name)
    paths = []
    for number, item in enumerate(result.items):
        if item.lake_path is not None:
            paths.append(item.lake_path)
            continue
        frame, types = item_frame(item)
        paths.append(str(write_frame(frame, types, folder / f"{stem}_{number:05d}.parquet")))
    return paths


def partition(lake_path: str | Path, protocol: str, source_name: str) -> Path:
    """Today's folder (UTC) for a source: `<lake>/<protocol>/<source>/<YYYY-MM-DD>`."""
    return source_folder(lake_path, protocol, source_name) / datetime.now(UTC).strftime("%Y-%m-%d")


def source_folder(lake_path: str | Path, protocol: str, source_name: str) -> Path:
    """The folder of everything a source has ever brought."""
    return Path(lake_path) / safe_part(protocol or "unknown") / safe_part(source_name)


def file_stem(source_name: str) -> str:
    """`<source>_<utc timestamp>`: a name that sorts by time and is never given twice."""
    return f"{safe_part(source_name)}_{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"


def safe_part(name: str) -> str:
    """A name as one path component: itself when harmless, else cleaned and told apart by a hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}", name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:100].lstrip('-')}-{digest}"


def write_frame(frame: pl.DataFrame, types: Types, path: Path) -> Path:
    """Write one frame as Parquet, durable before it has its final name. Returns the path."""
    with _temporary(path) as temporary:
        crashpoints.reached("parquet_open")
        frame.write_parquet(
            temporary, compression="zstd", compression_level=1, metadata={TYPES_KEY: json.dumps(types)}
        )
        crashpoints.spoiled("parquet_half", temporary, 0.5)
        crashpoints.spoiled("parquet_footer", temporary, 0.95)
        crashpoints.reached("parquet_written")
    crashpoints.reached("parquet_renamed")
    log.info("staged %d rows in %s", frame.height, path)
    return path


def read_types(path: str | Path) -> Types:
    """The PostgreSQL types that were written into a Parquet file of the lake, if any."""
    found = pl.read_parquet_metadata(path).get(TYPES_KEY)
    types: Types = json.loads(found) if found else {}
    return types


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, durably, when the block ends well; else it is removed."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _private_folder(path.parent)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))  # whatever the umask is
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _lake_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _private_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, which `parents` would make as the umask says."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)


def _lake_error(path: Path, error: OSError | pl.exceptions.PolarsError) -> LakeError:
    said = error.strerror if isinstance(error, OSError) else None
    said, free = said or str(error).split("\n")[0].rpartition("underlying IO error: ")[2], ""
    with contextlib.suppress(OSError):
        room = os.statvfs(next(p for p in path.parents if p.exists()))
        free = f" ({room.f_bavail * room.f_frsize / 1e6:,.0f} MB free)"
    return LakeError(
        f"{path} cannot be written",
        why=f"{said}{free}",
        hint="make room or choose another folder (lake: in dw.yaml), then run it again; nothing was lost",
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- snapshots ----------------------------------------------------------------------------------------


def staged_file(path: Path, rows: int) -> StagedFile:
    """What the manifest keeps about a file: its size, and the checksum of its bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StagedFile(path.name, rows, path.stat().st_size, digest)


def write_manifest(manifest: Manifest, path: Path) -> Path:
    """Write the manifest, which makes its files a snapshot. Durable when this returns."""
    data = asdict(manifest)
    data |= {CHECKSUM: _checksum(data)}
    with _temporary(path) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1), "utf-8")
        crashpoints.reached("manifest_written")
    return path


def _checksum(data: Mapping[str, Any]) -> str:
    """The checksum of what a manifest says, whatever its spaces."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises LakeError when it is damaged or of an unknown form."""
    try:
        data = json.loads(path.read_text("utf-8"))
        if data.pop(CHECKSUM) != _checksum(data):
            raise ValueError("its checksum differs: it is not what was written")
        data["files"] = tuple(StagedFile(**entry) for entry in data["files"])
        data["gone"] = StagedFile(**data["gone"]) if data.get("gone") else None
        data["key"], data["replaces"] = tuple(data["key"]), tuple(data["replaces"])
        return Manifest(**data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{path} cannot be read",
            why=f"{type(error).__name__}: {error}",
            hint=f"move it out of the lake to go on without it: mv {path} …",
        ) from error


def snapshots(folder: Path) -> Iterator[Path]:
    """The manifests of a source, oldest first."""
    yield from sorted(folder.glob(f"*/*{MANIFEST}"), key=lambda path: path.name)


def check_file(folder: Path, staged: StagedFile) -> Path:
    """The path of a snapshot's file, after comparing its bytes with the manifest.

    Raises LakeError when the file is missing or a byte of it has changed.
    """
    path = folder / staged.name
    try:
        found = staged_file(path, staged.rows)
    except OSError as error:
        raise LakeError(f"{path} is missing from its snapshot", why=error.strerror or str(error)) from error
    if found != staged:
        raise LakeError(
            f"{path} is not what was written",
            why=f"checksum differs ({found.bytes:,} bytes now, {staged.bytes:,} written)",
            hint="restore it from a copy of the lake, or read the source again: dw run NAME --full-refresh",
        )
    return path


def open_snapshot(folder: Path, stem: str) -> Path:
    """Mark that a run begins to write files named `<stem>_<n>.parquet`. Returns the marker's path."""
    marker = folder / f"{stem}{OPEN}"
    try:
        _private_folder(folder)
        marker.touch(0o600)
    except OSError as error:
        raise _lake_error(marker, error) from error
    return marker


def discard_snapshot(marker: Path) -> int:
    """Remove the files of a snapshot that was begun and never finished. Returns how many."""
    paths = unfinished(marker)
    for path in [*paths, marker]:
        path.unlink(missing_ok=True)
    return len(paths)


def unfinished(marker: Path) -> list[Path]:
    """The files of a snapshot that was begun; of one that has its manifest, only what is half written."""
    stem = marker.name.removesuffix(OPEN)
    whole = marker.with_name(stem + MANIFEST)
    half = whole.with_name(whole.name + TEMPORARY)
    return [] if whole.exists() else [*marker.parent.glob(f"{stem}_*"), *([half] if half.exists() else [])]


def set_aside(manifest: Path) -> None:
    """Take a snapshot that cannot be trusted out of the lake, files and all; nothing of it is removed."""
    stem = manifest.name.removesuffix(MANIFEST)
    for path in [*manifest.parent.glob(f"{stem}_*"), manifest]:
        path.rename(path.with_name(path.name + REFUSED))


def sweep(folder: Path) -> int:
    """Remove what killed runs of a source left. Call it only while holding the pipeline's lock.

    Only files of runs that were begun and never finished go; Parquet that others put into the lake
    stays. Returns how many files went.
    """
    return sum(discard_snapshot(marker) for marker in folder.glob(f"*/*{OPEN}"))


def forget(folder: Path, lake: Path, loaded: Collection[str], seconds: float) -> int:
    """Remove snapshots older than this that are in the warehouse. Returns how many went.

    loaded: manifests, by path within the lake, that have a receipt; others stay however old they are.
    The manifest goes last, so that a removal that was interrupted is finished by the next.
    """
    oldest = time.time() - seconds
    gone = 0
    for path in list(snapshots(folder)):
        if str(path.relative_to(lake)) in loaded and path.stat().st_mtime < oldest:
            for staged in read_manifest(path).every_file:
                (path.parent / staged.name).unlink(missing_ok=True)
                crashpoints.reached("forget")
            path.unlink()
            gone += 1
    return gone


def item_rows(item: IngestedItem) -> int:
    """How many rows an item holds."""
    payload = item.payload
    if isinstance(payload, pl.DataFrame):
        return payload.height
    return 1 if isinstance(payload, Mapping) else len(payload or [])

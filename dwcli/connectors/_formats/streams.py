"""From a file on disk to the byte streams in it: compression, zip members, encodings, all as they flow.

Nothing is unpacked to disk or held whole, except what only reads with random access (Parquet, Excel)
inside of an archive: that is unpacked to a temporary file, under the same brake.
"""

from __future__ import annotations

import codecs
import io
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from dwcli.connectors._temporary import room_for
from dwcli.errors import SourceData

COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zip": "zip", ".xz": "xz", ".bz2": "bz2"}
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bz2",
}
#: Below this much unpacked data no ratio is a bomb.
BOMB_BYTES = 64 * 1024 * 1024
#: Files up to this size are read into memory once instead of being opened again for each look at them.
_SMALL = 1024 * 1024
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Source:
    """One file, or one member of an archive, whose bytes can be read from the start as often as needed."""

    #: how people know it: relative path, with `!member` for a member of a zip
    name: str
    #: opens the unpacked bytes; opening again begins again
    open: Callable[[], BinaryIO]
    #: where it lies on disk, when nothing has to be unpacked
    path: Path | None
    #: bytes on disk, packed as they are
    size: int
    packed: bool = False


class _Watched(io.RawIOBase):
    """A readable stream that shows each chunk to `watch`; for libraries that take only file objects."""

    def __init__(self, raw: BinaryIO, watch: Callable[[bytes], None], beneath: BinaryIO) -> None:
        self._raw = raw
        self._watch = watch
        self._beneath = beneath  # unpackers leave open what they were given

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._raw.read(size)
        self._watch(chunk)
        return chunk

    def close(self) -> None:
        self._raw.close()
        self._beneath.close()
        super().close()


def watched(raw: BinaryIO, watch: Callable[[bytes], None], beneath: BinaryIO | None = None) -> BinaryIO:
    """`raw`, with each chunk that is read from it shown to `watch` first; closed together with `beneath`."""
    return cast(BinaryIO, _Watched(raw, watch, beneath or raw))


def compression_of(name: str, head: bytes) -> str:
    """gz, zst, zip, xz, bz2 or "": by the first bytes; an Excel workbook is a zip that stays closed."""
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if found == "zip" and PurePosixPath(name.lower()).suffix in (".xlsx", ".xlsm", ".xlsb", ".ods"):
        return ""
    if found == "bz2" and not (len(head) > 3 and head[3:4].isdigit() and head[4:10] == b"1AY&SY"):
        return ""
    return found


def base_name(name: str) -> str:
    """The name without the ending of its compression: orders.csv.gz → orders.csv."""
    path = PurePosixPath(name.rpartition("!")[2])
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def sources_in(path: Path, name: str, compression: str, max_expansion: int) -> Iterator[Source]:
    """The file itself, unpacked as it is read; for a zip each of its members.

    compression: auto, none, gz, zst, zip, xz or bz2. max_expansion: how many times larger than the
    packed file the unpacked data may be. Raises SourceData, when read, for data that is cut off or
    damaged and for a bomb.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SMALL if size <= _SMALL else 16)
    kind = compression_of(name, head) if compression == "auto" else compression.replace("none", "")
    if kind == "zip":
        yield from _members(path, name, size, max_expansion)
    elif kind:
        yield Source(
            name, lambda: _unpacked(path.open("rb"), kind, name, size, max_expansion), None, size, True
        )
    elif size <= _SMALL:
        yield Source(name, lambda: io.BytesIO(head), path, size)
    else:
        yield Source(name, lambda: path.open("rb"), path, size)


def _members(path: Path, name: str, size: int, max_expansion: int) -> Iterator[Source]:
    with reading(name):
        archive = zipfile.ZipFile(path)
    with archive:
        for member in archive.infolist():
            if member.is_dir() or member.filename.startswith("__MACOSX/"):
                continue
            yield from _member(archive, member, f"{name}!{member.filename}", size, max_expansion)


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, size: int, max_expansion: int
) -> Iterator[Source]:
    if member.flag_bits & 1:
        raise SourceData(f"{name} is encrypted", hint="unpack the archive first: unzip asks for its password")

    def open_member() -> BinaryIO:
        with reading(name):
            raw = cast(BinaryIO, archive.open(member))
        return _braked(raw, raw, name, size, max_expansion)

    with open_member() as stream, reading(name):
        head = stream.read(16)
    inner = compression_of(member.filename, head)
    if inner == "zip":
        raise SourceData(f"{name} is an archive inside an archive", hint="unpack the outer one first")
    if inner:
        yield Source(
            name, lambda: _unpacked(open_member(), inner, name, size, max_expansion), None, size, True
        )
    else:
        yield Source(name, open_member, None, size, True)


def _unpacked(raw: BinaryIO, kind: str, name: str, size: int, max_expansion: int) -> BinaryIO:
    if kind == "gz":
        import gzip

        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    elif kind == "bz2":
        import bz2

        stream = cast(BinaryIO, bz2.BZ2File(raw))
    elif kind == "xz":
        stream = cast(BinaryIO, lzma.LZMAFile(raw))  # noqa: SIM115
    else:
        import pyarrow as pa

        stream = cast(BinaryIO, pa.CompressedInputStream(raw, "zstd"))
    return _braked(stream, raw, name, size, max_expansion)


def _braked(stream: BinaryIO, raw: BinaryIO, name: str, size: int, max_expansion: int) -> BinaryIO:
    """`stream`, which stops with an error once it gives far more than its packed size can hold."""
    given = 0

    def brake(chunk: bytes) -> None:
        nonlocal given
        given += len(chunk)
        if given > BOMB_BYTES and given > size * max_expansion:
            raise SourceData(
                f"{name} unpacks to more than {max_expansion} times its size of {size:,} bytes",
                why="a file made to fill a disk looks like this",
                hint=f"if it is meant to: max_expansion: {max_expansion * 10}",
            )

    return watched(stream, brake, raw)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what goes wrong with the bytes of `name` into SourceData that names it."""
    try:
        yield
    except (EOFError, zipfile.BadZipFile, lzma.LZMAError, zlib.error) as error:
        raise _damaged(name, str(error)) from None
    except UnicodeDecodeError:
        raise
    except NotImplementedError as error:  # a zip's compression method
        raise SourceData(f"{name} cannot be unpacked", why=str(error)) from None
    except OSError as error:
        if error.errno is None:  # gzip's, bz2's and Arrow's own errors
            raise _damaged(name, str(error)) from None
        raise SourceData(
            f"{name} cannot be read", why=error.strerror or str(error), hint=f"check it: ls -l {name}"
        ) from None


def _damaged(name: str, why: str) -> SourceData:
    return SourceData(
        f"{name} is cut off or damaged",
        why=why.splitlines()[0] if why else "",
        hint="fetch the file again; nothing of it was kept",
    )


@contextmanager
def on_disk(source: Source) -> Iterator[Path]:
    """A path to the unpacked bytes, for formats that need random access; a temporary file if packed."""
    if source.path is not None:
        yield source.path
        return
    suffix = PurePosixPath(base_name(source.name)).suffix
    # A folder goes whatever happens; a NamedTemporaryFile stays when its last bytes find no room.
    with room_for(source.name), tempfile.TemporaryDirectory(prefix="dw-") as folder:
        path = Path(folder) / f"unpacked{suffix}"
        with source.open() as stream, path.open("wb") as file:
            while True:
                with reading(source.name):
                    chunk = stream.read(_CHUNK)
                if not chunk:
                    break
                file.write(chunk)
        yield path


# -- text -------------------------------------------------------------------------------------------


_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """utf-8, or what a byte order mark or the zeros of UTF-16 say. Never a guess among 8-bit encodings."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    sample = head[: len(head) & ~1][:4096]
    if len(sample) >= 4:
        if not any(sample[0::2]) and all(sample[1::2]):
            return "utf-16-be"
        if not any(sample[1::2]) and all(sample[0::2]):
            return "utf-16-le"
    return "utf-8"


def as_utf8(raw: BinaryIO, encoding: str) -> BinaryIO:
    """The stream as UTF-8 without a byte order mark, transcoded as it flows.

    Bytes that are not of `encoding` raise UnicodeDecodeError, or pass where it is UTF-8: whoever reads
    the stream checks that anyway. `undecodable` then finds the place.
    """
    codec = codecs.lookup(encoding).name
    if codec == "utf-8":
        return raw
    if codec == "utf-8-sig":
        start = raw.read(3)
        return _prefixed(b"" if start == codecs.BOM_UTF8 else start, raw)
    import pyarrow as pa

    return cast(BinaryIO, pa.transcoding_input_stream(pa.PythonFile(raw, "r"), codec, "utf-8"))


class _Prefixed(io.RawIOBase):
    """Some bytes that were already read, then the stream they came from."""

    def __init__(self, prefix: bytes, raw: BinaryIO) -> None:
        self._prefix = prefix
        self._raw = raw

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._prefix:
            return self._raw.read(size)
        first, self._prefix = self._prefix, b""
        return first + self._raw.read(-1 if size < 0 else max(0, size - len(first)))

    def close(self) -> None:
        self._raw.close()
        super().close()


def _prefixed(prefix: bytes, raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, _Prefixed(prefix, raw)) if prefix else raw


def undecodable(source: Source, encoding: str) -> SourceData:
    """The error for bytes that are not of `encoding`: where they stand and what they may be instead."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line = 0, 1
    with source.open() as stream, reading(source.name):
        while True:
            chunk = stream.read(_CHUNK)
            held = len(decoder.getstate()[0])
            try:
                line += decoder.decode(chunk, not chunk).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                place = f"byte {offset - held + error.start:,}, line {line:,}"
                value = error.object[error.start]
                break
            offset += len(chunk)
            if not chunk:
                return SourceData(f"{source.name} is not {encoding} text")
    other = "utf-8" if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig") else "cp1252"
    return SourceData(
        f"{source.name} is not {encoding} text ({place}: 0x{value:02x})",
        hint=f"name the encoding it was written in, such as encoding: {other}",
    )

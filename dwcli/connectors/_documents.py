"""Documents into frames of bounded bytes: the columns are found while reading.

A driver whose rows are dicts with no fixed shape is read like this:

    forms = Forms({int: None, ObjectId: str}, {Duration: ("interval", text_of)}, json_form(hook))
    yield from document_items(chunks_of_dicts, forms, config.batch_bytes, first=("_id",))

A field that turns up late is a column from then on, NULL in the rows before it. Values of one field
that have no type in common make the column wider: numbers numeric, anything else text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import chain
from types import NoneType
from typing import Any

import msgspec
import polars as pl

from dwcli.connectors._rows import TAKES, Filled, as_text, fill_values, slices
from dwcli.contract import IngestedItem
from dwcli.errors import SourceData

#: PostgreSQL refuses tables with more columns than 1,600; dw adds a few of its own.
MOST_COLUMNS = 1_500
#: Documents of one chunk, whatever they weigh
CHUNK_ROWS = 1_024

#: Counts what had to be changed, by what was done.
Changed = Counter[str]


@dataclass(frozen=True)
class Forms:
    """What becomes of each Python type that a driver gives.

    native: types that `fill_values` knows, with what makes the value one of them; None: it is one.
    texts: types with a text form of their own: the PostgreSQL type, and the text.
    json: every other value (documents, arrays, what has no type in PostgreSQL) as JSON text.
    inexact: what is lost of some values of a type, and whether it is lost of this one.
    zone: what naive datetimes mean.
    """

    native: Mapping[type, Callable[[Any], Any] | None]
    texts: Mapping[type, tuple[str, Callable[[Any, Changed], str]]]
    json: Callable[[Any, Changed], str]
    inexact: Mapping[type, tuple[str, Callable[[Any], bool]]] = field(default_factory=dict)
    zone: str = "UTC"


def fill_documents(values: Sequence[Any], running: str, forms: Forms) -> Filled:
    """One field of a chunk as a column. `running`: its type so far, "" before the first value."""
    kinds = set(map(type, values)) - {NoneType}
    changed: Changed = Counter()
    for kind in kinds & forms.inexact.keys():
        what, lost = forms.inexact[kind]
        if count := sum(type(v) is kind and lost(v) for v in values):
            changed[what] += count
    if kinds <= forms.native.keys():
        for kind in kinds:
            if (convert := forms.native[kind]) is not None:
                values = [convert(v) if type(v) is kind else v for v in values]
        filled = fill_values(values, running, forms.zone)
        return replace(filled, changed={**filled.changed, **changed}) if changed else filled
    texts = [None if v is None else _text(v, forms, changed) for v in values]
    wanted = {_postgres_type(kind, forms) for kind in kinds}
    target = wanted.pop() if len(wanted) == 1 else "text"
    if running not in ("", target):
        target = "text"
    return Filled(pl.Series(values=texts, dtype=pl.String), target, dict(changed))


def _postgres_type(kind: type, forms: Forms) -> str:
    if kind in forms.texts:
        return forms.texts[kind][0]
    if kind not in forms.native:
        return "jsonb"
    # A converted one is not known before it is converted: as text it is right beside any other.
    known = kind if forms.native[kind] is None else str
    return next((name for name, takes in TAKES.items() if known in takes), "text")


def _text(value: Any, forms: Forms, changed: Changed) -> str | None:
    kind = type(value)
    if kind in forms.texts:
        return forms.texts[kind][1](value, changed)
    if kind in forms.native:
        convert = forms.native[kind]
        return as_text(value if convert is None else convert(value))
    return forms.json(value, changed)


@dataclass
class _Gathered:
    """Chunks that will be one batch."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    shape: dict[str, tuple[str, pl.DataType]] = field(default_factory=dict)
    changed: Changed = field(default_factory=Counter)
    size: int = 0


def document_items(
    chunks: Iterable[Sequence[Mapping[str, Any]]],
    forms: Forms,
    batch_bytes: int,
    first: Sequence[str] = (),
    changed: Changed | None = None,
    hint: str = "",
) -> Iterator[IngestedItem]:
    """Batches of about `batch_bytes` from chunks of documents; one empty batch where there is none.

    first: columns that come first, and are there in an empty batch too. changed: where `chunks` counts
    what it had to change. Raises SourceData, with `hint`, for more fields than a table has columns.
    """
    running = dict.fromkeys(first, "")
    gathered, sent = _Gathered(), False
    changed = Counter() if changed is None else changed
    for documents in chunks:
        for name in dict.fromkeys(chain.from_iterable(documents)):
            running.setdefault(name, "")
        if len(running) > MOST_COLUMNS:
            raise SourceData(f"there are more than {MOST_COLUMNS:,} different fields", hint=hint)
        filled = {
            name: fill_documents([d.get(name) for d in documents], kind, forms)
            for name, kind in running.items()
        }
        running = {name: f.type or running[name] for name, f in filled.items()}
        shape = {name: (f.type, f.series.dtype) for name, f in filled.items() if f.series.dtype != pl.Null}
        if any(gathered.shape.get(name, form) != form for name, form in shape.items()):
            for item in _sent(gathered, batch_bytes):
                yield item
                sent = True
            gathered = _Gathered()
        _gather(gathered, filled, shape, changed)
        changed.clear()
        if gathered.size >= batch_bytes:
            for item in _sent(gathered, batch_bytes):
                yield item
                sent = True
            gathered = _Gathered()
    for item in _sent(gathered, batch_bytes):
        yield item
        sent = True
    if not sent:
        yield IngestedItem(pl.DataFrame({name: pl.Series(dtype=pl.Null) for name in running}))


def _gather(
    gathered: _Gathered,
    filled: Mapping[str, Filled],
    shape: Mapping[str, tuple[str, pl.DataType]],
    changed: Changed,
) -> None:
    frame = pl.DataFrame({name: f.series for name, f in filled.items()})
    gathered.frames.append(frame)
    gathered.shape.update(shape)
    gathered.size += int(frame.estimated_size())
    gathered.changed.update(changed)
    for name, f in filled.items():
        gathered.changed.update({f"{name}: {what}": count for what, count in f.changed.items()})


def _sent(gathered: _Gathered, batch_bytes: int) -> Iterator[IngestedItem]:
    if not gathered.frames:
        return
    # Columns that an earlier chunk has not, or has without a value, take the later one's type.
    frame = pl.concat(gathered.frames, how="diagonal_relaxed", rechunk=True).select(
        gathered.frames[-1].columns
    )
    types = {name: kind for name, (kind, _) in gathered.shape.items()}
    metadata: dict[str, Any] = {"changed": dict(gathered.changed)} if gathered.changed else {}
    for part in slices(frame, batch_bytes):
        yield IngestedItem(part, types, metadata=metadata)
        metadata = {}


def chunked(rows: Iterable[Mapping[str, Any]], batch_bytes: int) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in chunks of at most CHUNK_ROWS, and about a quarter of `batch_bytes`."""
    chunk: list[Mapping[str, Any]] = []
    size, limit = 0, batch_bytes // 4
    for row in rows:
        chunk.append(row)
        size += weight(row)
        if size >= limit or len(chunk) >= CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def weight(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, str | bytes | bytearray):
        return len(value) + 16
    if isinstance(value, Mapping):
        return sum(map(weight, value.values())) + 16
    return sum(map(weight, value)) + 16 if isinstance(value, list | tuple | set | frozenset) else 16


def of_one_kind(
    chunks: Iterable[Sequence[Mapping[str, Any]]],
    column: str,
    kind_of: Callable[[Any], str],
    asked: Collection[str],
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The same chunks. Raises SourceData where values of the cursor column cannot be compared.

    kind_of: values of one kind are compared; "null" and "other" stand for no value and for none that
    can be. asked: the kinds that a bound of the cursor is compared with, if there is a bound.
    """
    kinds: set[str] = set()
    for chunk in chunks:
        kinds |= {kind_of(row.get(column)) for row in chunk}
        compared = kinds - {"null"}
        if len(compared) > 1 or "other" in compared or (asked and not compared <= set(asked)):
            held = sorted(compared | (set(asked) if len(asked) == 1 else set()))
            raise SourceData(
                f"'{column}' cannot be a cursor: it holds {' and '.join(held)}",
                why="the source compares values of one kind only, so a run would miss the others",
                hint="choose another cursor, or mend the values in the source",
            )
        yield chunk


# -- JSON, and instants that Python cannot hold ---------------------------------------------------------

NOT_FINITE = "NaN or Infinity in JSON → string"


def json_form(plain: Callable[[Any], Any]) -> Callable[[Any, Changed], str]:
    """Values as JSON text with exact numbers; NaN and infinities, which JSON has not, are strings.

    plain: takes a value that is none of Python's own, and gives one that is.
    """
    strings: Changed = Counter()

    def hook(value: Any) -> Any:
        found = plain(value)
        if isinstance(found, Decimal) and not found.is_finite():
            strings[NOT_FINITE] += 1
            return as_text(Decimal("NaN") if found.is_nan() else found)
        return found

    encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=hook)

    def text(value: Any, changed: Changed) -> str:
        data = encoder.encode(value)
        # The encoder writes null for a float that JSON has not.
        if b"null" in data and (count := _not_finite(value)):
            strings.clear()
            data = encoder.encode(_finite(value))
            strings[NOT_FINITE] += count
        if strings:
            changed.update(strings)
            strings.clear()
        return data.decode()

    return text


def _not_finite(value: Any) -> int:
    """How many floats in a nested value are NaN or infinite."""
    if isinstance(value, float):
        return value - value != 0
    if isinstance(value, Mapping):
        return sum(map(_not_finite, value.values()))
    return sum(map(_not_finite, value)) if isinstance(value, list | tuple | set | frozenset) else 0


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return as_text(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value


DAY_MILLISECONDS = 86_400_000
#: 4714-11-24 BC, where PostgreSQL's timestamps begin, and 294277-01-01, where they end
FIRST_INSTANT = -210_866_803_200_000
END_OF_INSTANTS = 9_224_318_016_000_000
OUT_OF_RANGE = "instant outside PostgreSQL's range → infinity"


def instant_text(milliseconds: int, changed: Changed) -> str:
    """Milliseconds since 1970 in PostgreSQL's text form, for years that Python has not."""
    if not FIRST_INSTANT <= milliseconds < END_OF_INSTANTS:
        changed[OUT_OF_RANGE] += 1
        return "infinity" if milliseconds > 0 else "-infinity"
    days, rest = divmod(milliseconds, DAY_MILLISECONDS)
    seconds, thousandths = divmod(rest, 1000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{thousandths:03}"
    return f"{date_text(days, clock + '+00')}"


def date_text(days: int, clock: str = "") -> str:
    """Days since 1970 as a date of PostgreSQL, any year; `clock` stands between the date and BC."""
    # The calendar repeats every 400 years, which are 146,097 days, counted from 0000-03-01.
    era, day = divmod(days + 719_468, 146_097)
    year_of_era = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day_of_year = day - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    number = year if year > 0 else 1 - year
    text = f"{number:04}-{month:02}-{day_of_year - (153 * shifted + 2) // 5 + 1:02}"
    return " ".join(filter(None, [text, clock, "" if year > 0 else "BC"]))


_INSTANT = re.compile(
    r"(\d{4,})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?)?"
    r"(?:(Z)|([+-])(\d\d)(?::?(\d\d))?(?::?(\d\d))?)?( BC)?"
)


def instant_microseconds(text: str) -> int | None:
    """PostgreSQL's text form of a timestamptz as microseconds since 1970; None if it is none."""
    match = _INSTANT.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[n] or 0) for n in range(1, 7))
    fraction = int((match[7] or "0").ljust(6, "0"))
    shift = sum(int(match[n] or 0) * unit for n, unit in ((10, 3600), (11, 60), (12, 1)))
    shift = -shift if match[9] == "-" else shift
    year = 1 - year if match[13] else year
    days = _days(year, month, day)
    return (days * 86_400 + hour * 3600 + minute * 60 + second - shift) * 1_000_000 + fraction


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar, any year."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + day_of_year - 719_468

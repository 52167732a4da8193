"""Numbers, sizes, times and foreign text in the words of the screen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

#: One run is one of these bars; the second row is for screens that are not UTF-8.
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-:=+*#"

#: What a terminal obeys instead of showing it: C0, DEL, C1, and the marks that reorder a line.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(text: str) -> str:
    """Text from outside, made safe to print: what a terminal would obey is shown as `\\n`, `\\x1b`."""

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        return NAMED.get(match[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return OBEYED.sub(shown, text)


def escape_lines(text: str) -> str:
    """`escape`, but line breaks and tabs stay what they are."""
    return OBEYED.sub(lambda match: match[0] if match[0] in "\n\t" else escape(match[0]), text)


def count(number: int, noun: str) -> str:
    """`1 row`, `3 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def compact(number: float) -> str:
    """A number in at most five characters: `980`, `9.8k`, `212k`, `1.2M`."""
    for unit in ("", "k", "M"):
        if number < 9.95 and unit:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.1f}G" if number < 9.95 else f"{number:.0f}G"


def size(number: float) -> str:
    """Bytes as `980 B`, `41 MB`, `2.1 GB` (steps of 1024)."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 9.95 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as `12 ms`, `6.1 s`, `4 min 10 s`, `2 h 3 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(seconds: float) -> str:
    """Time left as `0:09`, `12:30`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def ago(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: `just now`, `4 min ago`, `9 h ago`, `3 d ago`."""
    past = (now - then).total_seconds()
    if past < 5:
        return "just now"
    for step, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if past >= step:
            return f"{int(past // step)} {unit} ago"
    raise AssertionError("past is at least five seconds")


def local_time(when: datetime | None, seconds: bool = False) -> str:
    """A moment on this machine's clock: `2026-11-22 21:48`; `-` for none."""
    if when is None:
        return "-"
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def utc_iso(when: datetime) -> str:
    """A moment for programs: `2026-11-22T20:48:03.5Z`; one without a zone stays without."""
    moment = when.astimezone(UTC) if when.tzinfo else when
    return moment.isoformat().replace("+00:00", "Z")


def sparkline(values: Sequence[int | None], ascii_only: bool = False) -> str:
    """One bar per value, the highest value full; `x` for None, which is a failure."""
    bars = ASCII_BARS if ascii_only else BARS
    top = max((value for value in values if value is not None), default=0)
    return "".join("x" if value is None else bars[value * 7 // top if top else 0] for value in values)


def width(text: str) -> int:
    """Cells that a text takes on the screen: wide East Asian characters take two."""
    from rich.cells import cell_len

    return cell_len(unicodedata.normalize("NFC", text)) if not text.isascii() else len(text)

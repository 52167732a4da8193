"""The one place that prints. stdout carries data, stderr carries people's text.

Views elsewhere in this room return renderables or text; these functions put them on a stream, and fit
the stream: no colour with NO_COLOR or TERM=dumb, ASCII where the screen is not UTF-8, tab-separated
text where stdout is not a screen.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

from dwcli.render.tables import Column, table, tsv
from dwcli.render.words import escape_lines, utc_iso

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Width that text is folded at when it does not go to a screen.
UNSEEN_WIDTH = 100


#: Marks of dw's own texts, as a screen without them shows them.
IN_ASCII = {"…": "...", "→": "->", "·": "-", "–": "-", "—": "-", "“": '"', "”": '"', "’": "'", "»": ">"}
ENCODES_ALL = "dw.in_ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding does not have: dw's own marks in ASCII, else escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    there = error.object[error.start : error.end]
    escaped = (IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in there)
    return "".join(escaped), error.end


codecs.register_error(ENCODES_ALL, _in_ascii)


def fit(stream: IO[str]) -> None:
    """Make a stream take any text. On a screen of a machine that is set to C, nothing but ASCII leaves it.

    Python itself writes UTF-8 there, whatever the screen can show.
    """
    if not hasattr(stream, "reconfigure"):
        return
    if stream.isatty() and _is_set_to_c():
        stream.reconfigure(encoding="ascii")
    stream.reconfigure(errors=ENCODES_ALL)


def _is_set_to_c() -> bool:
    """Whether the locale is C by name. Where nothing is said, a screen is taken for one of today.

    Python may have changed LC_CTYPE to C.UTF-8 before we look; LANG then still says C.
    """
    overall, characters = os.environ.get("LC_ALL"), os.environ.get("LC_CTYPE")
    if not overall and characters == "C.UTF-8":
        characters = None
    return (overall or characters or os.environ.get("LANG")) in ("C", "POSIX")


def fit_dumb_terminal() -> None:
    """Rich takes a dumb terminal for one of 80 columns, unless the environment says both of its sizes."""
    if os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
        return
    size = next(filter(None, map(_size_of, (1, 2, 0))), os.terminal_size((80, 24)))
    for name, cells in (("COLUMNS", size.columns), ("LINES", size.lines)):
        if not os.environ.get(name, "").isdigit():
            os.environ[name] = str(cells)


def _size_of(descriptor: int) -> os.terminal_size | None:
    try:
        size = os.get_terminal_size(descriptor)
    except OSError:
        return None
    return size if size.columns and size.lines else None


def console(stream: IO[str], width: int | None = None) -> Console:
    """A console on a stream. Text on it is never markup, and never coloured by guessing.

    Characters that the stream's encoding does not have are shown as escapes.
    """
    from rich.console import Console

    fit(stream)
    seen = stream.isatty()
    return Console(
        file=stream,
        width=width if width or seen else UNSEEN_WIDTH,
        # a file must not get colours because of FORCE_COLOR, which is meant for another program
        force_terminal=seen,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def stdout(width: int | None = None) -> Console:
    """The console for data."""
    return console(sys.stdout, width)


def stderr(width: int | None = None) -> Console:
    """The console for people's text."""
    return console(sys.stderr, width)


def ascii_only(stream: IO[str]) -> bool:
    """Whether a stream cannot show line drawing and the like."""
    return not (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")


def show(view: RenderableType) -> None:
    """Put a view on stdout."""
    stdout().print(view)
    sys.stdout.flush()


def say(text: RenderableType) -> None:
    """Tell the person something, on stderr."""
    out = stderr()
    if out.is_terminal:
        out.print(text)
        return
    with out.capture() as captured:  # a log gets no blanks at the ends of its lines
        out.print(text)
    sys.stderr.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def print_rows(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> None:
    """Rows on stdout: a table that fits the screen, or TSV with a header where there is no screen."""
    if sys.stdout.isatty():
        out, listed = stdout(), list(rows)
        if listed:  # a head without rows says nothing; the command says that there are none
            out.print(table(columns, listed, out.width))
    else:
        write_text(tsv(columns, rows))
    sys.stdout.flush()


def write_text(lines: Iterable[str]) -> None:
    """Write text for programs to stdout: UTF-8 and `\\n`, whatever the machine's habits.

    On a screen no program reads it, so what a terminal would obey is escaped.
    """
    if sys.stdout.isatty():
        sys.stdout.writelines(escape_lines(line) for line in lines)
        sys.stdout.flush()
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass", newline="\n")
    sys.stdout.writelines(lines)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document on stdout. Moments are UTC ISO 8601."""
    write_text([to_json(value, indent=2), "\n"])


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text. What JSON has no word for is a string: decimals with all their digits, NaN, bytes."""
    return json.dumps(_prepared(value), indent=indent, ensure_ascii=False, default=_in_words)


def _prepared(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _prepared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_prepared(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _in_words(value: Any) -> Any:
    match value:
        case datetime():
            return utc_iso(value)
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
        case bytes():
            return "\\x" + value.hex()
        case _:
            return str(value)

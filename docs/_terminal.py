"""A small terminal: what stands on the screen after some output, and an animated SVG of several screens.

It knows what dw, prompt_toolkit and Rich send: moving, erasing, colours, wrapping, scrolling. All else that
is a control sequence is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

from rich.cells import cell_len

SEQUENCE = re.compile(
    r"\x1b(?:\[(?P<numbers>[0-9;?>=]*)(?P<end>[@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-B]|[=>78cM])"
)
#: The beginning of a sequence whose end is still to come.
UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?>=]*|\][^\x07]*|[()])?$")
COLOURS = ("#2e3440", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#c8ccd4")
BRIGHT = ("#7f848e", "#f07f88", "#a9d88a", "#f0cf8c", "#78c0ff", "#d68be8", "#6fcbd6", "#ffffff")
PAPER, INK = "#1e2127", "#c8ccd4"
CELL, LINE, SIZE, EDGE = 8.4, 18, 14, 12


@dataclass(frozen=True)
class Style:
    """How a cell looks."""

    colour: str = ""
    bold: bool = False
    dim: bool = False
    italic: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell. `text` is "" behind a character that takes two."""

    text: str = " "
    style: Style = Style()


@dataclass
class Screen:
    """A terminal of a fixed size, and what has been sent to it."""

    columns: int
    rows: int
    row: int = 0
    column: int = 0
    style: Style = Style()
    lines: list[list[Cell]] = field(default_factory=list)
    rest: str = ""
    #: what the terminal was asked and answers
    answers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = [self.empty() for _ in range(self.rows)]

    def empty(self) -> list[Cell]:
        return [Cell()] * self.columns


def feed(screen: Screen, output: str) -> None:
    """Send output to a screen."""
    text = screen.rest + output
    unfinished = UNFINISHED.search(text)
    screen.rest = unfinished[0] if unfinished else ""
    text = text[: len(text) - len(screen.rest)]
    at = 0
    while at < len(text):
        found = SEQUENCE.match(text, at)
        if found:
            if found["end"]:
                _obey(screen, found["numbers"], found["end"])
            at = found.end()
            continue
        _put(screen, text[at])
        at += 1


def _put(screen: Screen, character: str) -> None:
    match character:
        case "\n":
            _down(screen)
        case "\r":
            screen.column = 0
        case "\b":
            screen.column = max(0, screen.column - 1)
        case _ if character < " " or character == "\x7f":
            pass
        case _:
            wide = cell_len(character)
            if screen.column + wide > screen.columns:
                screen.column = 0
                _down(screen)
            line = screen.lines[screen.row]
            line[screen.column] = Cell(character, screen.style)
            if wide == 2:
                line[screen.column + 1] = Cell("", screen.style)
            screen.column += wide


def _down(screen: Screen) -> None:
    if screen.row < screen.rows - 1:
        screen.row += 1
    else:
        screen.lines = [*screen.lines[1:], screen.empty()]


def _obey(screen: Screen, numbers: str, end: str) -> None:
    given = [int(number) if number.isdigit() else 0 for number in numbers.split(";")]
    first, last = max(1, given[0]), (screen.rows - 1, screen.columns - 1)
    here = min(screen.column, last[1])
    match end:
        case "A":
            screen.row = max(0, screen.row - first)
        case "B":
            screen.row = min(last[0], screen.row + first)
        case "C":
            screen.column = min(last[1], here + first)
        case "D":
            screen.column = max(0, here - first)
        case "G":
            screen.column = min(last[1], first - 1)
        case "H" | "f":
            column = max(1, given[1]) if len(given) > 1 else 1
            screen.row, screen.column = min(last[0], first - 1), min(last[1], column - 1)
        case "J":
            _erase_line(screen, given[0])
            rows = range(screen.row + 1, screen.rows) if given[0] == 0 else range(screen.row)
            for row in range(screen.rows) if given[0] >= 2 else rows:
                screen.lines[row] = screen.empty()
        case "K":
            _erase_line(screen, given[0])
        case "m":
            screen.style = _styled(screen.style, given)
        case "n" if numbers == "6":
            screen.answers.append(f"\x1b[{screen.row + 1};{here + 1}R")


def _erase_line(screen: Screen, how: int) -> None:
    line, here = screen.lines[screen.row], screen.column
    columns = (
        range(here, screen.columns) if how == 0 else range(here + 1) if how == 1 else range(screen.columns)
    )
    for column in columns:
        if column < screen.columns:
            line[column] = Cell()


def _styled(style: Style, given: Sequence[int]) -> Style:
    values = vars(style).copy()
    numbers = iter(given)
    for number in numbers:
        match number:
            case 0:
                values = vars(Style()).copy()
            case 1 | 2 | 3 | 7:
                values[{1: "bold", 2: "dim", 3: "italic", 7: "reverse"}[number]] = True
            case 22:
                values |= {"bold": False, "dim": False}
            case 23:
                values["italic"] = False
            case 27:
                values["reverse"] = False
            case 39:
                values["colour"] = ""
            case 38 | 48:
                colour = _of_many(numbers)
                values |= {"colour": colour} if number == 38 else {}
            case _ if 30 <= number <= 37:
                values["colour"] = COLOURS[number - 30]
            case _ if 90 <= number <= 97:
                values["colour"] = BRIGHT[number - 90]
    return Style(**values)


def _of_many(numbers: Iterator[int]) -> str:
    """A colour of 256, or one of red, green and blue."""
    if next(numbers, 0) == 2:
        return "#" + "".join(f"{next(numbers, 0):02x}" for _ in range(3))
    number = next(numbers, 0)
    if number < 16:
        return (*COLOURS, *BRIGHT)[number]
    if number >= 232:
        return "#" + f"{8 + (number - 232) * 10:02x}" * 3
    levels = (0, 95, 135, 175, 215, 255)
    parts = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return "#" + "".join(f"{levels[part]:02x}" for part in parts)


def text_of(screen: Screen) -> str:
    """What stands on a screen, without colours."""
    return "\n".join("".join(cell.text for cell in line).rstrip() for line in screen.lines).rstrip("\n")


# -- the picture ---------------------------------------------------------------------------------------

#: A screen: the cells of its lines, and where its cursor is.
Frame = tuple[tuple[tuple[Cell, ...], ...], tuple[int, int]]


def frame_of(screen: Screen) -> Frame:
    """A screen as it is now."""
    cursor = (screen.row, min(screen.column, screen.columns - 1))
    return tuple(tuple(line) for line in screen.lines), cursor


def svg(frames: Sequence[tuple[float, Frame]], title: str) -> str:
    """Screens one after the other, as one picture that moves. frames: how many seconds each is shown.

    Where motion is not wanted, the last one stands still.
    """
    (lines, _) = frames[0][1]
    wide, high = round(len(lines[0]) * CELL + 2 * EDGE), len(lines) * LINE + 2 * EDGE
    known: dict[str, int] = {}
    pages: list[str] = []
    for number, (_, (rows, cursor)) in enumerate(frames):
        uses = []
        for place, row in enumerate(rows):
            drawn = _line(row)
            if drawn:
                name = known.setdefault(drawn, len(known))
                uses.append(f'<use href="#l{name}" y="{place * LINE}"/>')
        x, y = round(cursor[1] * CELL, 1), cursor[0] * LINE
        uses.append(f'<rect class="c" x="{x}" y="{y + 2}" width="{CELL}" height="{LINE - 2}"/>')
        pages.append(f'<g transform="translate(0 {number * high})">{"".join(uses)}</g>')
    total = sum(seconds for seconds, _ in frames)
    steps, gone = [], 0.0
    for number, (seconds, _) in enumerate(frames):
        steps.append(f"{gone / total * 100:.2f}%{{transform:translateY(-{number * high}px)}}")
        gone += seconds
    last = f"translateY(-{(len(frames) - 1) * high}px)"
    definitions = "".join(f'<g id="l{name}">{drawn}</g>' for drawn, name in known.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'role="img"><title>{escape(title)}</title><style>'
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{INK};white-space:pre}}.b{{font-weight:bold}}.d{{opacity:.6}}.i{{font-style:italic}}"
        f".c{{fill:{INK};opacity:.5}}"
        f"#film{{animation:film {total:.1f}s steps(1,end) infinite}}"
        f"@keyframes film{{{''.join(steps)}100%{{transform:{last}}}}}"
        f"@media(prefers-reduced-motion:reduce){{#film{{animation:none;transform:{last}}}}}"
        f'</style><defs>{definitions}</defs><rect width="{wide}" height="{high}" rx="8" fill="{PAPER}"/>'
        f'<svg x="{EDGE}" y="{EDGE}" width="{wide - 2 * EDGE}" height="{high - 2 * EDGE}" '
        f'viewBox="0 0 {wide - 2 * EDGE} {high - 2 * EDGE}" overflow="hidden">'
        f'<g id="film">{"".join(pages)}</g></svg></svg>\n'
    )


def _line(row: Sequence[Cell]) -> str:
    """The texts of a line, a run of one style at a time."""
    parts: list[str] = []
    column = 0
    for style, cells in groupby(row, key=lambda cell: cell.style):
        run = list(cells)
        text = "".join(cell.text for cell in run)
        parts += _run(text, len(run), column, style)
        column += len(run)
    return "".join(parts)


def _run(text: str, cells: int, column: int, style: Style) -> Iterable[str]:
    x = round(column * CELL, 1)
    if style.reverse:
        size = f'width="{round(cells * CELL, 1)}" height="{LINE - 1}"'
        yield f'<rect x="{x}" y="2" {size} fill="{style.colour or INK}"/>'
    classes = " ".join(name for name, on in (("b", style.bold), ("d", style.dim), ("i", style.italic)) if on)
    looks = f' class="{classes}"' if classes else ""
    colour = PAPER if style.reverse else style.colour
    looks += f' style="fill:{colour}"' if colour else ""
    for part in re.finditer(r"\S+(?: \S+)*", text):  # a viewer may make one blank of several
        x = round((column + cell_len(text[: part.start()])) * CELL, 1)
        length = round(cell_len(part[0]) * CELL, 1)
        yield f'<text x="{x}" y="{SIZE}" textLength="{length}"{looks}>{escape(part[0], quote=False)}</text>'

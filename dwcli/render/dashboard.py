"""The dashboard of `dw watch`: a Textual app over what `look` finds. The only module that knows Textual.

    look ──(a thread, every 2 s)──▶ Looked ──▶ panes: pipelines, running, trend, audit, log
    keys ─▶ filter, command, detail, run (asked first, started as a process of its own)

A look that fails is a line at the top; what the last good one found stays on the screen.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import DataTable, Footer, Input, RichLog, Sparkline, Static

from dwcli.documents import nearest
from dwcli.errors import DwError
from dwcli.render.console import ascii_only
from dwcli.render.logs import log_lines
from dwcli.render.runs import AUDIT_COLUMNS, audit_detail, audit_row, state_of_run
from dwcli.render.tables import Column, cell, fields, that_fit
from dwcli.render.watching import (
    GOING_COLUMNS,
    PIPELINE_COLUMNS,
    Found,
    Run,
    going_row,
    matches,
    pipeline_detail,
    pipeline_row,
    trend_of,
    trend_words,
)
from dwcli.render.words import escape, width

LONGEST_PAUSE_SECONDS = 10.0
#: From how many columns or rows the screen has which class; the style sheet says what that hides.
WIDTHS = [(0, "-narrow"), (60, "-usual"), (110, "-wide")]
HEIGHTS = [(0, "-low"), (18, "-high")]
PANES = ("pipelines", "running", "audit", "log")
#: What the help screen and the guide say.
KEYS = (
    ("↑ ↓ or k j", "move in a pane"),
    ("tab, shift+tab", "next pane, pane before"),
    ("enter", "the pipeline or run in detail"),
    ("escape", "back: close the detail, leave the full pane, drop the filter"),
    ("/", "filter every pane: words that must stand in a line"),
    (":", "type a command"),
    ("r", "run the selected pipeline; asks first"),
    ("?", "this help"),
    ("q, ctrl+c", "quit; runs that were started go on"),
)
COMMANDS = (
    (":run NAME", "run a pipeline; asks first"),
    (":pipelines :running :audit :log", "that pane on the whole screen; escape goes back"),
    (":filter WORDS", "as /"),
    (":help :q", "as ? and q"),
)

Ended = Callable[[], str | None]


class Looked(Message):
    """A look came back: what it found, or why it could not."""

    def __init__(self, found: Found | None, problem: str = "") -> None:
        super().__init__()
        self.found = found
        self.problem = problem


class Pane(DataTable[Text]):
    """A table of the dashboard. Columns that do not fit are left out, the most optional first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        super().__init__(id=name, classes="pane", cursor_type="row", zebra_stripes=False)
        self.shape = columns
        self.rows_now: list[tuple[str, list[Text]]] = []

    def selected(self) -> str | None:
        """The key of the row under the cursor."""
        if not 0 <= self.cursor_row < len(self.rows_now):
            return None
        return self.rows_now[self.cursor_row][0]

    def fill(self, rows: Iterator[tuple[str, Sequence[Any]]]) -> None:
        """Show rows, each with its key; the cursor stays on the row that it was on."""
        cells = [(key, [cell(value) for value in row]) for key, row in rows]
        if cells != self.rows_now or not self.columns:
            before = self.selected()
            self.rows_now = cells
            self.draw(before)

    def draw(self, select: str | None) -> None:
        """Draw the rows anew, with the columns that fit now."""
        top = self.scroll_y
        widths = [
            max([width(column.name), *(width(row[i].plain) for _, row in self.rows_now)])
            for i, column in enumerate(self.shape)
        ]
        fitting = that_fit(self.shape, widths, self.size.width - 2 * self.cell_padding)
        kept = fitting or [i for i, column in enumerate(self.shape) if not column.optional]
        with self.prevent(DataTable.RowHighlighted):
            self.clear(columns=True)
            for index in kept:
                column = self.shape[index]
                label = Text(column.name, justify="right" if column.right else "left")
                self.add_column(label, width=widths[index])
            for key, row in self.rows_now:
                self.add_row(*(_aligned(row[i], self.shape[i]) for i in kept), key=key)
            keys = [key for key, _ in self.rows_now]
            if select in keys:
                self.move_cursor(row=keys.index(select), scroll=False)
        self.scroll_to(y=top, animate=False)

    def on_resize(self, event: Resize) -> None:
        self.draw(self.selected())


def _aligned(text: Text, column: Column) -> Text:
    aligned = text.copy()
    aligned.justify = "right" if column.right else "left"
    return aligned


class Detail(ModalScreen[None]):
    """One thing on the whole screen. `view` draws it for a width."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back"),
        Binding("enter", "dismiss", "Back", show=False),
        Binding("q", "app.quit", "Quit"),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, view: Callable[[int], Any]) -> None:
        super().__init__()
        self.heading = title
        self.view = view

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="sheet", classes="pane") as sheet:
            sheet.border_title = Content(escape(self.heading))
            yield Static(id="body")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#sheet").focus()

    def on_resize(self, event: Resize) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw it as it is now."""
        self.query_one("#body", Static).update(self.view(max(20, self.app.size.width - 4)))

    def action_scroll(self, lines: int) -> None:
        self.query_one("#sheet").scroll_relative(y=lines, animate=False)


class Ask(ModalScreen[bool]):
    """One question; only y is yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,enter,q", "dismiss(False)", "No", key_display="n"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        yield Static(Text(escape(self.question) + "\n\ny yes   n no"), id="question")
        yield Footer()


class Dashboard(App[None]):
    """All pipelines, runs and logs on one screen."""

    TITLE = "dw watch"
    ENABLE_COMMAND_PALETTE = False
    ESCAPE_TO_MINIMIZE = False
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("r", "run_selected", "Run"),
        Binding("slash", "type('/')", "Filter", key_display="/"),
        Binding("colon", "type(':')", "Command", key_display=":"),
        Binding("escape", "leave", "Back"),
        Binding("ctrl+c", "interrupt", "Quit", show=False, priority=True),
    ]
    CSS = """
    Screen { layout: vertical; }
    #header { height: auto; max-height: 3; padding: 0 1; text-style: bold; }
    #header.down { color: $text-error; }
    .pane { border-top: solid $primary 50%; border-title-color: $foreground;
            scrollbar-size: 1 1; background: $background; }
    .pane:focus { border-top: solid $accent; border-title-color: $accent; border-title-style: bold; }
    #pipelines { height: 3fr; min-height: 4; }
    #middle { height: 2fr; min-height: 4; }
    #running { width: 1fr; height: 1fr; }
    #trend { width: 32; height: 1fr; padding: 0 1; }
    #audit { height: 3fr; min-height: 4; }
    #log { height: 2fr; min-height: 3; padding: 0 1; }
    Sparkline { height: 1fr; }
    Sparkline > .sparkline--min-color { color: $primary; }
    Sparkline > .sparkline--max-color { color: $accent; }
    #typed { display: none; height: 1; border: none; padding: 0 1; }
    #typed.shown { display: block; }
    Screen.-wide #trend { width: 50; }
    Screen.-narrow #trend { display: none; }
    Screen.-low #middle { display: none; }
    Screen.-low #log { display: none; }
    Detail { background: $background; }
    #sheet { height: 1fr; padding: 0 1; }
    Ask { align: center middle; }
    #question { width: auto; max-width: 90%; height: auto; padding: 1 2;
                border: round $accent; background: $surface; }
    """

    def __init__(
        self,
        look: Callable[[], Found],
        log_of: Callable[[str], Sequence[Mapping[str, Any]]],
        start: Callable[[str], Ended],
        every: float,
    ) -> None:
        """look: finds what there is to show. It is called in a thread, and may raise anything.

        log_of: the last entries of a run's log. start: starts a run of a pipeline and returns a function
        that says how it ended, None while it goes on. every: seconds between two looks.
        """
        super().__init__()
        self.look = look
        self.log_of = log_of
        self.start = start
        self.every = every
        self.found: Found | None = None
        #: the words of the filter
        self.words = ""
        #: the pane whose selection the log and the trend follow
        self.lead = "pipelines"
        self.started: list[Ended] = []
        self.over = threading.Event()
        self.wake = threading.Event()
        self.log_shown: tuple[Any, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(Text("looking …"), id="header")
        yield Pane("pipelines", PIPELINE_COLUMNS)
        with Horizontal(id="middle"):
            yield Pane("running", GOING_COLUMNS)
            with Vertical(id="trend", classes="pane"):
                yield Static(id="trend-words")
                yield Sparkline([])
        yield Pane("audit", AUDIT_COLUMNS)
        log = RichLog(id="log", classes="pane", wrap=True, min_width=1, max_lines=1000)
        yield log
        yield Input(id="typed")
        yield Footer()

    def on_mount(self) -> None:
        self.show_titles()
        self.query_one("#pipelines").focus()
        self.looking = threading.Thread(target=self._keep_looking, name="dw-watch", daemon=True)
        self.looking.start()
        self.signals_before = dict(self._end_on_signals())

    def _end_on_signals(self) -> Iterator[tuple[int, Any]]:
        """SIGTERM and SIGHUP end the app between two steps of its loop; yields what they did before.

        An exception that a handler raises would strike anywhere in the loop and leave the terminal as it is.
        """
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP, and its loop no handlers
            before = signal.SIG_IGN if number is None else signal.getsignal(number)
            if number is not None and before is not signal.SIG_IGN:
                with suppress(NotImplementedError, ValueError, RuntimeError):
                    loop.add_signal_handler(number, partial(self.exit, return_code=128 + number))
                    yield number, before

    def on_unmount(self) -> None:
        for number, before in self.signals_before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, before)
        self.over.set()
        self.wake.set()
        # A look at a warehouse that does not answer may take long: nobody waits for it to quit.
        self.looking.join(timeout=0.3)

    # -- looking ---------------------------------------------------------------------------------------

    def _keep_looking(self) -> None:
        """The thread: look, tell, wait. Whatever one look meets, there is a next one."""
        while not self.over.is_set():
            began = time.monotonic()
            try:
                looked = Looked(self.look())
            except DwError as error:
                looked = Looked(None, error.message + (f" Fix: {error.hint}" if error.hint else ""))
            except Exception as error:
                looked = Looked(None, f"{type(error).__name__}: {error}")
            with suppress(RuntimeError):  # the app ended meanwhile
                self.post_message(looked)
            # An audit log of many years takes long to read: the warehouse has other things to do as well.
            took = time.monotonic() - began
            self.wake.wait(max(self.every, min(4 * took, LONGEST_PAUSE_SECONDS)))
            self.wake.clear()

    @on(Looked)
    def take(self, looked: Looked) -> None:
        """Show what a look found. With the warehouse down, the runs that were known stay."""
        header = next(iter(self.screen_stack[0].query("#header").results(Static)), None)
        if header is None:  # a look that ended while the app does
            return
        if looked.found is None:
            header.update(Text(escape(looked.problem)))
            header.add_class("down")
            return
        found = looked.found
        if not found.up and self.found is not None:
            known = self.found
            found = replace(found, history=known.history, runs=known.runs, live=known.live)
        self.found = found
        step = f"  {'Next' if found.up else 'Fix'}: {found.hint}" if found.hint else ""
        header.update(Text(f"{found.header}{step}  {found.now.astimezone():%H:%M:%S}"))
        header.set_class(not found.up, "down")
        self.show_found()
        if isinstance(self.screen, Detail):
            self.screen.redraw()
        self.tell_ended()

    def tell_ended(self) -> None:
        for ended in [*self.started]:
            said = ended()
            if said is not None:
                self.started.remove(ended)
                self.say(said, "error" if " failed: " in said else "information")
                self.wake.set()

    # -- showing ---------------------------------------------------------------------------------------

    def pane(self, name: str) -> Pane:
        return self.screen_stack[0].query_one(f"#{name}", Pane)

    def show_found(self) -> None:
        """Fill every pane with what is known, through the filter."""
        found = self.found
        if found is None:
            return
        bars = ascii_only(sys.__stdout__ or sys.stdout)
        self.pane("pipelines").fill(
            (one.pipeline, pipeline_row(one, found.now, bars))
            for one in found.standings
            if matches(f"{one.pipeline} {one.state}", self.words)
        )
        self.pane("running").fill(
            (str(run["run_id"]), going_row(run, found.live.get(str(run["run_id"])), found.now))
            for run in found.going
            if self._fits(run)
        )
        self.pane("audit").fill((str(run["run_id"]), audit_row(run)) for run in found.runs if self._fits(run))
        self.show_titles()
        self.show_selected()

    def _fits(self, run: Run) -> bool:
        return matches(f"{run['pipeline_name']} {run['run_id']} {state_of_run(run)}", self.words)

    def show_titles(self) -> None:
        names = {"pipelines": "Pipelines", "running": "Running", "audit": "Last runs"}
        for name, title in names.items():
            number = len(self.pane(name).rows_now)
            filtered = f"  /{escape(self.words)}" if self.words else ""
            self.pane(name).border_title = Content(f"{title} ({number}){filtered}")

    def show_selected(self) -> None:
        """The trend of the selected pipeline and the log of the selected run."""
        base = self.screen_stack[0]
        pipeline, run_id = self.selected_pipeline(), self.selected_run()
        trend = trend_of(self.found.history.get(pipeline, [])) if self.found and pipeline else []
        base.query_one("#trend").border_title = Content(f"Rows per run: {escape(pipeline or '-')}")
        base.query_one("#trend-words", Static).update(Text(trend_words(trend)))
        base.query_one(Sparkline).data = [float(value or 0) for value in trend]
        log = base.query_one("#log", RichLog)
        log.border_title = Content(f"Log: {escape(run_id[:8]) if run_id else '-'}")
        entries = self.log_of(run_id) if run_id else []
        shown: tuple[Any, ...] = (run_id, [*entries], log.size.width)
        if shown == self.log_shown:
            return
        self.log_shown = shown
        log.clear()
        for line in log_lines(entries, log.size.width):
            log.write(line)
        if run_id and not entries:
            log.write(Text("no log of this run on this machine", style="dim"))

    def selected_run(self) -> str | None:
        """The run that is selected; of a pipeline its newest."""
        key = self.pane(self.lead).selected()
        if self.lead != "pipelines" or self.found is None or key is None:
            return key
        runs = self.found.history.get(key, [])
        return str(runs[0]["run_id"]) if runs else None

    def selected_pipeline(self) -> str | None:
        """The pipeline that is selected; of a run its own."""
        key = self.pane(self.lead).selected()
        if self.lead == "pipelines" or key is None:
            return key
        run = self.run_of(key)
        return str(run["pipeline_name"]) if run else None

    def run_of(self, run_id: str) -> Run | None:
        """A run by its id, as the last look found it."""
        if self.found is None:
            return None
        every = [*self.found.going, *self.found.runs]
        return next((run for run in every if run["run_id"] == run_id), None)

    @on(DataTable.RowHighlighted)
    def follow(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.has_focus and event.data_table.id:
            self.lead = event.data_table.id
            self.show_selected()

    def on_descendant_focus(self, event: Any) -> None:
        if event.widget.id in PANES[:3]:
            self.lead = event.widget.id
            self.show_selected()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self.show_selected)

    # -- keys ------------------------------------------------------------------------------------------

    @on(DataTable.RowSelected)
    def open(self, event: DataTable.RowSelected) -> None:
        """Enter: the row in detail."""
        key = str(event.row_key.value)
        if event.data_table.id == "pipelines":
            self.push_screen(Detail(f"Pipeline {key}", lambda screen: self.pipeline_view(key, screen)))
        else:
            self.push_screen(Detail(f"Run {key}", lambda screen: self.run_view(key, screen)))

    def pipeline_view(self, name: str, screen: int) -> RenderableType:
        """A pipeline in detail, as the last look found it."""
        found = self.found
        standing = next((one for one in found.standings if one.pipeline == name), None) if found else None
        if found is None or standing is None:
            return Text(f"{escape(name)} is no longer in the project")
        about, runs = found.about.get(name, {}), found.history.get(name, [])
        return pipeline_detail(standing, about, runs, found.now, screen)

    def run_view(self, run_id: str, screen: int) -> RenderableType:
        """A run in detail, its log below."""
        run = self.run_of(run_id)
        if run is None:
            return Text("this run is no longer among the last ones")
        log = log_lines(self.log_of(run_id), screen)
        return Group(audit_detail(run, screen), Text(""), *log)

    def action_help(self) -> None:
        self.push_screen(Detail("Help", lambda screen: fields([*KEYS, ("", ""), *COMMANDS], screen)))

    def action_interrupt(self) -> None:
        self.exit(return_code=130)

    def action_leave(self) -> None:
        """Escape: leave the full pane, then drop the filter."""
        if self.screen.maximized is not None:
            self.leave_full()
        elif self.words:
            self.words = ""
            self.show_found()

    def fill_screen(self, name: str) -> None:
        """Give one pane the whole screen, also one that a small screen hides."""
        self.leave_full()
        widget = self.screen.query_one(f"#{name}")
        widget.styles.display = "block"
        self.screen.maximize(widget, container=False)
        widget.focus()
        self.call_after_refresh(self.show_selected)

    def leave_full(self) -> None:
        widget = self.screen.maximized
        if widget is not None:
            self.screen.minimize()
            widget.styles.clear_rule("display")
            self.call_after_refresh(self.show_selected)

    def action_run_selected(self) -> None:
        name = self.selected_pipeline()
        if name is None:
            self.say("no pipeline is selected", "warning")
        else:
            self.ask_and_run(name)

    # -- filter and commands ---------------------------------------------------------------------------

    def action_type(self, mark: str) -> None:
        """Open the line at the bottom for a filter (`/`) or a command (`:`)."""
        self.leave_full()
        typed = self.query_one("#typed", Input)
        typed.suggester = SuggestFromList(self.commands()) if mark == ":" else None
        typed.value = mark + (self.words if mark == "/" else "")
        typed.add_class("shown")
        typed.select_on_focus = False
        typed.focus()
        typed.cursor_position = len(typed.value)

    def commands(self) -> list[str]:
        """Whole command lines, for the line to propose (→ takes one)."""
        names = [one.pipeline for one in self.found.standings] if self.found else []
        return [f":{word}" for word in (*PANES, "help", "filter", "q")] + [f":run {name}" for name in names]

    @on(Input.Changed, "#typed")
    def narrow(self, event: Input.Changed) -> None:
        """The filter works while it is typed; the line closes when its mark is deleted."""
        if not event.input.has_class("shown"):
            return
        if event.value[:1] not in ("/", ":"):
            self.close_line()
        if event.value[:1] != ":":
            self.words = event.value[1:].strip()
            self.show_found()

    @on(Input.Submitted, "#typed")
    def submit(self, event: Input.Submitted) -> None:
        text = event.value
        self.close_line()
        if text[:1] == ":":
            self.obey(text[1:].split())

    def on_key(self, event: Any) -> None:
        typed = self.screen_stack[0].query_one("#typed", Input)
        if event.key == "escape" and typed.has_focus:
            event.stop()
            event.prevent_default()
            if typed.value[:1] == "/":
                self.words = ""
                self.show_found()
            self.close_line()

    def close_line(self) -> None:
        self.query_one("#typed", Input).remove_class("shown")
        self.pane(self.lead).focus()

    def obey(self, words: Sequence[str]) -> None:
        """Do what a command says: `:run orders`, `:audit`, `:q`."""
        match [*words]:
            case []:
                pass
            case ["q" | "quit"]:
                self.exit()
            case ["help" | "?"]:
                self.action_help()
            case ["filter", *rest]:
                self.words = " ".join(rest)
                self.show_found()
            case ["run"]:
                self.action_run_selected()
            case ["run", name]:
                self.ask_and_run(name)
            case [pane] if pane in PANES:
                self.fill_screen(pane)
            case _:
                near = nearest(words[0], [*PANES, "run", "filter", "help", "quit"])
                self.say(f"there is no command '{' '.join(words)}'.{near}", "warning")

    # -- running ---------------------------------------------------------------------------------------

    def ask_and_run(self, name: str) -> None:
        """Run a pipeline, after a yes. name: `source.pipeline`, or the part after the dot if one has it."""
        known = {one.pipeline: one for one in self.found.standings} if self.found else {}
        meant = [one for one in known if name in (one, one.partition(".")[2])]
        if len(meant) != 1:
            self.say(
                f"'{name}' stands in {len(meant)} sources: say {' or '.join(meant)}"
                if meant
                else f"there is no pipeline '{name}' here.{nearest(name, known)}",
                "warning",
            )
            return
        pipeline = meant[0]
        going = " It seems to be running already." if known[pipeline].state == "running" else ""

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_now(pipeline)

        self.push_screen(Ask(f"Run {pipeline} now?{going}"), answered)

    def run_now(self, pipeline: str) -> None:
        try:
            self.started.append(self.start(pipeline))
        except OSError as error:
            self.say(f"{pipeline} cannot be started: {error}", "error")
            return
        self.say(f"dw run {pipeline} is started")
        self.wake.set()

    def say(self, text: str, severity: Any = "information") -> None:
        self.notify(escape(text), severity=severity, markup=False, timeout=5)

"""Questions to a person, on stderr: stdout stays free for data.

Two ways to ask the same: arrow keys (questionary), and numbered lines (DW_PLAIN=1, screen readers,
terminals that cannot move their cursor). Both raise KeyboardInterrupt on Ctrl-C and Ctrl-D. Nothing
here may be called unless `settings.can_ask()`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Check = Callable[[str], str]
#: (value, what is shown)
Option = tuple[str, str]
PICKING = "type to filter, space to pick, enter to go on"


def plain() -> bool:
    """Whether questions are asked line by line."""
    return os.environ.get("DW_PLAIN") not in (None, "", "0") or os.environ.get("TERM") == "dumb"


@contextmanager
def asking(left: str) -> Iterator[None]:
    """Questions that Ctrl-C ends with a word on what was left as it is."""
    from dwcli.cli._say import say

    try:
        with on_stderr():
            yield
    except KeyboardInterrupt:
        say(f"\nStopped. {left}")
        raise


@contextmanager
def on_stderr() -> Iterator[None]:
    """All questions inside are written to stderr.

    A terminal without a console to control (mintty) is asked line by line from here on.
    """
    if plain():
        yield
        return
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output

    try:
        output = create_output(stdout=sys.stderr)
    except Exception as error:
        if "Console" not in type(error).__name__:
            raise
        os.environ["DW_PLAIN"] = "1"
        yield
        return
    with create_app_session(output=output):
        yield


def text(message: str, default: str = "", check: Check = lambda typed: "") -> str:
    """A line of text; `check` says what is wrong with it, or nothing.

    The default stands there as if it were selected: what is typed first takes its place.
    """
    if plain():
        return _text_line(message, default, check)
    import questionary

    keys = _replacing(default) if default else None
    return str(
        _answer(questionary.text(message, default=default, validate=_validator(check), key_bindings=keys))
    )


def _replacing(default: str) -> Any:
    """Keys by which the first thing typed or pasted replaces the default, until the cursor is moved."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.keys import Keys

    untouched = [True]

    def is_untouched() -> bool:
        buffer = get_app().current_buffer
        there = buffer.text == default and buffer.cursor_position == len(default)
        untouched[0] = untouched[0] and there
        return untouched[0]

    def replace(event: KeyPressEvent) -> None:
        if event.data.isprintable():
            event.current_buffer.text = ""
            event.current_buffer.insert_text(event.data)

    keys = KeyBindings()
    keys.add(Keys.Any, filter=Condition(is_untouched))(replace)
    keys.add(Keys.BracketedPaste, filter=Condition(is_untouched))(replace)
    return keys


def hidden(message: str, check: Check = lambda typed: "") -> str:
    """A secret: nothing is shown while it is typed, not even its length."""
    if plain():
        import getpass

        while problem := check(
            typed := str(_or_interrupt(lambda: getpass.getpass(f"{message}: ", sys.stderr)))
        ):
            _say(f"  {problem}")
        return typed
    from prompt_toolkit import PromptSession
    from prompt_toolkit.layout.processors import PasswordProcessor
    from prompt_toolkit.validation import Validator
    from questionary.constants import DEFAULT_QUESTION_PREFIX, DEFAULT_STYLE

    session: PromptSession[str] = PromptSession(
        [("class:qmark", DEFAULT_QUESTION_PREFIX), ("class:question", f" {message} "), ("", "[hidden] ")],
        input_processors=[PasswordProcessor(char="")],
        style=DEFAULT_STYLE,
        validator=Validator.from_callable(lambda typed: not check(typed), "this is needed"),
        validate_while_typing=False,
    )
    return str(_or_interrupt(session.prompt))


def confirm(message: str, default: bool = True) -> bool:
    """Yes or no."""
    return choose(message, [("yes", "Yes"), ("no", "No")], "yes" if default else "no") == "yes"


def choose(message: str, options: Sequence[Option], default: str | None = None, search: bool = False) -> str:
    """One of several; returns its value. search: typing narrows the list."""
    if plain():
        return _choose_line(message, options, default)
    import questionary

    choices = [questionary.Choice(shown, value=value) for value, shown in options]
    known = default if default in [value for value, _ in options] else None
    question = questionary.select(
        message,
        choices=choices,
        default=known,
        use_search_filter=search,
        use_jk_keys=False,
        instruction="(type to filter)" if search else " ",
    )
    return str(_answer(_filtered_by_any_letter(question) if search else question))


def pick(message: str, options: Sequence[Option], picked: Sequence[str] = ()) -> list[str]:
    """Several of several, at least one; returns their values in the order of the options."""
    if plain():
        return _pick_lines(message, options, picked)
    import questionary

    choices = [questionary.Choice(shown, value=value, checked=value in picked) for value, shown in options]
    question = questionary.checkbox(
        message,
        choices=choices,
        use_search_filter=True,
        use_jk_keys=False,
        instruction=PICKING if _fits(message, PICKING) else "space picks",
        validate=lambda chosen: bool(chosen) or "pick at least one (space)",
    )
    chosen = set(_answer(_filtered_by_any_letter(question)))
    return [value for value, _ in options if value in chosen]


def _filtered_by_any_letter(question: Any) -> Any:
    """questionary filters by ASCII alone, and takes no notice of any other letter."""
    from prompt_toolkit.key_binding import KeyPressEvent
    from prompt_toolkit.keys import Keys
    from questionary.prompts.common import InquirerControl

    controls = question.application.layout.find_all_controls()
    options: Any = next(control for control in controls if isinstance(control, InquirerControl))

    def narrow(event: KeyPressEvent) -> None:
        for letter in event.data:
            if letter.isprintable():
                options.add_search_character(letter)

    question.application.key_bindings.add(Keys.Any)(narrow)
    return question


def _fits(message: str, instruction: str) -> bool:
    return len(f"? {message} {instruction} ") < shutil.get_terminal_size().columns


def _answer(question: Any) -> Any:
    # .ask() would print "Cancelled" on Ctrl-C and go on; this one raises
    return _or_interrupt(question.unsafe_ask)


def _or_interrupt(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except EOFError:
        raise KeyboardInterrupt from None


def _validator(check: Check) -> Callable[[str], bool | str]:
    return lambda typed: check(typed) or True


# -- line by line -------------------------------------------------------------------------------------


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _read_line(message: str) -> str:
    sys.stderr.write(message)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    return line.rstrip("\r\n")


def _text_line(message: str, default: str, check: Check) -> str:
    shown = f"{message} [{default}]: " if default else f"{message}: "
    while problem := check(typed := _read_line(shown) or default):
        _say(f"  {problem}")
    return typed


def _number_options(message: str, options: Sequence[Option]) -> None:
    _say(message)
    for number, (_, shown) in enumerate(options, 1):
        _say(f"  {number}. {shown}")


def _choose_line(message: str, options: Sequence[Option], default: str | None) -> str:
    values = [value for value, _ in options]
    _number_options(message, options)
    usual = str(values.index(default) + 1) if default in values else "1"
    while True:
        typed = _read_line(f"Number [{usual}]: ").strip() or usual
        if typed in values:
            return typed
        if typed.isdigit() and 1 <= int(typed) <= len(values):
            return values[int(typed) - 1]
        _say(f"  a number from 1 to {len(values)}")


def _pick_lines(message: str, options: Sequence[Option], picked: Sequence[str]) -> list[str]:
    values = [value for value, _ in options]
    _number_options(message, options)
    usual = " ".join(str(values.index(value) + 1) for value in picked if value in values)
    while True:
        typed = (
            _read_line(f"Numbers, with spaces between{f' [{usual}]' if usual else ''}: ") or usual
        ).split()
        if typed and all(word.isdigit() and 1 <= int(word) <= len(values) for word in typed):
            numbers = {int(word) for word in typed}
            return [value for number, value in enumerate(values, 1) if number in numbers]
        _say(f"  numbers from 1 to {len(values)}, at least one")

"""The `dw` command: what each word leads to, and how every command ends.

One command is one module of this package with one function of its name. Only the module of the command
that was typed is imported; the others stand in `dw --help` by the words that `_words.py` keeps of them.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dwcli.cli import settings as _settings
from dwcli.cli._globals import SWITCHES, take_globals
from dwcli.errors import NO_ROOM, DwError, UsageError

if TYPE_CHECKING:
    import typer
    from typer.core import TyperGroup


@dataclass(frozen=True)
class Command:
    """One word after `dw`. `completes`: what its plain words are, for TAB."""

    name: str
    panel: str
    completes: str = ""

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


COMMANDS = (
    Command("init", "Start", "folders"),
    Command("add-source", "Start", "protocols"),
    Command("test-connection", "Start", "sources"),
    Command("sources", "Sources"),
    Command("edit", "Sources", "pipelines"),
    Command("remove", "Sources", "pipelines"),
    Command("preview", "Sources", "pipelines"),
    Command("run", "Load", "pipelines"),
    Command("retry", "Load", "pipelines"),
    Command("replay", "Load", "pipelines"),
    Command("schedule", "Load", "schedule"),
    Command("status", "Look"),
    Command("audit", "Look", "runs"),
    Command("logs", "Look", "runs"),
    Command("trace", "Look", "targets"),
    Command("watch", "Look"),
    Command("query", "Look"),
    Command("verify", "Look", "pipelines"),
    Command("doctor", "Look"),
    Command("state", "Load", "pipelines"),
    Command("clean", "Warehouse"),
    Command("up", "Warehouse"),
    Command("down", "Warehouse"),
    Command("completion", "Shell", "completion"),
    Command("help", "Shell", "topics"),
)
ALIASES = {
    "ls": "sources",
    "rm": "remove",
    "st": "status",
    "sql": "query",
    "test": "test-connection",
    "add": "add-source",
}
EXIT_CODES = (
    "Exit codes: 0 all done; 1 something failed; 2 nothing was done (usage, config, a missing answer); "
    "130 Ctrl-C; 143 or 129 stopped."
)


# -- the app ------------------------------------------------------------------------------------------


def build_app(argv: list[str], wanted: str | None) -> typer.Typer:
    """The Typer app with one command imported, `wanted`, and the others as names with their help.

    argv: the whole command line; a command with flags that depend on it (`add-source PROTOCOL`) reads
    it. wanted: "*" imports every command there is.
    """
    import typer

    from dwcli.cli._words import WORDS

    app = typer.Typer(
        name="dw",
        help="A data warehouse in a folder: any source to Parquet to PostgreSQL, with every run audited.",
        epilog=EXIT_CODES,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_accept_globals(_nothing, {}))
    for command in COMMANDS:
        if wanted in (command.name, "*") and is_there(command):
            function = _accept_globals(*_load(command, argv))
            app.command(command.name, rich_help_panel=command.panel)(function)
        elif command.name in WORDS:
            app.command(command.name, rich_help_panel=command.panel, help=WORDS[command.name]["help"])(
                _nothing
            )
    return app


def program(argv: list[str]) -> TyperGroup:
    """What a command line is parsed by. argv: its words, the command first."""
    from typing import cast

    from typer.main import get_command

    from dwcli.cli._usage import prepare

    # an app with several commands is a group
    made = cast("TyperGroup", get_command(build_app(argv, argv[0])))
    prepare(made)
    return made


def is_there(command: Command) -> bool:
    return (Path(__file__).parent / f"{command.module}.py").exists()


def _nothing() -> None:
    """A command that is only named in this process."""


def _load(command: Command, argv: list[str]) -> tuple[Callable[..., None], Mapping[str, inspect.Parameter]]:
    """A command's function, and the flags that it has for this command line alone."""
    module = importlib.import_module(f"dwcli.cli.{command.module}")
    flags_for = getattr(module, "flags_for", None)
    return getattr(module, command.module), {} if flags_for is None else flags_for(argv)


def _accept_globals(
    function: Callable[..., None], more: Mapping[str, inspect.Parameter]
) -> Callable[..., None]:
    """A command as Typer shall see it: its own flags, `more`, and the global ones in a panel of theirs.

    The values of `more` reach the function as the dict `given`. The global flags are there to be seen
    in `--help` and in "Did you mean": they are taken off the command line before Typer parses it.
    """
    signature = inspect.signature(function, eval_str=True)
    own = {name: p for name, p in signature.parameters.items() if name != "given"}

    # Typer calls a command with keyword arguments; which ones is known only here.
    def command(**values: Any) -> None:
        _take_joined(values)
        arguments = {name: value for name, value in values.items() if name in own}
        if "given" in signature.parameters:
            arguments["given"] = {k: v for k, v in values.items() if k in more and v is not None}
        function(**arguments)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own.values(), *more.values(), *_global_flags())
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = inspect.getdoc(function) if function is not _nothing else None
    return command


def _take_joined(values: Mapping[str, Any]) -> None:
    """Global flags that Typer found after all: short ones joined to a command's own, as in `-yn 5`."""
    found = {
        name.removeprefix("global_"): value
        for name, value in values.items()
        if value and name.startswith("global_")
    }
    given = _settings.settings()
    for flag, change in SWITCHES.items():
        if flag.removeprefix("--").replace("-", "_") in found:
            given = change(given)
    if "project" in found:
        given = replace(given, project=Path(found["project"]))
    _settings.use(given)


def _global_flags() -> list[inspect.Parameter]:
    import typer

    flags: list[tuple[str, Any, list[str], str]] = [
        (
            "project",
            str | None,
            ["--project", "-C"],
            "Project folder; else the nearest dw.yaml from here up.",
        ),
        ("json", bool, ["--json"], "One JSON document on stdout."),
        ("quiet", bool, ["--quiet", "-q"], "Say less."),
        ("verbose", bool, ["--verbose", "-v"], "Say more; -vv shows tracebacks."),
        ("no_color", bool, ["--no-color"], "No colours."),
        ("no_input", bool, ["--no-input"], "Never ask a question."),
        ("yes", bool, ["--yes", "-y"], "Take the default where it is sure."),
        ("version", bool, ["--version", "-V"], "Print the version."),
    ]
    return [
        inspect.Parameter(
            f"global_{name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=False if kind is bool else None,
            annotation=Annotated[
                kind,
                typer.Option(
                    *names,
                    help=text,
                    rich_help_panel="Global, before or after the command",
                    show_default=False,
                    metavar="" if kind is bool else "DIR",
                ),
            ],
        )
        for name, kind, names, text in flags
    ]


# -- one command line ---------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Do what a command line says; the exit code. Every error ends here, told once."""
    _stop_on_signals()
    try:
        given, rest = take_globals(argv, _valued_flags(argv))
    except UsageError as error:
        return _fail(error)
    _settings.use(given)
    if given.no_color:
        os.environ["NO_COLOR"] = "1"
    _fit_streams()
    try:
        return _run(rest)
    except DwError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _close_pipes()
        return 1
    except OSError as error:
        return _fail(_no_room(error)) if error.errno in NO_ROOM else _fail_unexpectedly(error)
    except Exception as error:
        return _fail_unexpectedly(error)


def _no_room(error: OSError) -> DwError:
    return DwError(
        f"there is no room left for {error.filename or 'what is printed'}",
        why=error.strerror or "",
        hint="make room: df -h shows where",
    )


def _fit_streams() -> None:
    from dwcli.render.console import fit, fit_dumb_terminal

    fit(sys.stdout)
    fit(sys.stderr)
    fit_dumb_terminal()


def _run(argv: list[str]) -> int:
    if any(word in ("-V", "--version") for word in _before_dashes(argv)):
        return _show_version()
    if not argv:
        from dwcli.cli.home import home

        home()
        return 0
    argv = [ALIASES.get(argv[0], argv[0]), *argv[1:]]
    from typer.exceptions import Abort, TyperException

    try:
        code = program(argv).main(argv, prog_name="dw", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        raise _usage_error(error, argv) from None
    except Abort:
        return 130
    return code if isinstance(code, int) else 0


def _usage_error(error: Exception, argv: list[str]) -> DwError:
    """What Typer could not parse, in the form of every other error. Values are not repeated."""
    from dwcli.documents import nearest

    known = next((c.name for c in COMMANDS if c.name == argv[0]), None)
    hint = f"dw {known} --help" if known else "dw --help"
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        flag = str(option).split("=")[0]
        found = nearest(flag, _flags_of(getattr(error, "ctx", None)))
        secret = f"{flag}-env" in _flags_of(getattr(error, "ctx", None))
        if secret:
            return UsageError(
                f"{flag} takes no value on the command line: other users could read it there",
                hint=f"{flag}-env VARIABLE, {flag}-file PATH, or {flag}-stdin",
            )
        return UsageError(f"there is no flag '{flag}' here.{found}", hint=hint)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    message = message.removesuffix(".") if not message.endswith("?") else message
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _flags_of(context: Any) -> list[str]:
    if context is None:
        return []
    return [flag for parameter in context.command.params for flag in parameter.opts if flag[:1] == "-"]


def _valued_flags(argv: list[str]) -> set[str]:
    """The flags of the command on this line that take a value."""
    from dwcli.cli._tab import flags_for

    words = [word for word in argv if word[:1] != "-"]
    command = next((ALIASES.get(word, word) for word in words if ALIASES.get(word, word) in _names()), "")
    return {flag for flag, values in flags_for(command, words).items() if values is not None}


def _names() -> set[str]:
    return {command.name for command in COMMANDS}


def _before_dashes(argv: list[str]) -> list[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def _show_version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("dwcli")
    except PackageNotFoundError:
        number = "(not installed)"
    sys.stdout.write(f"dw {number}\n")
    return 0


# -- how it ends --------------------------------------------------------------------------------------


def _fail(error: DwError) -> int:
    from dwcli.references import redact
    from dwcli.render.errors import show_error

    secrets = known_secrets()
    error.hint = error.hint or _explained(error)
    show_error(error, secrets)
    if _settings.settings().json:
        import json

        told = {"code": error.code, "message": error.message, "why": error.why, "hint": error.hint}
        told = {key: redact(text, secrets) for key, text in told.items()}
        sys.stdout.write(json.dumps({"ok": False, "error": told}) + "\n")
    if _settings.settings().verbose > 1:
        _show_traceback(error, secrets)
    return error.exit_code


def _explained(error: DwError) -> str:
    """What to type about a failure that says no more itself. A typo needs no explanation."""
    from dwcli.cli._codes import CODES

    known = error.code in CODES and error.code != DwError.code
    return f"dw help {error.code}" if known and error.exit_code == 1 else ""


def _fail_unexpectedly(error: Exception) -> int:
    from dwcli.references import redact

    secrets = known_secrets()
    text = redact(_traceback(error), secrets)
    path = _write_log(text)
    failure = DwError(
        f"unexpected error ({type(error).__name__}). Details, passwords removed: {path}",
        hint="the same command with -vv shows the traceback",
        code="DW-UNEXPECTED",
    )
    return _fail(failure) if _settings.settings().verbose < 2 else _fail_with(failure, text)


def _fail_with(failure: DwError, text: str) -> int:
    sys.stderr.write(text)
    return _fail(failure)


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _show_traceback(error: BaseException, secrets: list[str]) -> None:
    from dwcli.references import redact

    sys.stderr.write(redact(_traceback(error), secrets))


def _write_log(text: str) -> Path:
    """Keep the details of an unexpected error, for its owner's eyes alone."""
    import tempfile
    from datetime import UTC, datetime

    from dwcli.references import write_private

    root = _root()
    folder = root / ".dw" / "logs" if root else Path(tempfile.mkdtemp(prefix="dw-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"error-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log"
        write_private(path, text)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="dw-"))
        path = folder / "error.log"
        write_private(path, text)
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def known_secrets() -> list[str]:
    """Every secret value that this process may know of, to be taken out of what it says."""
    from urllib.parse import unquote, urlsplit

    from dwcli.errors import ConfigError
    from dwcli.references import read_env_file

    root = _root()
    try:
        found = list(read_env_file(root / ".env").values()) if root else []
    except ConfigError:
        found = []
    for name, value in os.environ.items():
        if "PASSWORD" in name or "SECRET" in name or "TOKEN" in name:
            found.append(value)
        elif "://" in value and "@" in value:
            try:
                password = urlsplit(value).password
            except ValueError:
                continue
            found += [password, unquote(password)] if password else []
    return [value for value in found if value]


def _root() -> Path | None:
    start = (_settings.settings().project or Path(os.environ.get("DW_PROJECT") or ".")).absolute()
    return next((p for p in (start, *start.parents) if (p / "dw.yaml").is_file()), None)


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP (a terminal that went away) end `dw`; under nohup SIGHUP stays ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    """End `dw` the orderly way: blocks are left, files are closed, the cursor comes back.

    A terminal that goes away sends more than one signal; what is being rolled back is not to be disturbed.
    """
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(OSError):
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")
    raise SystemExit(128 + number)


def _close_pipes() -> None:
    """Whoever read our output has gone: let Python's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

"""Where a timer for `dw run --due` is kept: a systemd user timer, or one line of the user's crontab."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwcli.errors import UsageError

#: A scheduler that does not answer within this is taken as not there.
ANSWER_SECONDS = 15.0
LOG = Path(".dw") / "logs" / "schedule.log"

LARGEST_LOG = 1024 * 1024


@dataclass(frozen=True)
class Timer:
    """What is to be, or is, installed for one project."""

    name: str
    #: tells the folder; the project's name may change
    digest: str
    root: Path
    minutes: int
    #: the words that call this dw
    command: tuple[str, ...]


def timer_for(project_name: str, root: Path, minutes: int) -> Timer:
    """The timer of a project folder. Two folders never share one, whatever their projects are called."""
    if "\n" in str(root) or "\r" in str(root):
        raise UsageError(f"a timer cannot hold this folder's name: {str(root)!r}", hint="rename the folder")
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    return Timer(f"dw-{project_name}-{digest}", digest, root, minutes, this_dw())


def this_dw() -> tuple[str, ...]:
    """The words that start the dw that runs now, from any folder."""
    script = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).with_name("dw")
    for path in (script, beside):
        if path.name == "dw" and os.access(path, os.X_OK) and path.is_file():
            return (str(path),)
    return (sys.executable, "-m", "dwcli")


def arguments(timer: Timer) -> tuple[str, ...]:
    return (*timer.command, "run", "--due", "--quiet", "--no-input")


def trim_log(root: Path) -> None:
    """Begin a new log where the old one has grown large; one older stays."""
    log = root / LOG
    try:
        if log.stat().st_size > LARGEST_LOG:
            log.replace(log.with_suffix(".1.log"))
    except OSError:
        return


# -- systemd -------------------------------------------------------------------------------------------


def unit_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def has_systemd() -> bool:
    """Whether this user's systemd can be reached: it may be missing, or have no bus (containers, su)."""
    return _call(["systemctl", "--user", "show-environment"])[0] == 0


def units(timer: Timer) -> dict[Path, str]:
    """The two files of a timer, by path."""
    log = timer.root / LOG
    every = f"*:0/{timer.minutes}" if timer.minutes > 1 else "*:*"
    about = _unit_text(f"dw: what is due in {timer.root}")
    service = f"""\
# written by `dw schedule on`; `dw schedule off` removes it
[Unit]
Description={about}

[Service]
Type=oneshot
WorkingDirectory={_unit_text(str(timer.root))}
ExecStart={" ".join(_unit_word(word) for word in arguments(timer))}
# every run has its own log; here are failures alone
StandardOutput=null
StandardError=append:{_unit_text(str(log))}
# a warehouse of dw's own that a run has started stays up
KillMode=process
"""
    return {
        unit_folder() / f"{timer.name}.service": service,
        unit_folder() / f"{timer.name}.timer": f"""\
# written by `dw schedule on`; `dw schedule off` removes it
[Unit]
Description={about}

[Timer]
OnCalendar={every}
AccuracySec=5s
Persistent=true

[Install]
WantedBy=timers.target
""",
    }


def _unit_text(text: str) -> str:
    """Text in a unit file; % begins a specifier there."""
    return text.replace("%", "%%")


def _unit_word(word: str) -> str:
    """One word of ExecStart; $ begins a variable there."""
    word = _unit_text(word).replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def installed_units(timer: Timer) -> dict[Path, str]:
    """The files of a project's timer that are there, with their text."""
    return {path: path.read_text("utf-8", "replace") for path in unit_folder().glob(f"dw-*-{timer.digest}.*")}


def start_units(timer: Timer) -> None:
    """Write the files and let systemd begin. Raises UsageError with systemd's own words."""
    if set(installed_units(timer)) - set(units(timer)):
        stop_units(timer)  # the project had another name
    for path, text in units(timer).items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
    unit = f"{timer.name}.timer"
    for words in (["daemon-reload"], ["enable", unit], ["restart", unit]):
        _systemctl(words)


def stop_units(timer: Timer) -> None:
    """Stop the timer and remove its files. A run that is under way goes on."""
    reachable, files = has_systemd(), sorted(installed_units(timer))
    for path in files:
        if reachable and path.suffix == ".timer":
            _call(["systemctl", "--user", "disable", "--now", path.name])
    for path in files:
        path.unlink(missing_ok=True)
    if reachable:
        _systemctl(["daemon-reload"])


def is_active(unit: str) -> bool:
    """Whether systemd has this timer going."""
    return _call(["systemctl", "--user", "is-active", unit])[0] == 0


def lingers() -> bool:
    """Whether this user's timers also go on while the user is logged out."""
    return (Path("/var/lib/systemd/linger") / os.environ.get("USER", "")).is_file()


def _systemctl(words: list[str]) -> None:
    code, _, why = _call(["systemctl", "--user", *words])
    if code != 0:
        raise UsageError(
            f"systemd refused: systemctl --user {' '.join(words)}",
            why=why.strip().split("\n")[0],
            hint="dw schedule off takes back what was written",
        )


# -- crontab -------------------------------------------------------------------------------------------


def cron_line(timer: Timer) -> str:
    """The one line of a project, with the mark at its end that it is found by."""
    every = f"*/{timer.minutes}" if timer.minutes > 1 else "*"
    command = (
        f"cd {shlex.quote(str(timer.root))} && {shlex.join(arguments(timer))} >/dev/null 2>>{LOG.as_posix()}"
    )
    # an unescaped % ends the command in a crontab
    return f"{every} * * * * {command.replace('%', chr(92) + '%')} {_mark(timer)}"


def _mark(timer: Timer) -> str:
    return f"# dw schedule: {timer.name}"


def cron_lines() -> list[str] | None:
    """The user's crontab, without line ends; None where there is no cron. Raises UsageError.

    A crontab that could not be read is an error: written back, its lines would be lost.
    """
    code, text, why = _call(["crontab", "-l"])
    if code == 127:
        return None
    if code != 0 and "no crontab" not in why.lower():
        raise UsageError(
            "the crontab cannot be read, so nothing was changed in it",
            why=why.strip().split("\n")[0],
            hint="crontab -l",
        )
    return text.split("\n")[:-1] if text.endswith("\n") else text.split("\n") if text else []


def cron_lines_or_none() -> list[str] | None:
    """`cron_lines`, and None as well where the crontab cannot be read: for looking only."""
    try:
        return cron_lines()
    except UsageError:
        return None


def own_line(lines: list[str] | None, timer: Timer) -> str | None:
    """The line of this project in a crontab."""
    return next((line for line in lines or [] if _is_own(line, timer)), None)


def _is_own(line: str, timer: Timer) -> bool:
    return re.search(rf"# dw schedule: dw-\S+-{timer.digest}\s*$", line) is not None


def write_cron_line(timer: Timer, line: str | None) -> None:
    """Put this project's line into the crontab, or (None) take it out. Other lines stay as they are."""
    lines = cron_lines() or []
    after = [old for old in lines if not _is_own(old, timer)] + ([line] if line else [])
    code, _, why = _call(["crontab", "-"], "".join(f"{each}\n" for each in after))
    if code != 0:
        raise UsageError("the crontab cannot be written", why=why.strip().split("\n")[0], hint="crontab -l")


def _call(words: list[str], text: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a program; 127 where it is not there."""
    try:
        done = subprocess.run(
            words,
            input=text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=ANSWER_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return 127, "", f"{words[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, "", f"{words[0]}: {type(error).__name__}"
    return (
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "replace"),
    )


# -- what there is ------------------------------------------------------------------------------------


def installed(timer: Timer) -> dict[str, Any] | None:
    """What runs this project's pipelines, and whether it is what `on` would write now."""
    files = installed_units(timer)
    unit = next((path for path in files if path.suffix == ".timer"), None)
    if unit is not None:
        active = is_active(unit.name)
        return {
            "by": "systemd",
            "name": unit.name,
            "minutes": _minutes(r"OnCalendar=\*:(?:0/(\d+)|\*)", files[unit]),
            "active": active,
            "current": active and files == units(timer),
            "files": sorted(map(str, files)),
        }
    line = own_line(cron_lines_or_none(), timer)
    if line is None:
        return None
    return {
        "by": "crontab",
        "name": line.rpartition(" ")[2],
        "minutes": _minutes(r"^\*(?:/(\d+))?", line),
        "active": not line.startswith("#"),
        "current": line == cron_line(timer),
        "files": [],
    }


def _minutes(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text)
    return int(match[1] or 1) if match else None


def rhythm(minutes: int) -> str:
    """`every 5 minutes`"""
    return "every minute" if minutes == 1 else f"every {minutes} minutes"

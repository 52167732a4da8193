"""`dw schedule`: a timer that calls `dw run --due`, and when each pipeline is due."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dwcli.cli import _timers
from dwcli.cli._confirm import confirmed
from dwcli.cli._output import show_rows, tell, tell_next
from dwcli.cli._say import command_line
from dwcli.cli._timers import rhythm
from dwcli.cli.settings import settings
from dwcli.errors import UsageError

if TYPE_CHECKING:
    from dwcli.cli._timers import Timer
    from dwcli.project import Project
    from dwcli.render.runs import Standing


def schedule(
    action: Annotated[
        Literal["on", "off", "show"],
        typer.Argument(help="on: write the timer; off: remove it; show: what there is, what is due when."),
    ] = "show",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written or removed, change nothing.")
    ] = False,
) -> None:
    """Run pipelines by their time (every:): one systemd user timer, or one line in the crontab."""
    from dwcli.cli._due import with_a_time
    from dwcli.clock import tick_minutes
    from dwcli.project import load_project

    project = load_project(settings().project)
    times = [pipeline.config.every or "" for pipeline in with_a_time(project, [])]
    timer = _timers.timer_for(project.config.name, project.root, tick_minutes(times))
    if action == "show":
        _show(project, timer)
    elif action == "off":
        _off(timer, dry_run)
    elif not times:
        raise UsageError(
            "no pipeline has a time, so there is nothing to schedule",
            hint="give one in its source file, such as every: 1h",
        )
    else:
        _on(timer, dry_run)


# -- on and off ----------------------------------------------------------------------------------------


def _on(timer: Timer, dry_run: bool) -> None:
    systemd = _timers.has_systemd()
    lines = None if systemd else _timers.cron_lines()
    if not systemd and lines is None:
        raise UsageError(
            "this machine has neither a systemd for users nor a crontab",
            why="systemctl --user does not answer, and there is no program crontab",
            hint=f"let another scheduler call: {_call_of(timer)}",
        )
    planned = (
        {str(path): text for path, text in _timers.units(timer).items()}
        if systemd
        else {"crontab": _timers.cron_line(timer) + "\n"}
    )
    if dry_run:
        _print_planned(planned)
        return
    there = (
        {str(path): text for path, text in _timers.installed_units(timer).items()}
        if systemd
        else {"crontab": f"{_timers.own_line(lines, timer) or ''}\n"}
    )
    if there == planned and (not systemd or _timers.is_active(f"{timer.name}.timer")):
        tell(f"ok  it is on already, {rhythm(timer.minutes)}")
        return
    tell(_listed(planned))
    if not confirmed("Write this?", "dw schedule on"):
        tell("Nothing was written.")
        return
    (timer.root / _timers.LOG).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if systemd:
        _timers.start_units(timer)
        if _timers.own_line(_timers.cron_lines_or_none(), timer):
            _timers.write_cron_line(timer, None)  # from when systemd could not be reached
    else:
        _timers.write_cron_line(timer, _timers.cron_line(timer))
    tell(f"ok  dw looks {rhythm(timer.minutes)} for what is due. Failures: {timer.root / _timers.LOG}")
    if systemd and not _timers.lingers():
        tell("!   while you are logged out it stops, unless you say once: loginctl enable-linger")
    tell_next("dw schedule show")


def _off(timer: Timer, dry_run: bool) -> None:
    files = sorted(_timers.installed_units(timer))
    line = _timers.own_line(_timers.cron_lines_or_none(), timer)
    found = {str(path): path.read_text("utf-8", "replace") for path in files}
    found |= {"crontab": line + "\n"} if line else {}
    if not found:
        tell("It is off: there is no timer of this project.")
        if dry_run:
            _print_planned({})
        return
    if dry_run:
        _print_planned(found)
        return
    tell("\n".join([*map(str, files), *([f"crontab: {line}"] if line else [])]))
    if not confirmed("Remove this?", "dw schedule off"):
        tell("Nothing was removed.")
        return
    if files:
        _timers.stop_units(timer)
    if line:
        _timers.write_cron_line(timer, None)
    tell("ok  the timer is removed; a run that is under way goes on")


def _print_planned(planned: Mapping[str, str]) -> None:
    from dwcli.render.console import print_json, write_text

    if settings().json:
        print_json({"files": planned})
    elif planned:
        write_text([_listed(planned) + "\n"])


def _listed(planned: Mapping[str, str]) -> str:
    return "\n\n".join(f"{place}:\n{text.rstrip()}" for place, text in planned.items())


def _call_of(timer: Timer) -> str:
    folder = command_line([str(timer.root)])
    return f"cd {folder} && {command_line(_timers.arguments(timer))}"


# -- show ----------------------------------------------------------------------------------------------


def _show(project: Project, timer: Timer) -> None:
    from dwcli.cli.status import look
    from dwcli.render.runs import SCHEDULE_COLUMNS, schedule_row

    now = datetime.now(UTC)
    found, standings = look(project, now)
    installed = _timers.installed(timer)
    timed = any(standing.every for standing in standings)
    _tell_installed(installed, timer, timed)
    if not found.up:
        tell(f"The warehouse is down{f' ({found.why})' if found.why else ''}: this is the local record.")
    records = {
        "installed": installed,
        "needed_minutes": timer.minutes if timed else None,
        "warehouse_up": found.up,
        "pipelines": [_record(standing, now) for standing in standings],
        "notify": list(project.config.notify.on) if project.config.notify else [],
    }
    show_rows(SCHEDULE_COLUMNS, (schedule_row(standing, now) for standing in standings), records)
    if timed and (installed is None or not installed["current"]):
        tell_next("dw schedule on")


def _tell_installed(installed: Mapping[str, Any] | None, timer: Timer, timed: bool) -> None:
    if installed is None:
        tell("No timer: pipelines run when you run them.")
        return
    place = Path(installed["files"][-1]) if installed["files"] else "crontab -l"
    how_often = rhythm(installed["minutes"]) if installed["minutes"] else "at times of your own"
    tell(f"{installed['by']} timer {installed['name']}, {how_often}: {place}")
    if not installed["active"]:
        tell("!   it is not active")
    elif timed and not installed["current"]:
        tell(f"!   it is not what these pipelines need now ({rhythm(timer.minutes)}, {timer.command[0]})")


def _record(standing: Standing, now: datetime) -> dict[str, Any]:
    return {
        "pipeline": standing.pipeline,
        "every": standing.every,
        "state": standing.state,
        "last_ok": standing.last_ok,
        "due": standing.due,
        "failures": standing.failures,
        "is_due": standing.due is not None and standing.due <= now,
    }

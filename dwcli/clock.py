"""When a pipeline runs: `every:` as a duration (`1h`) or as a cron expression (`0 6 * * 1-5`).

Everything here is asked of what the audit log says of the past and of now, so that `dw run --due`,
`dw status` and `dw schedule` cannot disagree. What fails is tried again with growing waits.
Cron times are the machine's own (TZ, else /etc/localtime), with daylight saving as Debian's cron has it: an
hour that is skipped runs after it, an hour that comes twice runs once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Any

from dwcli.errors import RunStopped

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

#: A timer comes a little earlier or later each time. A pipeline may begin this much too early, or an
#: hourly one would wait for the next call after the hour.
EARLY = timedelta(seconds=30)
#: A tenth of the time between two runs may pass before a run is called late, within these limits.
SLACK = (timedelta(minutes=2), timedelta(hours=1))
#: Minutes between two calls of `dw run --due`: what divides the hour evenly.
TICKS = (15, 12, 10, 6, 5, 4, 3, 2, 1)
#: What fails again and again is tried at least this often.
LONGEST_WAIT = timedelta(hours=1)


@dataclass(frozen=True)
class Past:
    """What decides when a pipeline runs next: when its last good run began, and what has failed since."""

    began: datetime | None = None
    failures: int = 0
    #: when the last of the failures ended
    failed_at: datetime | None = None


def past_of(runs: Iterable[Mapping[str, Any]]) -> Past:
    """The past of a pipeline from its last runs (newest first, the columns of the audit log).

    A run that a person or a shutdown stopped says nothing of the source, so it is no failure here.
    """
    failures, failed_at = 0, None
    for run in runs:
        if run["status"] == "success":
            return Past(run.get("started_at") or run["finished_at"], failures, failed_at)
        if run["status"] == "failure" and run.get("error_code") != RunStopped.code:
            failures += 1
            failed_at = failed_at or run.get("finished_at") or run.get("started_at")
    return Past(None, failures, failed_at)


def seconds(text: object) -> float:
    """The seconds in a duration such as `90s`, `15m`, `1h`, `30d`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", str(text))
    if not match:
        raise ValueError(f"not a duration: write it as 90s, 15m, 1h or 30d, not {str(text)[:20]!r}")
    return float(match[1]) * UNITS[match[2]]


def is_cron(every: str) -> bool:
    """Whether `every` is meant as a cron expression: it has several words, and is no `1 h`."""
    return len(every.split()) > 1 and not re.fullmatch(r"\s*[\d.]+\s+[a-z]\s*", every)


def checked_every(every: object) -> str:
    """A duration or a cron expression that comes to pass. Raises ValueError."""
    text = str(every).strip()
    if is_cron(text):
        next_due(text, datetime.now(UTC))
        return text
    try:
        length = seconds(text)
    except ValueError:
        raise ValueError(
            f"neither a duration (90s, 15m, 1h, 30d) nor a cron expression (0 6 * * 1-5): {text[:20]!r}"
        ) from None
    if not 1 <= length <= 3660 * 86400:
        raise ValueError(f"a duration from 1s to ten years, not {text[:20]!r}")
    return text


def next_due(every: str, after: datetime) -> datetime:
    """The first moment after `after`, when its last good run began, that a pipeline is to run.

    Raises ValueError for a wrong cron expression.
    """
    if not is_cron(every):
        return after + timedelta(seconds=seconds(every))
    from cronsim import CronSim, CronSimError

    if len(every.split()) != 5:
        raise ValueError(
            f"a cron expression has five fields: minute, hour, day, month, weekday; not {len(every.split())}"
        )
    zone = machine_zone()
    local = after.astimezone(zone) if zone else after.astimezone().replace(tzinfo=None)
    try:
        return next(CronSim(every, local)).astimezone(UTC)
    except CronSimError as error:
        raise ValueError(f"cron expression: {str(error)[:1].lower()}{str(error)[1:]}") from None
    except (StopIteration, OverflowError):
        raise ValueError("cron expression: there is no such day") from None


def next_run(every: str, past: Past) -> datetime | None:
    """From when on a pipeline is to run; None for at once, as it never has.

    After failures that is its time, or the end of the wait where that comes later. The wait ends in any
    case when a pipeline that had just been run would be due.
    """
    moments = [next_due(every, past.began)] if past.began else []
    if past.failed_at:
        wait = _wait(every, past.failures)
        moments.append(min(past.failed_at + wait, next_due(every, past.failed_at)))
    return max(moments, default=None)


def is_due(every: str, past: Past, now: datetime) -> bool:
    """Whether a pipeline is to run now: `next_run` has come, or nearly."""
    early = timedelta(0) if is_cron(every) else min(EARLY, timedelta(seconds=seconds(every) / 20))
    if past.began and next_due(every, past.began) > now + early:
        return False
    if past.failed_at is None:
        return True
    wait = _wait(every, past.failures)
    waited = past.failed_at + wait <= now + min(EARLY, wait / 20)
    return waited or next_due(every, past.failed_at) <= now + early


def _wait(every: str, failures: int) -> timedelta:
    """How long to leave a source alone: 1, 2, 4 … times as long as a timer for it alone would sleep."""
    ticks: int = 2 ** min(failures - 1, 6)
    return min(timedelta(minutes=tick_minutes([every])) * ticks, LONGEST_WAIT)


def late_from(every: str, last: datetime) -> datetime:
    """From when on a pipeline is late, if no good run begins before: the due time and some slack."""
    due = next_due(every, last)
    slack = (next_due(every, due) - due) / 10
    return due + max(SLACK[0], min(slack, SLACK[1]))


def tick_minutes(everies: list[str]) -> int:
    """How many minutes may lie between two calls of `dw run --due` for these pipelines."""
    return next((tick for tick in TICKS if all(_suits(every, tick) for every in everies)), 1)


def _suits(every: str, tick: int) -> bool:
    if not is_cron(every):
        return tick * 60 <= seconds(every) / 20
    from cronsim import CronSim

    return all(minute % tick == 0 for minute in CronSim(every, datetime.now(UTC)).minutes)


@cache
def machine_zone() -> tzinfo | None:
    """The zone of the machine's clock with its rules; None where it cannot be had (Windows)."""
    from zoneinfo import ZoneInfo

    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name and not name.startswith("/"):
            return ZoneInfo(name)
        with Path(name or "/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError, KeyError):  # KeyError: no zone of that name
        return None

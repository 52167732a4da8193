"""Telling people elsewhere how runs went: what is news, the words for it, and the sending (apprise).

Whether something was told before is read from the audit log: a failure is news when the run before it
was good or failed with another code, a good run when the one before it failed. Only that a pipeline is
late has no row there, so `etl_notice` notes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from dwcli.project import News
from dwcli.staging.audit import LOCK_KEY, run_before

#: The sending may take this long in all, whatever the other side does.
PATIENCE_SECONDS = 5.0
#: Failures that are no news: the pipeline's other run goes on, or a person stopped it.
NOT_TOLD = ("DW-LOCKED", "DW-STOPPED")


@dataclass(frozen=True)
class Item:
    """One piece of news about one pipeline; `text` is lines."""

    news: News
    pipeline: str
    text: str


def news_of(result: Mapping[str, Any], before: Mapping[str, Any] | None) -> Item | None:
    """What there is to tell of a run. before: `status` and `error_code` of the run before it."""
    failed_before = before is not None and before.get("status") == "failure"
    name = str(result["pipeline_name"])
    if result["status"] == "success":
        if not failed_before:
            return None
        loaded = result.get("rows_loaded")
        rows = "" if loaded is None else f": {loaded:,} row{'' if loaded == 1 else 's'} loaded"
        return Item("recovery", name, f"{name} works again{rows}")
    error = result.get("error") or {}
    code = str(error.get("code") or "")
    again = failed_before and before is not None and before.get("error_code") in (code, None)
    if result["status"] != "failure" or code in NOT_TOLD or again:
        return None
    lines = [f"{name} FAILED ({code})", str(error.get("message") or "")]
    lines += [str(error["why"])] if error.get("why") else []
    lines += [f"fix: {error['hint']}"] if error.get("hint") else []
    lines += [f"details: dw audit {str(result['run_id'])[:8]}"] if result.get("run_id") else []
    return Item("failure", name, "\n  ".join(line for line in lines if line))


def news_of_runs(connection: psycopg.Connection, results: Sequence[Mapping[str, Any]]) -> list[Item]:
    """What there is to tell of these runs, by what the audit log says of the runs before them."""
    found = [
        news_of(result, run_before(connection, str(result["pipeline_name"]), str(result["run_id"])))
        for result in results
        if result["status"] != "skipped"
    ]
    return [item for item in found if item is not None]


def late_news(pipeline: str, every: str, began: datetime) -> Item:
    """That no good run has begun in time. began: the last one that did."""
    when = f"{began.astimezone():%Y-%m-%d %H:%M}"
    text = f"{pipeline} is late: its last good run began {when}, it should run every {every}"
    if " " in every:
        text = f"{pipeline} is late: its last good run began {when}, its times are {every}"
    return Item("stale", pipeline, f"{text}\n  see: dw status")


def claim_late(connection: psycopg.Connection, pipeline: str, since: datetime) -> bool:
    """Note that this lateness is told. False when it was noted before, by anybody.

    since: from when on it is late, which tells one lateness from the next.
    """
    with connection.transaction():
        connection.execute(f"select pg_advisory_xact_lock({LOCK_KEY})")
        connection.execute(
            "create table if not exists etl_notice (pipeline_name text primary key,"
            " late_since timestamptz not null, told_at timestamptz not null default now())"
        )
        noted = connection.execute(
            "insert into etl_notice as known (pipeline_name, late_since) values (%s, %s)"
            " on conflict (pipeline_name) do update set late_since = excluded.late_since, told_at = now()"
            " where known.late_since <> excluded.late_since returning 1",
            (pipeline, since),
        ).fetchone()
    return noted is not None


def forget_late(connection: psycopg.Connection, pipelines: Sequence[str]) -> None:
    """Take the note back: nobody could be told."""
    connection.execute("delete from etl_notice where pipeline_name = any(%s)", (list(pipelines),))


def title_of(project: str, items: Sequence[Item]) -> str:
    """`shop: shop.orders failed`, or `shop: 2 failed, 1 late`."""
    if len(items) == 1:
        one = {"failure": "failed", "stale": "is late", "recovery": "works again"}[items[0].news]
        return f"{project}: {items[0].pipeline} {one}"
    words: dict[News, str] = {"failure": "failed", "stale": "late", "recovery": "working again"}
    counts = {word: sum(item.news == news for item in items) for news, word in words.items()}
    return f"{project}: " + ", ".join(f"{number} {word}" for word, number in counts.items() if number)


def mood_of(items: Sequence[Item]) -> str:
    """What apprise calls the type of a message; some services colour by it."""
    told = {item.news for item in items}
    return "failure" if "failure" in told else "warning" if "stale" in told else "success"


def send(
    urls: Sequence[str], title: str, body: str, mood: str = "info", patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Send to all at once. Returns for each URL what went wrong, "" where it was delivered.

    Never raises for what an endpoint does, never takes longer than `patience`, and leaves nothing
    behind that keeps the process: an endpoint that hangs is left hanging. Raises ImportError without
    apprise.
    """
    import apprise

    # its warnings may hold URLs, and they would be printed in the middle of ours
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    problems = ["no answer in time"] * len(urls)

    def deliver(place: int) -> None:
        try:
            one = apprise.Apprise(asset=apprise.AppriseAsset(app_id="dw", app_desc="dw", async_mode=False))
            if not one.add(urls[place]):
                problems[place] = "no URL that apprise knows"
            elif one.notify(body=body, title=title, notify_type=mood, body_format="text"):
                problems[place] = ""
            else:
                problems[place] = "not delivered"
        except Exception as error:  # of a plugin; its text may hold the URL
            problems[place] = f"not delivered ({type(error).__name__})"

    threads = [threading.Thread(target=deliver, args=(place,), daemon=True) for place in range(len(urls))]
    end = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(problems)

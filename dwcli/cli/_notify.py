"""`notify:` of dw.yaml: telling people elsewhere, after a run that is over and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from dwcli.errors import DwError
    from dwcli.pipeline.notify import Item
    from dwcli.project import Pipeline, Project
    from dwcli.warehouse import Check

#: How the warehouse is called in messages and in the local record; no pipeline has a blank in its name.
WAREHOUSE = "the warehouse"
INSTALL = "pip install 'dwcli[notify]'"


def tell_of_runs(
    project: Project,
    url: str,
    results: Sequence[Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    timed: Sequence[Pipeline] = (),
) -> None:
    """Tell of failures, recoveries and of what is late. What goes wrong is one line, never a failure.

    before: the local record before these runs, which decides where the warehouse cannot be asked.
    timed: pipelines to look for late ones among.
    """
    if project.config.notify is None:
        return
    _guarded(lambda: _tell(project, url, results, before, timed))


def tell_of_warehouse(
    project: Project, before: Mapping[str, Mapping[str, Any]], error: DwError | None
) -> None:
    """Tell once that the warehouse cannot be used, and once that it can again.

    Only the local record can say that this was told: where the rest is kept is what is missing.
    """
    failed_before = before.get(WAREHOUSE, {}).get("status") == "failure"
    if project.config.notify is None or failed_before == (error is not None):
        return
    _guarded(lambda: _tell_of_warehouse(project, error))


def _tell_of_warehouse(project: Project, error: DwError | None) -> str:
    from dwcli.cli._record import write_last
    from dwcli.pipeline.notify import news_of

    result: dict[str, Any] = {"pipeline_name": WAREHOUSE, "status": "failure" if error else "success"}
    if error is not None:
        told = {"code": error.code, "message": error.message, "why": error.why, "hint": error.hint}
        result["error"] = told
    item = news_of(result, {"status": "failure"} if error is None else None)
    reached, problem = _send(project, [item] if item else [])
    if reached or not problem:  # the next call tries again
        write_last(project, [result])
    return problem


def _guarded(work: Callable[[], str]) -> None:
    """Do something that returns a problem or "". A run that is over must not fail for it."""
    try:
        problem = work()
    except Exception as error:
        problem = str(error) if hasattr(error, "hint") else type(error).__name__
    if problem:
        from dwcli.render.console import say
        from dwcli.render.words import escape

        say(f"!  notification not sent: {escape(problem)}. Try: dw test-connection notify")


def _tell(
    project: Project,
    url: str,
    results: Sequence[Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    timed: Sequence[Pipeline],
) -> str:
    """Returns what went wrong, "" for nothing."""
    from dwcli.errors import DwError
    from dwcli.warehouse import connect

    try:
        connection = connect(url, autocommit=True, patience=2.0)
    except DwError:
        from dwcli.pipeline.notify import news_of

        found = [news_of(result, before.get(str(result["pipeline_name"]))) for result in results]
        return _send(project, [item for item in found if item is not None])[1]
    with closing(connection):
        late = _late(project, connection, timed)
        reached = False
        try:
            reached, problem = _send(project, [*_news(connection, results), *late])
        finally:
            if late and not reached:  # the next call tries again
                from dwcli.pipeline.notify import forget_late

                forget_late(connection, [item.pipeline for item in late])
        return problem


def _news(connection: psycopg.Connection, results: Sequence[Mapping[str, Any]]) -> list[Item]:
    if not results:
        return []
    from dwcli.pipeline.notify import news_of_runs

    return news_of_runs(connection, results)


def _late(project: Project, connection: psycopg.Connection, timed: Sequence[Pipeline]) -> list[Item]:
    """The pipelines that are late and were not told of."""
    from datetime import UTC, datetime

    from dwcli.cli._due import pasts_of
    from dwcli.clock import late_from

    if not timed or project.config.notify is None or "stale" not in project.config.notify.on:
        return []
    known = pasts_of(connection, [pipeline.full_name for pipeline in timed])
    found: list[Item] = []
    for pipeline in timed:
        past, every = known.get(pipeline.full_name), pipeline.config.every or ""
        began = past.began if past else None
        if began is None or late_from(every, began) >= datetime.now(UTC):
            continue
        from dwcli.pipeline.notify import claim_late, late_news

        if claim_late(connection, pipeline.full_name, late_from(every, began)):
            found.append(late_news(pipeline.full_name, every, began))
    return found


def _send(project: Project, items: Sequence[Item]) -> tuple[bool, str]:
    """Send what was asked for as one message. Returns whether it reached anybody, and what went wrong."""
    if project.config.notify is None:
        return False, ""
    items = [item for item in items if item.news in project.config.notify.on]
    if not items:
        return False, ""
    from dwcli.cli.app import known_secrets
    from dwcli.pipeline.notify import mood_of, send, title_of
    from dwcli.project import notify_urls
    from dwcli.references import redact
    from dwcli.render.words import escape_lines

    urls = notify_urls(project)
    hidden = [*known_secrets(), *(url for _, url in urls)]
    body = escape_lines(redact("\n\n".join(item.text for item in items), hidden))
    try:
        problems = send([url for _, url in urls], title_of(project.config.name, items), body, mood_of(items))
    except ImportError:
        return False, f"apprise is not installed: {INSTALL}"
    told = [f"{written}: {why}" for (written, _), why in zip(urls, problems, strict=True) if why]
    return len(told) < len(urls), "; ".join(told)


def test_message(project: Project) -> Iterator[Check]:
    """Send a test message to each URL, as checks of `dw test-connection`."""
    import time

    from dwcli.errors import DriverMissing, UsageError
    from dwcli.pipeline.notify import send
    from dwcli.project import notify_urls
    from dwcli.warehouse import Check

    if project.config.notify is None:
        raise UsageError(
            "dw.yaml has no 'notify', so nobody is told of anything",
            hint='add a line to dw.yaml: notify: {to: "${env:ALERT_URL}"}, and ALERT_URL=… to .env',
        )
    for written, url in notify_urls(project):
        begun = time.perf_counter()
        try:
            why = send([url], f"{project.config.name}: a test", "dw can reach you here.")[0]
        except ImportError:
            raise DriverMissing("apprise, which sends messages, is not installed", hint=INSTALL) from None
        took = (time.perf_counter() - begun) * 1000
        hint = f"check the value of {written}, and that it can be reached from here" if why else ""
        yield Check("send", not why, took, f"{written}: {why or 'delivered'}", hint)

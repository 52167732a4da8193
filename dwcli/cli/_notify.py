"""`notify:` of dw.yaml: telling people elsewhere, after a run that is over and reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from dwcli.pipeline.notify import Item
    from dwcli.project import Pipeline, Project
    from dwcli.warehouse import Check

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
    try:
        problem = _tell(project, url, results, before, timed)
    except Exception as error:  # a run that is over must not fail for this
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

    from dwcli.clock import late_from
    from dwcli.staging.audit import good_starts

    if not timed or project.config.notify is None or "stale" not in project.config.notify.on:
        return []
    starts = good_starts(connection)
    found: list[Item] = []
    for pipeline in timed:
        began, every = starts.get(pipeline.full_name), pipeline.config.every or ""
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
        raise UsageError("dw.yaml has no 'notify'", hint="docs/guides/schedule.md shows one")
    for written, url in notify_urls(project):
        begun = time.perf_counter()
        try:
            why = send([url], f"{project.config.name}: a test", "dw can reach you here.")[0]
        except ImportError:
            raise DriverMissing("apprise, which sends messages, is not installed", hint=INSTALL) from None
        took = (time.perf_counter() - begun) * 1000
        hint = f"check the value of {written}, and that it can be reached from here" if why else ""
        yield Check("send", not why, took, f"{written}: {why or 'delivered'}", hint)

"""Whether sources can be reached, all at once, none for longer than a few seconds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from dwcli.render.doctor import Finding
from dwcli.render.words import duration

if TYPE_CHECKING:
    from dwcli.connectors import Connector
    from dwcli.warehouse import Check

PATIENCE_SECONDS = 6.0
AT_ONCE = 16
#: The name of threads that may still wait for a server; those of `waited` have it too.
WAITING = "dw-waiting"


def reachable(connectors: Mapping[str, Connector]) -> Iterator[Finding]:
    """The connection test of each source, told in their order."""
    # Not a pool: Python would wait for its threads after Ctrl-C.
    turns = threading.BoundedSemaphore(AT_ONCE)
    answers: list[queue.SimpleQueue[Finding]] = []

    def test(name: str, connector: Connector, answer: queue.SimpleQueue[Finding]) -> None:
        with turns:
            answer.put(_try(name, connector))

    for name, connector in connectors.items():
        answers.append(queue.SimpleQueue())
        threading.Thread(target=test, args=(name, connector, answers[-1]), name=WAITING, daemon=True).start()
    for answer in answers:
        while True:
            try:
                # In short pieces: some drivers set a handler of SIGINT that does not end a longer wait.
                yield answer.get(timeout=0.2)
                break
            except queue.Empty:
                continue


def _try(name: str, connector: Connector) -> Finding:
    from dwcli.cli.test_connection import NOTHING_LISTED, checks
    from dwcli.connectors._waiting import waited

    found: list[Check] = []

    def test() -> None:
        for check in checks(connector, f"dw test-connection {name}"):
            found.append(check)

    try:
        waited(test, PATIENCE_SECONDS, ends=False)
    except TimeoutError:
        with suppress(Exception):  # whatever a driver says when it is cut off
            waited(connector.close, 1.0, ends=False)
        return _too_slow(name, found)
    except Exception as error:
        return Finding("sources", "fail", f"{name}: {type(error).__name__}", f"dw test-connection {name}")
    failed = next((check for check in found if not check.ok), None)
    if failed is not None:
        return Finding("sources", "fail", f"{name}: {failed.detail}", failed.hint)
    if found[-1].detail == NOTHING_LISTED:
        return Finding("sources", "ok", f"{name}: opens, and lists nothing (dw preview shows more)")
    seconds = sum(check.milliseconds for check in found) / 1000
    return Finding("sources", "ok", f"{name}: {found[-1].detail}   {duration(seconds)}")


def _too_slow(name: str, found: list[Check]) -> Finding:
    fix = f"dw test-connection {name}"
    if any(check.layer == "login" for check in found):
        return Finding(
            "sources", "ok", f"{name}: connects; listing takes longer than {PATIENCE_SECONDS:.0f} s"
        )
    return Finding("sources", "fail", f"{name}: no answer within {PATIENCE_SECONDS:.0f} s", fix)

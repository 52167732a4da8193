"""An event loop in a thread, for drivers that only speak asyncio, called from ordinary functions.

Whoever waits for an answer can be interrupted at any time (Ctrl-C in the main thread, `stop` from another
thread), even while the driver itself waits for a silent server.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dwcli.errors import ConnectionFailed

Answer = TypeVar("Answer")

_JOIN_SECONDS = 5.0


@dataclass
class Background:
    """The loop, its thread, and what is being waited for."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    thread: threading.Thread | None = None
    waiting: set[concurrent.futures.Future[Any]] = field(default_factory=set)
    ended: bool = False


def start() -> Background:
    """A running loop."""
    background = Background()
    background.thread = threading.Thread(target=background.loop.run_forever, daemon=True, name="dw-loop")
    background.thread.start()
    return background


def ask(
    background: Background, answer: Coroutine[Any, Any, Answer], seconds: float | None = None, what: str = ""
) -> Answer:
    """The answer of a coroutine. Raises ConnectionFailed after `seconds`, and when `stop` is called.

    what: how people call the server, for the error.
    """
    if background.ended:
        answer.close()
        raise ConnectionFailed(f"the connection to {what} is closed", layer="lost")
    future = asyncio.run_coroutine_threadsafe(answer, background.loop)
    background.waiting.add(future)
    try:
        return future.result(seconds)
    except concurrent.futures.CancelledError:
        raise ConnectionFailed(f"reading from {what} was stopped", layer="lost") from None
    except concurrent.futures.TimeoutError:
        if future.done():
            raise  # the driver's own
        raise ConnectionFailed(
            f"no answer from {what} within {seconds:g} s", layer="lost", hint="try again; dw run reads on"
        ) from None
    finally:
        future.cancel()
        background.waiting.discard(future)


def later(background: Background, work: Coroutine[Any, Any, Any]) -> None:
    """Have something done whose end nobody waits for, and whose failure nobody minds."""
    if background.ended:
        work.close()
    else:
        asyncio.run_coroutine_threadsafe(work, background.loop)


def stop(background: Background) -> None:
    """End all waiting, in whatever thread."""
    for future in list(background.waiting):
        future.cancel()


def end(background: Background) -> None:
    """End all waiting and the loop. May be called twice."""
    if background.ended:
        return
    background.ended = True
    stop(background)
    background.loop.call_soon_threadsafe(background.loop.stop)
    if background.thread is not None:
        background.thread.join(_JOIN_SECONDS)
    if not background.loop.is_running():
        background.loop.run_until_complete(_wind_up())
        background.loop.close()


async def _wind_up() -> None:
    """Let every task see its end, so that none is destroyed while it is pending."""
    await asyncio.sleep(0)  # what was asked for last has become a task then
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_JOIN_SECONDS / 2)
    await asyncio.get_running_loop().shutdown_asyncgens()

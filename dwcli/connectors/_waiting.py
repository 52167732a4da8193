"""Calls of a driver that neither end by themselves nor hear Ctrl-C, waited for from outside."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

Answer = TypeVar("Answer")

#: How often a waiting call looks whether Ctrl-C was pressed.
PATIENCE_SECONDS = 0.2


def waited(
    call: Callable[[], Answer],
    seconds: float | None = None,
    stop: Callable[[], Any] = lambda: None,
    undo: Callable[[Answer], Any] = lambda answer: None,
    ends: bool = True,
) -> Answer:
    """What `call` gives, or the exception that it raises. It runs in a thread of its own.

    seconds: how long it may take; TimeoutError after that. stop: makes a call that is no longer waited for
    end sooner, such as a driver's cancel. undo: what becomes of an answer that came too late. ends: whether
    the call ends by itself; Python then waits for it before it exits, since a driver in C does not survive
    an exit in the middle of a call.

    Ctrl-C ends the waiting at once; the thread is left to end by itself.
    """
    answers: queue.SimpleQueue[tuple[list[Answer], BaseException | None]] = queue.SimpleQueue()
    late = threading.Event()

    def work() -> None:
        try:
            answer = call()
        except BaseException as error:
            answers.put(([], error))
            return
        answers.put(([answer], None))
        if late.is_set():
            with contextlib.suppress(Exception):
                undo(answer)

    threading.Thread(target=work, daemon=not ends, name="dw-waiting").start()
    until = None if seconds is None else time.monotonic() + seconds
    try:
        # In short pieces: where a library has set its own handler of SIGINT (polars does), a lock that is
        # waited for is not left when the signal comes.
        while answers.empty() and (until is None or time.monotonic() < until):
            with contextlib.suppress(queue.Empty):
                answers.put(answers.get(timeout=PATIENCE_SECONDS))
        if answers.empty():
            raise TimeoutError
    except BaseException:
        late.set()
        with contextlib.suppress(Exception):
            stop()
        raise
    found, error = answers.get()
    if error is not None:
        raise error
    return found[0]


def heard(call: Callable[[], Answer], stop: Callable[[], Any]) -> Answer:
    """The call itself; in the main thread, where Ctrl-C arrives, one that Ctrl-C stops."""
    if threading.current_thread() is threading.main_thread():
        return waited(call, stop=stop)
    return call()

"""Work that runs ahead of whoever needs it, in a thread, by a bounded number of pieces."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Piece = TypeVar("Piece")

#: How often a blocked worker looks whether it is still wanted.
PATIENCE_SECONDS = 0.2
JOIN_SECONDS = 5.0


def ahead(
    pieces: Iterable[Piece],
    depth: int = 1,
    stop: Callable[[], None] | None = None,
    heed: Callable[[], None] | None = None,
) -> Generator[Piece, None, None]:
    """Yield the pieces in order while a thread makes the next ones, at most `depth` waiting.

    An exception from `pieces` is raised here, in its place. Closing this generator stops the thread
    and closes `pieces` in the thread that ran it.
    stop: ends what the thread may be waiting for; called when the pieces are left before their end.
    heed: called again and again while a piece is waited for; what it raises ends the waiting.
    """
    waiting: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    unwanted = threading.Event()
    work = contextvars.copy_context().run
    worker = threading.Thread(
        target=work, args=(_work, pieces, waiting, unwanted), daemon=True, name="dw-ahead"
    )
    worker.start()
    ended = False
    try:
        while True:
            kind, value = _get(waiting, heed)
            ended = kind != "piece"
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]  # what `_work` puts beside "piece" is a Piece
    finally:
        unwanted.set()
        if stop and not ended:
            stop()
        _drain(waiting)
        worker.join(JOIN_SECONDS)


def _work(
    pieces: Iterable[Piece], waiting: queue.Queue[tuple[str, object]], unwanted: threading.Event
) -> None:
    try:
        with contextlib.closing(_closable(pieces)) as running:
            for piece in running:
                if not _put(waiting, ("piece", piece), unwanted):
                    return
        _put(waiting, ("end", None), unwanted)
    except BaseException as error:
        _put(waiting, ("error", error), unwanted)


def _closable(pieces: Iterable[Piece]) -> Generator[Piece, None, None]:
    """`pieces` as a generator, which can be closed, and closes what is beneath it."""
    try:
        yield from pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _get(waiting: queue.Queue[tuple[str, object]], heed: Callable[[], None] | None) -> tuple[str, object]:
    """The next entry. It is waited for a little at a time: polars catches SIGINT in a way that leaves a lock
    without a timeout waiting, so that Ctrl-C would not be heard before the next piece is there."""
    while True:
        if heed is not None:
            heed()
        try:
            return waiting.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            continue


def _put(
    waiting: queue.Queue[tuple[str, object]], entry: tuple[str, object], unwanted: threading.Event
) -> bool:
    while not unwanted.is_set():
        try:
            waiting.put(entry, timeout=PATIENCE_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _drain(waiting: queue.Queue[tuple[str, object]]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()

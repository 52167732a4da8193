"""What goes on beside a run: threads that look or write until it is over, and web servers that answer it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg


@contextmanager
def threads(
    work: Callable[..., None], every: Iterable[tuple[Any, ...]], stop: threading.Event
) -> Iterator[None]:
    """Do work in a thread for each of these arguments, until what is within has ended and sets `stop`.

    Raises what the first that failed raised: one that died must not be taken for one that saw nothing.
    """
    failed: list[BaseException] = []

    def attempt(arguments: tuple[Any, ...]) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=attempt, args=(arguments,)) for arguments in every]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()
    if failed:
        raise failed[0]


@contextmanager
def looking(url: str, look: Callable[[psycopg.Connection], None], pause: float) -> Iterator[None]:
    """Look at the warehouse again and again, in a session of its own."""
    stop = threading.Event()

    def work() -> None:
        with psycopg.connect(url, autocommit=True) as session:
            while not stop.wait(pause):
                look(session)

    with threads(work, [()], stop):
        yield


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A web server that gives one JSON answer to everything: its address."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _begin(handler, len(body))
        handler.wfile.write(body)

    with _web_server(answer) as address:
        yield address


@contextmanager
def never_answering() -> Iterator[tuple[str, queue.Queue[str]]]:
    """A web server that begins to answer, and says no more: its address, and what it was asked."""
    asked: queue.Queue[str] = queue.Queue()
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _begin(handler, 1000)
        handler.wfile.write(b"[")
        asked.put(handler.path)
        over.wait()

    with _web_server(answer) as address:
        try:
            yield address, asked
        finally:
            over.set()


def _begin(handler: BaseHTTPRequestHandler, length: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


@contextmanager
def _web_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()

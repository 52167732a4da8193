"""Work that runs ahead in a thread: in order, bounded, and ended when nobody wants it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from dwcli.ahead import ahead

WAITING = """
import signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
import polars
polars.LazyFrame({"a": [1]}).collect()  # from here on polars looks for SIGINT as well
from dwcli.ahead import ahead

wanted = threading.Event()

def pieces():
    print("ready", flush=True)
    wanted.wait(60)
    yield 1

next(ahead(pieces(), stop=wanted.set))
"""


def test_an_error_is_raised_in_its_place():
    def pieces():
        yield 1
        raise ValueError("broken")

    found = ahead(pieces())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_what_the_thread_waits_for_is_interrupted_when_nobody_wants_it():
    begun, interrupted = threading.Event(), threading.Event()

    def pieces():
        yield 1
        begun.set()
        interrupted.wait(60)

    found = ahead(pieces(), stop=interrupted.set)
    next(found)
    assert begun.wait(10)
    started = time.monotonic()
    found.close()
    assert interrupted.is_set() and time.monotonic() - started < 4


def test_a_read_to_the_end_is_not_interrupted():
    interrupted = threading.Event()
    assert list(ahead(range(5), stop=interrupted.set)) == [0, 1, 2, 3, 4]
    assert not interrupted.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_is_heard_while_the_next_piece_is_waited_for():
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout.readline() == b"ready\n"
        started = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=50)
    assert b"KeyboardInterrupt" in said
    assert time.monotonic() - started < 10

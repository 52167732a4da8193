"""Fixtures that every room's tests share: a real warehouse, and a database of one's own in it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from dwcli.warehouse import connect, embedded

# Under nohup SIGHUP is ignored, and SIGINT in the background of a shell, and both stay so in every dw that a
# test starts: none of them would end by it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def project_folder() -> Iterator[Path]:
    """A folder that every account may enter; the servers in it and its files are gone afterwards.

    It is in memory where there is room: making a server writes 40 MB, and every commit waits for the disk.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 1024**3
    folder = Path(tempfile.mkdtemp(prefix="dw-test-", dir=memory if roomy else None))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for home in folder.rglob(".dw/postgres"):
            embedded.remove(home)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def warehouse_server() -> Iterator[str]:
    """URL of a PostgreSQL server for this test process: its own, or DW_TEST_WAREHOUSE_URL.

    Each worker of pytest-xdist has one: nothing to share, nothing to count. The user is a superuser.
    """
    given = os.environ.get("DW_TEST_WAREHOUSE_URL")
    if given:
        yield given
        return
    with project_folder() as project:
        yield embedded.url(embedded.start(project / ".dw" / "postgres"), database="postgres")


@pytest.fixture
def warehouse_url(warehouse_server: str) -> Iterator[str]:
    """URL of an empty database that this test has to itself; it is dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    with connect(warehouse_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(warehouse_server)._replace(path=f"/{name}"))
    finally:
        with connect(warehouse_server, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def warehouse(warehouse_url: str) -> Iterator[psycopg.Connection]:
    """A connection to this test's database. Autocommit, so that looking never holds a lock."""
    with connect(warehouse_url, autocommit=True) as connection:
        yield connection

"""A project folder, a real SQLite source, and the real `dw` as a process."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pexpect
import pytest

from dwcli.cli import settings as _settings
from tests.cli.loaded import make_project

ROOT = Path(__file__).parents[2]
DW = [sys.executable, "-m", "dwcli"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without the machine's own settings of dw, shell or colours."""
    theirs = ("NO_COLOR", "CI", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DW_") and k not in theirs}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {"PYTHONPATH": str(ROOT), "HOME": str(home), "TERM": "xterm", "PYTHONUTF8": "1"}


@pytest.fixture
def dw(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real `dw` without a terminal; its input is empty unless given."""

    def run(*words: str, cwd: Path = tmp_path, stdin: str = "", **more: str):
        return subprocess.run(
            [*DW, *words],
            cwd=cwd,
            env=environment | more,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=120,
        )

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder whose warehouse nobody has started."""
    root = tmp_path / "shop"
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text("name: shop\nwarehouse: embedded\n", "utf-8")
    return root


@pytest.fixture
def shop_db(project: Path) -> Path:
    """A SQLite file: orders (key, sure cursor), customers (key alone), log (neither)."""
    path = project / "shop.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(
            """
            CREATE TABLE customers (id INTEGER PRIMARY KEY NOT NULL, name TEXT NOT NULL);
            CREATE TABLE orders (id INTEGER PRIMARY KEY NOT NULL, total NUMERIC,
                                 created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL);
            CREATE INDEX orders_updated ON orders (updated_at);
            CREATE TABLE log (line TEXT);
            INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace');
            INSERT INTO orders VALUES (1, 1.5, '2026-01-01 10:00:00', '2026-01-02 10:00:00');
            """
        )
    return path


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """Settings that one test made are gone for the next."""
    before = _settings.settings()
    yield
    _settings.use(before)


@pytest.fixture
def shop(tmp_path: Path, warehouse_url: str) -> Path:
    """A project with sources, pipelines and an empty warehouse of this test's own."""
    return make_project(tmp_path / "loaded", warehouse_url)


@pytest.fixture
def terminal(environment: dict[str, str], shop: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """Run `dw` in the project `shop` in a real terminal of a given width."""
    started: list[pexpect.spawn] = []

    def start(*words: str, width: int = 80, shell: str = "") -> pexpect.spawn:
        command, arguments = (DW[0], [*DW[1:], *words]) if not shell else ("/bin/sh", ["-c", shell])
        child = pexpect.spawn(
            command,
            arguments,
            cwd=str(shop),
            env=environment,  # type: ignore[arg-type]
            dimensions=(40, width),
            encoding="utf-8",
            timeout=60,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)

"""dw init, up, down: a project whose warehouse works."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from dwcli.cli._warehouse import warehouse_url_for
from dwcli.project import load_project
from dwcli.warehouse import connect, embedded


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a project will be made; its server is gone after the test."""
    root = tmp_path / "new"
    yield root
    embedded.remove(root / ".dw" / "postgres")


def tables(url: str) -> set[str]:
    with connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


def test_a_new_project_ends_with_a_warehouse_that_was_written_to(dw, place):
    done = dw("init", "new", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert "wrote and read back a test row" in done.stderr
    assert "dw init new --keep 30d --yes" in done.stderr
    assert done.stderr.rstrip().endswith("Next: cd new && dw add-source")
    facts = json.loads(done.stdout)
    assert facts["ok"] and facts["created"] == ["dw.yaml", "sources/", ".gitignore"]
    assert {".dw/", ".env", "lake/"} <= set((place / ".gitignore").read_text().splitlines())
    assert (place / ".dw").stat().st_mode & 0o007 == 0
    project = load_project(place)
    assert (project.config.name, project.config.keep) == ("new", "30d")
    assert tables(warehouse_url_for(project)) == {"etl_audit_log"}

    assert dw("down", cwd=place).stderr == "ok  warehouse stopped\n"
    assert dw("down", cwd=place).stderr == "ok  warehouse was not running\n"
    started = dw("up", "--json", cwd=place)
    assert started.stderr.startswith("ok  warehouse started") and json.loads(started.stdout)["started"]
    assert dw("up", cwd=place).stderr.startswith("ok  warehouse is up")

    before = (place / "dw.yaml").read_text()
    dw("down", cwd=place)
    (place / ".gitignore").unlink()
    again = dw("init", "new")  # no --yes needed: nothing is asked
    assert again.returncode == 0 and "Already a dw project (0 sources)" in again.stderr
    assert "+ new/.gitignore" in again.stderr
    assert (place / "dw.yaml").read_text() == before
    assert embedded.running(place / ".dw" / "postgres") is not None


def test_without_a_terminal_and_answers_nothing_is_made(dw, place):
    done = dw("init", "new")
    assert done.returncode == 2 and "dw init new --yes" in done.stderr
    assert not place.exists()


def test_a_warehouse_that_is_there_keeps_its_password_out_of_dw_yaml(dw, place, warehouse_url):
    with connect(warehouse_url, autocommit=True) as admin:
        role = f"init_{os.getpid()}"
        admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'pa$$ w@rd'")
        try:
            server = admin.info
            where = f"?host={server.host}&port={server.port}" if server.host.startswith("/") else ""
            at = "" if where else f"{server.host}:{server.port}"
            url = f"postgresql://{role}:pa%24%24%20w%40rd@{at}/{server.dbname}{where}"
            done = dw("init", "new", "--warehouse", url, "--keep", "", "--schema", "mart")
            assert done.returncode == 0, done.stderr
            config = (place / "dw.yaml").read_text()
            assert "${env:WAREHOUSE_PASSWORD}" in config and "pa$$" not in config and "pa%24" not in config
            assert (place / ".env").stat().st_mode & 0o777 == 0o600
            assert "pa$$" not in done.stderr and "pa%24" not in done.stderr
            project = load_project(place)
            assert project.config.keep is None
            assert "etl_audit_log" in tables(warehouse_url_for(project))
            assert dw("up", cwd=place).returncode == 2
        finally:
            admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_warehouse_that_does_not_answer_leaves_nothing_behind(dw, place):
    done = dw("init", "new", "--warehouse", "postgresql://u@127.0.0.1:1/d", "--keep", "30d")
    assert done.returncode == 1 and "does not answer" in done.stderr
    assert not place.exists()


def test_a_taken_port_leaves_a_project_that_the_next_init_completes(dw, place):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = dw("init", "new", "--port", port, "--yes")
    assert done.returncode == 1 and "dw init new goes on from here" in done.stderr.replace("\n", " ")
    assert (place / "dw.yaml").exists()
    again = dw("init", "new")
    assert again.returncode == 0 and "audit table ready" in again.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--keep", "sometimes"], "--keep"),
        (["--name", "no spaces"], "--name"),
        (["--warehouse", "mysql://x"], "neither 'embedded' nor a PostgreSQL URL"),
        (["--warehouse", "postgresql://u@h/d", "--port", "5433"], "--port is for"),
    ],
)
def test_answers_that_cannot_be_are_refused_before_anything_is_made(dw, place, flags, told):
    done = dw("init", "new", *flags, "--yes")
    assert done.returncode == 2 and told in done.stderr
    assert not place.exists()


def test_the_wizard_asks_three_questions(environment, place, tmp_path):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "dwcli", "init", "new"],
        cwd=str(tmp_path),
        env=environment,
        encoding="utf-8",
        dimensions=(40, 100),
        timeout=60,
    )
    for question in ("Start Postgres here", "Port", "for ever"):
        child.expect_exact(question)
        child.send("\r")
    child.expect_exact("Next: cd new && dw add-source")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and (place / "dw.yaml").exists()


def test_ctrl_c_in_the_wizard_makes_nothing(environment, place, tmp_path):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "dwcli", "init", "new"],
        cwd=str(tmp_path),
        env=environment,
        encoding="utf-8",
        timeout=60,
    )
    child.expect_exact("Start Postgres here")
    child.send("\x03")
    child.expect_exact("Nothing was written")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130 and not place.exists()

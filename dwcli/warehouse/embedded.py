"""The warehouse's own PostgreSQL: made, started and healed by dw, shared by every dw command.

The server belongs to the project, not to the command that started it: it outlives the command, and the
next one finds it by reading its pid file. What stands where:

    <project>/.dw/postgres/     the home, 0700
      password                  of the database user dw, 0600
      port                      the TCP port the server was first given, and is given again
      place                     names the root, where that is not the home
      lock                      held by the command that starts, stops or removes
    root                        the home, or /var/lib/dwcli/<project>-<hash> (see `_place`)
      pgdata/                   the cluster, 0700
      run/                      its socket, 0700
      alive                     locked by every process of the server for as long as it lives
      server.log                what the server says before it writes pgdata/log/

**Two locks.** `lock` makes starting, stopping and removing one command's affair. `alive` is inherited by
the server's processes, so the kernel knows whether any of them lives, also in another container and also
after kill -9, when PostgreSQL's own pid file may name a zombie or a stranger.

**No replicas, so wal_level = minimal**: a COPY into a table made in the same transaction is not written
twice. Backups are pg_dump's; pg_basebackup and replication want `ALTER SYSTEM SET wal_level`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dwcli.errors import WarehouseError
from dwcli.references import redact, write_private
from dwcli.warehouse._binaries import Binaries, find_binaries, has_statistics
from dwcli.warehouse._place import (
    STATE,
    Cluster,
    account_for,
    give_to_owner,
    identity,
    make_folder,
    make_home,
    make_state_folder,
    maker,
    may,
    open_lock,
    place_of,
    root_of,
    settle,
    short_sockets,
    socket_folder,
    write_for,
)
from dwcli.warehouse._settings import as_conf, machine_memory, settings, shared_memory_folder

__all__ = ["Binaries", "Server", "find_binaries", "remove", "running", "start", "stop", "url"]

USER = "dw"
DATABASE = "warehouse"
FIRST_PORT = 5433
#: Recovery after a crash may have to replay gigabytes.
START_SECONDS = 600.0
#: How long the processes of a killed server may take to notice.
LINGER_SECONDS = 30.0
STOP_SECONDS = 120.0

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Server:
    """A running server. `bin` holds the psql and pg_dump that fit it."""

    home: Path
    data: Path
    bin: Path
    sockets: Path
    port: int
    pid: int
    #: major version, such as "18"
    version: str


# -- the five things one can do with it --------------------------------------------------------------


def running(home: Path) -> Server | None:
    """The project's server if it runs and accepts connections. Takes no lock and starts nothing."""
    home = home.absolute()
    with _explained(home):
        return _find_running(root_of(home), home)


def start(home: Path, port: int | None = None) -> Server:
    """Make sure that the project's server runs, and say where. Quick when it already does.

    The cluster is made if there is none, and recovers if its server was killed. Any number of commands
    may call this at once: one starts it, all get the same server.

    port: the TCP port on 127.0.0.1, or WarehouseError when something else listens there. None takes the
        one it had before, or the next free one from 5433 on. A server that runs keeps the port it has.

    Raises WarehouseError when PostgreSQL is not installed, has the wrong major version, cannot run as
    this account, has no disk space, or does not start; the end of the server's log is in it.
    """
    home = home.absolute()
    with _explained(home):
        server = _find_running(root_of(home), home)
        if server is not None:
            return server
        account = account_for(home)
        make_home(home, account)
        with _locked(home):
            cluster = settle(home, account)
            binaries = _usable(_binaries_for(cluster), cluster)
            if not (cluster.data / "PG_VERSION").exists():
                _initialise(cluster, binaries)
            return _find_running(cluster.root, home) or _launch(cluster, binaries, port)


def stop(home: Path) -> bool:
    """Stop the project's server, ending its sessions. False when it did not run."""
    home = home.absolute()
    with _explained(home):
        if not home.exists():
            return False
        with _locked(home):
            return _halt(home)


def remove(home: Path) -> None:
    """Stop the server and delete the cluster with all its data, and the home."""
    home = home.absolute()
    with _explained(home):
        if not home.exists():
            return
        with _locked(home):
            root = place_of(home)
            if root.exists() and maker(home, root) == home:  # else: this is a copy, or its files are gone
                _halt(home)
                for folder in {root, short_sockets(root)} - {home}:
                    shutil.rmtree(folder, ignore_errors=not folder.exists())
            shutil.rmtree(home)
            with suppress(OSError):  # not the last one
                STATE.rmdir()


def url(server: Server, socket: bool = True, database: str = DATABASE) -> str:
    """The server's URL, password included: over its Unix socket, or over TCP on 127.0.0.1."""
    with _explained(server.home):
        password = quote((server.home / "password").read_text("utf-8"), safe="")
    if socket:
        folder = quote(str(server.sockets), safe="")
        return f"postgresql://{USER}:{password}@/{database}?host={folder}&port={server.port}"
    return f"postgresql://{USER}:{password}@127.0.0.1:{server.port}/{database}"


# -- the programs ------------------------------------------------------------------------------------


def _binaries_for(cluster: Cluster) -> Binaries:
    """The binaries of the major version that made the cluster, or the first ones for a new cluster."""
    try:
        return find_binaries(int((cluster.data / "PG_VERSION").read_text("ascii")))
    except FileNotFoundError:
        return find_binaries()


def _usable(binaries: Binaries, cluster: Cluster) -> Binaries:
    """The binaries, or a copy of them where the account cannot enter the environment they stand in."""
    if may(cluster.account, "-x", binaries.path / "postgres"):
        return binaries
    if binaries.kind != "wheel":
        raise WarehouseError(
            f"{binaries.path / 'postgres'} cannot be run by the server's account",
            why="PostgreSQL does not run as root, and the account it runs as may not enter the folder",
            hint="install PostgreSQL where every account can run it, or run dw as an ordinary user",
        )
    package = binaries.path.parent.parent
    built = int((binaries.path / "postgres").stat().st_mtime)
    copy = STATE / f"postgresql-{binaries.version[0]}.{binaries.version[1]}-{built}"
    if not copy.exists():
        make_state_folder()
        temporary = Path(tempfile.mkdtemp(dir=STATE, prefix=".copy-"))
        # The programs find their libraries in the folder beside the package.
        for folder in (package / "pginstall", package.with_name(f"{package.name}.libs")):
            inside = temporary / folder.relative_to(package.parent)
            if folder.exists():
                shutil.copytree(folder, inside, symlinks=True)
        for folder in (temporary, temporary / package.name):
            folder.chmod(0o755)
        try:
            temporary.rename(copy)
        except OSError:  # another project's start was first
            shutil.rmtree(temporary)
    return Binaries(copy / package.name / "pginstall" / "bin", binaries.kind, binaries.version)


# -- locks and processes -----------------------------------------------------------------------------


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Wait for the home's lock and hold it."""
    while True:
        handle = open_lock(home / "lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _still_there(home / "lock", handle):  # else: removed by the one that held it before
                yield
                return
        finally:
            os.close(handle)
        make_home(home, account_for(home))


def _still_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _find_running(root: Path, home: Path) -> Server | None:
    data = root / "pgdata"
    try:
        lines = (data / "postmaster.pid").read_text("utf-8").splitlines()
        if len(lines) < 8 or lines[7].strip() != "ready" or not _is_server(int(lines[0]), data):
            return None
        program = shlex.split((data / "postmaster.opts").read_text("utf-8"))[0]
        version = (data / "PG_VERSION").read_text("ascii").strip()
    except FileNotFoundError:
        return None
    port, inside = int(lines[3]), root / "run"
    moved_along = (inside / f".s.PGSQL.{port}").exists()  # the pid file says where the socket was made
    sockets = inside if moved_along else Path(lines[4])
    return Server(home, data, Path(program).parent, sockets, port, int(lines[0]), version)


def _mark(data: Path) -> str:
    """What every process of this cluster's server has in its command line, wherever the folder moves."""
    found = data.stat()
    return f"dw-{found.st_dev:x}-{found.st_ino:x}"


def _command_line(pid: int) -> str:
    """The command line of a process, empty when there is none or it is a zombie."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    command = ["ps", "-p", str(pid), "-o", "command="]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _is_server(pid: int, data: Path) -> bool:
    return _mark(data) in _command_line(pid)


def _pid_in(path: Path) -> int | None:
    """The process that a PostgreSQL lock file names."""
    try:
        return abs(int(path.read_text("utf-8").split("\n")[0]))
    except (FileNotFoundError, ValueError):
        return None


def _await_nobody(cluster: Cluster) -> int | Server:
    """Hold `alive`: the handle, once no process of the server lives; or the server, once it is ready.

    A server that another command is starting is waited for, and so are the last processes of a server
    that was killed, which end by themselves.
    """
    handle = open_lock(cluster.root / "alive")
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            pass
        server = _find_running(cluster.root, cluster.home)
        if server is not None:
            os.close(handle)
            return server
        pid = _pid_in(cluster.data / "postmaster.pid")
        starting = pid is not None and _is_server(pid, cluster.data)
        if time.monotonic() - begun > (START_SECONDS if starting else LINGER_SECONDS):
            os.close(handle)
            raise _still_alive(cluster, pid, starting)
        time.sleep(0.05)


def _still_alive(cluster: Cluster, pid: int | None, starting: bool) -> WarehouseError:
    if starting:
        return WarehouseError(
            "the warehouse is still recovering",
            why=f"its server (process {pid}) has been at it for {START_SECONDS:.0f} s",
            hint=f"wait and try again; it writes what it does to {cluster.data / 'log'}",
        )
    return WarehouseError(
        "processes of the warehouse's server are still alive, but not the server itself",
        why="it was killed while a statement ran, or it runs in another container on the same folder",
        hint=f"find them with: fuser -v {cluster.root / 'alive'}; stop them, then try again",
    )


def _clear_false_locks(cluster: Cluster) -> None:
    """Remove lock files of a dead server that PostgreSQL would believe in. Call with `alive` held.

    PostgreSQL clears away files that name no process. One that names a zombie (a container whose first
    process never reaps) or a stranger that got the same number (after a restart of the container) makes
    it refuse for ever. No process of this server lives, that much `alive` proves; so the process that
    such a file names is another one.
    """
    files = [cluster.data / "postmaster.pid", *socket_folder(cluster.root).glob(".s.PGSQL.*.lock")]
    for file in files:
        pid = _pid_in(file)
        if pid is None or not _exists(pid):
            continue
        if f"--cluster_name={_mark(cluster.data)}" in _command_line(pid):  # a lock that is not inherited
            return
        made_in = Path(file.read_text("utf-8").split("\n")[1])
        if made_in != cluster.data and "--cluster_name=dw-" in _command_line(pid):
            raise WarehouseError(
                f"{cluster.home} is a copy of a warehouse that is running",
                why=f"it was copied from {made_in} while its server (process {pid}) ran: it is not whole",
                hint=f"give the copy a warehouse of its own: rm -r {cluster.home}",
            )
        file.unlink()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- making and starting -----------------------------------------------------------------------------


def _initialise(cluster: Cluster, binaries: Binaries) -> None:
    """Make a new cluster, whole or not at all."""
    if cluster.account is None:
        _check_passwd_entry()
    initdb, postgres = str(binaries.path / "initdb"), str(binaries.path / "postgres")
    password = _password(cluster)
    new = cluster.root / "pgdata.new"
    shutil.rmtree(new, ignore_errors=True)
    make_folder(cluster, new)
    file = cluster.root / "password.new"
    try:
        write_for(cluster, file, password)
        _make(cluster, [initdb, *_initdb_options(binaries.version[0]), "--pwfile", file, "-D", new])
    finally:
        file.unlink(missing_ok=True)
    with (new / "postgresql.conf").open("a") as conf:
        conf.write(
            "\n# Written by dw at every start; change settings with ALTER SYSTEM.\ninclude 'dw.conf'\n"
        )
    write_for(cluster, new / "dw.conf", "")
    single: Command = [postgres, "--single", "-F", "-c", "exit_on_error=on", "-D", new, "postgres"]
    _make(cluster, single, stdin=f"CREATE DATABASE {DATABASE}\n")
    _make(cluster, [initdb, "--sync-only", "-D", new])
    new.rename(cluster.data)
    handle = os.open(cluster.root, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _check_passwd_entry() -> None:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise WarehouseError(
            f"PostgreSQL cannot be set up by user {os.geteuid()}, which has no entry in /etc/passwd",
            why="initdb looks up the name of the account that it runs as",
            hint=f"add one: echo 'dw:x:{os.geteuid()}:{os.getegid()}::/tmp:/bin/sh' >> /etc/passwd, "
            "or run as root, or use a server elsewhere: dw init --warehouse postgresql://…",
        ) from None


def _password(cluster: Cluster) -> str:
    """The password of the user dw, made on first use."""
    path = cluster.home / "password"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
        give_to_owner(path, cluster)
    return path.read_text("utf-8")


def _initdb_options(major: int) -> list[str]:
    """Options for initdb: UTF-8 that sorts and folds the same on every machine, passwords, checksums."""
    # The builtin provider does not depend on the machine's C library, whose upgrades corrupt indexes.
    locale = "C.UTF-8" if sys.platform == "linux" else "C"
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    return ["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", f"--locale={locale}", *builtin,
            "--data-checksums", "--no-sync", "--no-instructions"]  # fmt: skip


def _launch(cluster: Cluster, binaries: Binaries, port: int | None) -> Server:
    """Start the server on `port`, or on the one it had before, or on the next that is free."""
    alive = _await_nobody(cluster)
    if isinstance(alive, Server):
        return alive
    try:
        _clear_false_locks(cluster)
        if port is not None and not _is_free(port):
            raise _port_taken(port)
        for _ in range(10):
            chosen = port or free_port(_remembered_port(cluster.home))
            if _try_start(cluster, binaries, chosen, alive):
                break
            another_was_first = os.strerror(errno.EADDRINUSE) in _log_tail(cluster)
            if port is not None or not another_was_first:
                raise _start_failed(cluster)
    finally:
        os.close(alive)
    server = _find_running(cluster.root, cluster.home)
    if server is None:
        raise _start_failed(cluster)
    if port is not None or not (cluster.home / "port").exists():
        write_private(cluster.home / "port", str(server.port))
        give_to_owner(cluster.home / "port", cluster)
    return server


def _try_start(cluster: Cluster, binaries: Binaries, port: int, alive: int) -> bool:
    sockets = socket_folder(cluster.root)
    make_folder(cluster, sockets)
    lz4 = _understands(cluster, binaries, "wal_compression=lz4")
    free_disk = shutil.disk_usage(cluster.data).free
    values = settings(machine_memory(), free_disk, shared_memory_folder()) | {
        "port": str(port),
        "unix_socket_directories": str(sockets),
        "wal_compression": "lz4" if lz4 else "pglz" if binaries.version[0] >= 15 else "on",
        "shared_preload_libraries": "pg_stat_statements" if has_statistics(binaries) else "",
    }
    write_for(cluster, cluster.data / "dw.conf", as_conf(values))
    write_for(cluster, cluster.root / "server.log", "")
    # pg_ctl hands its words to a shell: no path may be among them. Hence PGDATA and the working folder.
    code, _ = _run(
        cluster,
        [binaries.path / "pg_ctl", "-w", "-t", f"{START_SECONDS:.0f}", "-l", "server.log",
         "-o", f"--cluster_name={_mark(cluster.data)}", "start"],
        keep=alive,
    )  # fmt: skip
    return code == 0


def _understands(cluster: Cluster, binaries: Binaries, setting: str) -> bool:
    """Whether this build accepts a setting."""
    name = setting.split("=")[0]
    command: list[str | Path] = [binaries.path / "postgres", "-C", name, "-c", setting, "-D", cluster.data]
    write_for(cluster, cluster.data / "dw.conf", "")
    code, _ = _run(cluster, command)
    return code == 0


def _remembered_port(home: Path) -> int:
    try:
        return int((home / "port").read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return FIRST_PORT


def free_port(first: int) -> int:
    """The first port from `first` on that nothing listens on here. Raises WarehouseError."""
    for port in range(first, min(first + 200, 65536)):
        if _is_free(port):
            return port
    raise _port_taken(first)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _port_taken(port: int) -> WarehouseError:
    return WarehouseError(
        f"port {port} is in use on 127.0.0.1",
        why="another program listens there",
        hint=f"see which: ss -ltnp 'sport = :{port}'; or choose another port",
    )


# -- stopping ----------------------------------------------------------------------------------------


def _halt(home: Path) -> bool:
    """End the server's sessions, write a checkpoint, end the server: PostgreSQL's fast shutdown."""
    data = root_of(home) / "pgdata"
    pid = _pid_in(data / "postmaster.pid")
    if pid is None or not _is_server(pid, data):
        return False
    os.kill(pid, signal.SIGINT)
    begun = time.monotonic()
    while _is_server(pid, data):
        if time.monotonic() - begun > STOP_SECONDS:
            raise WarehouseError(
                "the warehouse does not stop",
                why=f"its server (process {pid}) has been at it for {STOP_SECONDS:.0f} s",
                hint=f"wait and try again; it writes what it does to {data / 'log'}",
            )
        time.sleep(0.02)
    return True


# -- running programs, and what to say when they fail ------------------------------------------------


def _run(cluster: Cluster, command: Command, stdin: str = "", keep: int | None = None) -> tuple[int, str]:
    """Run one of PostgreSQL's programs as the server's account: its exit code, and what it said.

    It gets a session of its own, so that Ctrl-C in the terminal does not reach the server, and an
    environment of its own, because ours holds secrets. keep: a file handle that it inherits.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    user, group, extra = identity(cluster.account)
    with tempfile.TemporaryFile() as output:  # the server inherits it: a pipe would never end
        done = subprocess.run(
            [str(word) for word in command],
            input=stdin.encode(),
            stdout=output,
            stderr=output,
            env=kept | {"LC_ALL": "C", "TZ": "UTC", "PGDATA": str(cluster.data)},
            cwd=cluster.root,
            user=user,
            group=group,
            extra_groups=extra,
            pass_fds=() if keep is None else (keep,),
            start_new_session=True,
            check=False,
        )
        output.seek(0)
        return done.returncode, output.read().decode(errors="replace")


def _make(cluster: Cluster, command: Command, stdin: str = "") -> None:
    """Run a program that makes a part of the cluster."""
    code, said = _run(cluster, command, stdin)
    if code != 0:
        raise _failure(cluster, "the warehouse cannot be made", said)


def _start_failed(cluster: Cluster) -> WarehouseError:
    return _failure(cluster, "the warehouse does not start", _log_tail(cluster))


def _failure(cluster: Cluster, message: str, said: str) -> WarehouseError:
    telling = [line for line in said.splitlines() if re.search(r"FATAL|PANIC|ERROR|HINT|error:|denied", line)]
    why = "\n".join((telling or said.splitlines())[-6:])
    if (cluster.home / "password").exists():
        why = redact(why, [(cluster.home / "password").read_text("utf-8")])
    hint = f"the whole log: {cluster.root / 'server.log'} and {cluster.data / 'log'}"
    if os.strerror(errno.ENOSPC) in said:
        hint = f"make room on the disk: df -h {cluster.root}"
    return WarehouseError(message, why=why, hint=hint)


def _log_tail(cluster: Cluster, size: int = 8192) -> str:
    """The end of what the server wrote since it was last started."""
    first = cluster.root / "server.log"
    logs = [first, *sorted((cluster.data / "log").glob("*.log"), key=lambda f: f.stat().st_mtime)[-1:]]
    fresh = [log for log in logs if log.exists() and log.stat().st_mtime >= first.stat().st_mtime - 1]
    return "\n".join(log.read_bytes()[-size:].decode(errors="replace") for log in reversed(fresh))


@contextmanager
def _explained(home: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a WarehouseError."""
    try:
        yield
    except PermissionError as error:
        raise WarehouseError(
            f"{error.filename or home}: not allowed for user {os.geteuid()}",
            why=error.strerror or str(error),
            hint=f"run dw as the owner of the project: ls -ld {home.parent.parent}",
        ) from None
    except OSError as error:
        hint = f"make room on the disk: df -h {home}" if error.errno == errno.ENOSPC else ""
        raise WarehouseError(
            f"{error.filename or home} cannot be used", why=error.strerror or str(error), hint=hint
        ) from None

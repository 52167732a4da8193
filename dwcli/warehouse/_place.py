"""Where the warehouse's own cluster stands, and whom its server runs as.

For an ordinary user both are simple: in the project, as that user. PostgreSQL refuses to run as root, so
for root the server runs as another account: the project's owner, or one without rights. That account must
be able to enter the cluster's folder. Only dw's own folders (`.dw` and the home) are opened, and only to
that account's group; where the project lies below a folder which the account cannot enter, such as /root,
the cluster stands in /var/lib/dwcli, and `place` in the home says so.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dwcli.errors import WarehouseError
from dwcli.references import write_private

#: Where clusters of root's projects stand that lie below a folder no other account can enter.
STATE = Path("/var/lib/dwcli")
#: The longest path of a Unix socket is 107 bytes, on macOS 103; "/.s.PGSQL.65535" takes 15 of them.
LONGEST_SOCKET_FOLDER = 88


@dataclass(frozen=True)
class Account:
    """Whom the server runs as when dw runs as root. `personal`: the project is this account's own."""

    uid: int
    gid: int
    name: str
    personal: bool


@dataclass(frozen=True)
class Cluster:
    """Where a cluster stands and whom it runs as (None: as whoever runs dw)."""

    home: Path
    root: Path
    account: Account | None

    @property
    def data(self) -> Path:
        return self.root / "pgdata"


def account_for(home: Path) -> Account | None:
    """Whom the server runs as: for root the project's owner, or an account without rights."""
    if os.geteuid() != 0:
        return None
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    owner = nearest.stat().st_uid
    if owner != 0:
        try:
            entry = pwd.getpwuid(owner)
            return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, personal=True)
        except KeyError:
            pass
    for name in ("dwcli", "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name, personal=False)
    raise WarehouseError(
        "there is no account that PostgreSQL could run as",
        why="it refuses to run as root",
        hint="useradd --system --no-create-home dwcli",
    )


def identity(account: Account | None) -> tuple[int | None, int | None, list[int] | None]:
    """user, group and extra_groups for subprocess.run."""
    return (account.uid, account.gid, []) if account else (None, None, None)


def may(account: Account | None, test: str, path: Path) -> bool:
    """Whether the account may read (-r), write (-w) or enter and run (-x) a path."""
    user, group, extra = identity(account)
    command = ["/usr/bin/env", "test", test, str(path)]
    done = subprocess.run(command, user=user, group=group, extra_groups=extra, cwd="/", check=False)
    return done.returncode == 0


def make_home(home: Path, account: Account | None) -> None:
    missing = [folder for folder in (home, home.parent) if not folder.exists()]
    home.parent.parent.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        if account and account.personal:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def settle(home: Path, account: Account | None) -> Cluster:
    """Decide, once per project, where the cluster stands; make its folder, and let the account in."""
    root = root_of(home)
    account = owner_of(root / "pgdata") or account
    if root == home and not _open_home(home, account) and not (home / "pgdata").exists():
        root = STATE / f"{_label(home)}-{_digest(home)}"
        make_state_folder()
        root.mkdir(mode=0o700, exist_ok=True)
        write_private(home / "place", str(root))
    if root != home:
        write_private(root / "home", str(home))
        if account:
            _let_in(root, account)
    if not may(account, "-x", root):
        raise WarehouseError(
            f"the account '{account.name if account else os.geteuid()}' cannot enter {root}",
            why="the warehouse's server runs as that account, and a folder above is closed to it",
            hint="move the project back to where it was made, or open the folders above to that account",
        )
    return Cluster(home, root, account)


def root_of(home: Path) -> Path:
    """Where the cluster stands: the home, or what its `place` names, if that is this project's."""
    root = place_of(home)
    if root != home:
        _check_place(home, root)
    return root


def place_of(home: Path) -> Path:
    try:
        return Path((home / "place").read_text("utf-8"))
    except FileNotFoundError:
        return home


def maker(home: Path, root: Path) -> Path:
    """The home that the cluster in `root` belongs to: the one it was made for, unless that was moved."""
    try:
        first = Path((root / "home").read_text("utf-8"))
    except FileNotFoundError:
        return home
    return first if place_of(first) == root else home


def _check_place(home: Path, root: Path) -> None:
    """The cluster elsewhere must be there, and be this project's and no other's."""
    if not root.exists():
        raise WarehouseError(
            f"the warehouse's files are gone: {root} does not exist",
            why=f"{home / 'place'} says that they stood there; a new container or machine does not have them",
            hint=f"restore {root} from a backup, or begin with an empty warehouse: "
            f"rm {home / 'place'} && dw up && dw run --all",
        )
    first = maker(home, root)
    if first != home:
        raise WarehouseError(
            f"this project is a copy of {first.parent.parent}, and that one has the warehouse",
            why=f"{home / 'place'} and {first / 'place'} name the same files",
            hint=f"give the copy a warehouse of its own: rm -r {home}",
        )


def _open_home(home: Path, account: Account | None) -> bool:
    """Let the server's account into dw's own folders, if it gets that far. False if it does not."""
    if account is None or home.stat().st_uid == account.uid:
        return True
    own = [home.parent, home] if home.parent.name == ".dw" else [home]
    if not may(account, "-x", own[0].parent) or any(folder.stat().st_uid != 0 for folder in own):
        return False
    for folder in own:
        _let_in(folder, account)
    return True


def _let_in(folder: Path, account: Account) -> None:
    """Let the account pass through a folder of dw's, without seeing what is in it."""
    os.chown(folder, -1, account.gid, follow_symlinks=False)
    folder.chmod(0o710)


def make_state_folder() -> None:
    STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
    STATE.chmod(0o711)


def owner_of(data: Path) -> Account | None:
    """The account that an existing cluster belongs to, for root."""
    if os.geteuid() != 0 or not data.exists():
        return None
    found = data.stat()
    return Account(found.st_uid, found.st_gid, f"uid {found.st_uid}", personal=False)


def _label(home: Path) -> str:
    project = home.parent.parent if home.parent.name == ".dw" else home
    return re.sub(r"[^A-Za-z0-9_.-]", "_", project.name)[:40] or "root"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def make_folder(cluster: Cluster, path: Path) -> None:
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


def socket_folder(root: Path) -> Path:
    """root/run, or a short name in the temporary folder where that is too long for a socket."""
    folder = root / "run"
    return folder if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER else short_sockets(root)


def short_sockets(root: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"dw-{_digest(root)}"


def open_lock(path: Path) -> int:
    """A handle on a lock file, which belongs to whom its folder belongs to, also when root makes it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        os.chown(handle, path.parent.stat().st_uid, -1)
    return handle


def write_for(cluster: Cluster, path: Path, text: str) -> None:
    """Write a 0600 file that the server's account can read."""
    write_private(path, text)
    if cluster.account:
        os.chown(path, cluster.account.uid, cluster.account.gid, follow_symlinks=False)


def give_to_owner(path: Path, cluster: Cluster) -> None:
    """A file in the home belongs to whom the home belongs to, also when root made it."""
    if os.geteuid() == 0:
        home = cluster.home.stat()
        os.chown(path, home.st_uid, -1, follow_symlinks=False)

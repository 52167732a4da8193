"""Disks that are small and full: a tmpfs of a few megabytes, and a file that takes what is free on it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

BALLAST = "ballast"


@cache
def why_not() -> str:
    """Why no disk can be mounted here; empty where one can.

    Only a missing privilege counts: where the machine could and `mount` fails, the tests are to fail.
    """
    if sys.platform != "linux":
        return "a tmpfs is Linux's"
    with tempfile.TemporaryDirectory(prefix="dw-faults-") as folder:
        done = _mount(Path(folder), "size=1m")
        if done.returncode == 0:
            _unmount(Path(folder))
            return ""
    denied = ("must be superuser", "permission denied", "only root", "operation not permitted")
    if os.geteuid() == 0 and not any(words in done.stderr.lower() for words in denied):
        return ""
    return f"mount is refused here: {done.stderr.strip()}"


@contextlib.contextmanager
def small_disk(folder: Path, options: str, like: Path | None = None) -> Iterator[None]:
    """Mount a tmpfs over a folder, such as `size=4m`; it belongs to whoever has `like`."""
    folder.mkdir(exist_ok=True)
    owner = (like or folder).stat()
    done = _mount(folder, f"{options},mode=0700,uid={owner.st_uid},gid={owner.st_gid}")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        _unmount(folder)


def _mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "dw-faults", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy: a server may still be ending


def fill(disk: Path, leave: int = 0) -> None:
    """Take all room but so many bytes."""
    room = os.statvfs(disk)
    with (disk / BALLAST).open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - leave))


def fill_names(disk: Path, leave: int = 0) -> None:
    """Take all names (inodes) but so many."""
    (disk / BALLAST).mkdir()
    for number in range(os.statvfs(disk).f_favail - leave):
        (disk / BALLAST / str(number)).touch()


def make_room(disk: Path) -> None:
    """Give back what was taken."""
    ballast = disk / BALLAST
    if ballast.is_dir():
        for path in ballast.iterdir():
            path.unlink()
        ballast.rmdir()
    else:
        ballast.unlink()

"""The folder for temporary files, when it is full."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dwcli.errors import NO_ROOM, DwError


@contextmanager
def room_for(name: str) -> Iterator[None]:
    """Around what writes temporary files: tells a disk that takes no more as that."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(name, error.strerror or str(error)) from None


def no_room(name: str, why: str) -> DwError:
    """The error for it. name: what the room was needed for."""
    return DwError(
        f"there is no room for {name} in {tempfile.gettempdir()}",
        why=why,
        hint="choose another folder for temporary files: TMPDIR=/var/tmp dw run …",
    )

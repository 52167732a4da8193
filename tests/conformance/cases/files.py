"""Files on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.case import Case, Place
from tests.conformance.cases._files import TYPES, writer

NO_SERVER = "a file on this machine has no server"


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    def write(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    yield Place({"path": str(folder)}, writer(write))


CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    missing="no_such_thing.csv",
    absent={
        "resume_after_a_cut_connection": NO_SERVER,
        "wrong_password": NO_SERVER,
        "unreachable_host": NO_SERVER,
    },
)

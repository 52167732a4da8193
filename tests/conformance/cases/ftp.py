"""FTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.case import Case, Place
from tests.conformance.cases._files import TYPES, writer
from tests.connectors.places import ftp_place


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with ftp_place(folder, auth_failed_timeout=0) as made:
        config = {name: value for name, value in made.config.items() if name != "protocol"}
        yield Place(config, writer(made.write))


OWN_CONNECTION = (
    "each file comes over a connection to a port of its own; tests/connectors/test_ftp.py cuts those"
)

CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    wrong_password={"password": "secret-word"},
    missing="no_such_thing.csv",
    absent={"resume_after_a_cut_connection": OWN_CONNECTION},
)

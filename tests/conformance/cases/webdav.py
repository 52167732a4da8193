"""WebDAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.conformance.case import Case, Place
from tests.conformance.cases._files import TYPES, writer
from tests.connectors.places import webdav_place


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with webdav_place(folder) as made:
        config = {name: value for name, value in made.config.items() if name != "protocol"}
        yield Place(config, writer(made.write))


CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    address=lambda config: ("127.0.0.1", urlsplit(config["base_url"]).port or 80),
    through=lambda config, port: {**config, "base_url": f"http://127.0.0.1:{port}/dav"},
    wrong_password={"password": "secret-word"},
    missing="no_such_thing.csv",
)

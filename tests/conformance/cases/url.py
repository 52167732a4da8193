"""Files on a web server. It has no folders to list, so a resource is one file that grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._files import TYPES, csv_text
from tests.connectors.places import webdav_place


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    held: dict[str, list[Row]] = {}
    with webdav_place(folder) as made:

        def put(name: str, rows: Sequence[Row]) -> str:
            held.setdefault(name, []).extend(rows)
            made.write(f"{name}.csv", csv_text(held[name]).encode())
            return f"{name}.csv"

        config = {"url": f"{made.config['base_url']}/", "username": "reader", "password": "s3cret"}
        yield Place(config, put)


CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    address=lambda config: ("127.0.0.1", urlsplit(config["url"]).port or 80),
    through=lambda config, port: {**config, "url": f"http://127.0.0.1:{port}/dav/"},
    wrong_password={"password": "secret-word"},
    missing="no_such_thing.csv",
)

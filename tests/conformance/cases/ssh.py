"""SFTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.case import Case, Place
from tests.conformance.cases._files import TYPES, writer
from tests.connectors.places import ssh_place


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with ssh_place(folder) as made:
        config = {name: value for name, value in made.config.items() if name != "protocol"}
        yield Place(config, writer(made.write))


def through(config, port):
    """The same host key at the proxy's port."""
    known = Path(config["known_hosts"])
    proxied = known.with_name("known_through")
    proxied.write_text(known.read_text("utf-8").replace(f":{config['port']} ", f":{port} "), "utf-8")
    return {**config, "port": port, "known_hosts": str(proxied)}


CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    through=through,
    wrong_password={"password": "secret-word"},
    missing="no_such_thing.csv",
)

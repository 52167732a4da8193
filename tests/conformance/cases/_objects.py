"""A case of files in an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conformance.case import Case, Place
from tests.conformance.cases._files import TYPES, writer


def objects_case(
    start: Callable[[Path], AbstractContextManager[Any]],
    wrong_password: Mapping[str, Any],
    absent: Mapping[str, str],
) -> Case:
    """start: makes a place of `tests.connectors.places`."""

    @contextmanager
    def place(folder: Path) -> Iterator[Place]:
        with start(folder) as made:
            config = {name: value for name, value in made.config.items() if name != "protocol"}
            yield Place(config, writer(made.write))

    def through(config: Mapping[str, Any], port: int) -> Mapping[str, Any]:
        address = urlsplit(config["endpoint"])
        return {**config, "endpoint": address._replace(netloc=f"127.0.0.1:{port}").geturl()}

    return Case(
        place,
        types=TYPES,
        cursor=None,
        address=lambda config: ("127.0.0.1", urlsplit(config["endpoint"]).port or 80),
        through=through,
        wrong_password=wrong_password,
        missing="no_such_thing.csv",
        absent=absent,
    )

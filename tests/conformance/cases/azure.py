"""Azure blobs, on Azurite."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.conformance.case import SERVERS
from tests.conformance.cases._objects import objects_case
from tests.connectors.places import azure_place, azurite, program


@cache
def endpoint() -> str:
    SERVERS.callback(endpoint.cache_clear)
    found = SERVERS.enter_context(program(azurite(), r"listens on (http://\S+)"))
    return f"{found[1]}/devstoreaccount1"


@contextmanager
def place(folder: Path) -> Iterator[Any]:
    with azure_place(endpoint()) as made:
        yield made


CASE = objects_case(place, {"account_key": base64.b64encode(b"secret-word" * 6).decode()}, {})

"""MongoDB, on a server that speaks its protocol."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pymongo
from bson import Decimal128

from tests.conformance.case import SERVERS, Case, Place, Row
from tests.conformance.cases._json import TYPES
from tests.connectors.servers_documents import MONGO_ROOT, free_port, mongo_command, running


@cache
def server() -> int:
    """The port of a server that asks for a user."""
    SERVERS.callback(server.cache_clear)
    folder, port = Path(SERVERS.enter_context(TemporaryDirectory())), free_port()
    with (
        running(mongo_command(port, folder / "data"), port, folder / "log", cwd=folder),
        pymongo.MongoClient("127.0.0.1", port) as client,
    ):
        client.admin.command("createUser", "root", pwd=MONGO_ROOT["password"], roles=["root"])
    command = mongo_command(port, folder / "data", "--auth")
    SERVERS.enter_context(running(command, port, folder / "log", cwd=folder))
    return port


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    port, name = server(), f"dw_case_{secrets.token_hex(4)}"
    with pymongo.MongoClient("127.0.0.1", port, **MONGO_ROOT) as client:

        def put(collection: str, rows: Sequence[Row]) -> str:
            if rows:
                client[name][collection].insert_many([{k: stored(v) for k, v in row.items()} for row in rows])
            else:
                client[name].create_collection(collection)
            return collection

        try:
            yield Place({"host": "127.0.0.1", "port": port, "database": name, **MONGO_ROOT}, put)
        finally:
            client.drop_database(name)


def stored(value: Any) -> Any:
    return Decimal128(value) if isinstance(value, Decimal) else value


CASE = Case(
    place,
    types={**TYPES, "_id": "text"},
    strange_name="größe 日本",
    wrong_password={"password": "secret-word"},
    # a replica set tells its own addresses, which a client would follow past the proxy
    through=lambda config, port: {
        "database": config["database"],
        "uri": f"mongodb://root:{config['password']}@127.0.0.1:{port}/?directConnection=true",
    },
)

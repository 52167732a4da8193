"""Google Sheets, on a server that answers as its API does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._files import HEADER
from tests.connectors.test_gsheets import Handler, Stand

#: Day 0 of a spreadsheet.
EPOCH = datetime(1899, 12, 30, tzinfo=UTC)


@cache
def private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    stand = Stand(timezone="UTC")
    with Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"stand": stand})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        stand.url = f"http://127.0.0.1:{server.server_port}"

        def put(name: str, rows: Sequence[Row]) -> str:
            sheet = stand.sheets.setdefault(name, [list(rows[0] if rows else HEADER)])
            sheet.extend([shown(row[column]) for column in sheet[0]] for row in rows)
            return name

        account = {
            "type": "service_account",
            "client_email": "reader@shop.example",
            "private_key_id": "1",
            "private_key": private_key(),
            "token_uri": f"{stand.url}/token",
        }
        config = {
            "spreadsheet_id": "book-1",
            "api_url": stand.url,
            "service_account_info": json.dumps(account),
        }
        try:
            yield Place(config, put)
        finally:
            server.shutdown()


def shown(value: Any) -> Any:
    """A value as the server wants it: a sheet has floats, and days since 1899."""
    if isinstance(value, datetime):
        return "DATE_TIME", (value - EPOCH).total_seconds() / 86400
    return float(value) if isinstance(value, Decimal) else value


CASE = Case(
    place,
    types={
        "id": "bigint",
        "name": "text",
        "amount": "numeric",
        "at": "timestamp with time zone",
        "flag": "boolean",
    },
    cursor=None,
    through=lambda config, port: {**config, "api_url": f"http://127.0.0.1:{port}"},
    address=lambda config: ("127.0.0.1", int(config["api_url"].rpartition(":")[2])),
    absent={
        "incremental_with_ties": "a sheet is read whole every time, so it is loaded with write: replace",
        "wrong_password": "a service account has a key; tests/connectors/test_gsheets.py refuses one",
    },
)

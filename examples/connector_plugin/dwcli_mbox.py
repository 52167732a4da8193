"""Mailboxes (mbox files) as a source of dw: one message is one row."""

from __future__ import annotations

import mailbox
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from dwcli.contract import (
    LOCAL_PATH,
    Column,
    ConnectorConfig,
    Cursor,
    CursorCandidate,
    IngestedItem,
    Resource,
)
from dwcli.errors import ConnectionFailed, ResourceMissing

# What `dw sources --protocols` says; plain literals, read without importing this module.
TITLE = "Mailbox (mbox)"
ALIASES = ("mail",)
TRIED = "mailboxes of Python's own mailbox module"
INCREMENTAL = "a cursor column"
TYPING = "declared"
STREAMING = True

RESOURCE = "messages"
#: Column → type in PostgreSQL.
TYPES = {
    "message_id": "text",
    "sent_at": "timestamptz",
    "sender": "text",
    "recipients": "text",
    "subject": "text",
    "bytes": "bigint",
}
SCHEMA = {
    "message_id": pl.String,
    "sent_at": pl.Datetime("us", "UTC"),
    "sender": pl.String,
    "recipients": pl.String,
    "subject": pl.String,
    "bytes": pl.Int64,
}
#: What a row takes in memory, more or less: the texts of its headers.
ROW_BYTES = 512


class Config(ConnectorConfig):
    """A mailbox on this machine."""

    path: Path = Field(description="path of the mbox file", json_schema_extra=LOCAL_PATH)


@dataclass
class Client:
    """An open mailbox."""

    config: Config
    box: mailbox.mbox
    closed: bool = False


def connect(config: Config) -> Client:
    """Open the mailbox. Raises ConnectionFailed where there is none."""
    try:
        return Client(config, mailbox.mbox(config.path, create=False))
    except (OSError, mailbox.Error) as error:
        raise ConnectionFailed(
            f"{config.path} cannot be opened",
            "name",
            why=str(error),
            hint=f"look for it: ls -l {config.path}",
        ) from None


def discover(client: Client) -> Iterator[Resource]:
    """The one resource that a mailbox has."""
    yield describe(client, RESOURCE)


def describe(client: Client, query: str) -> Resource:
    """The columns of the messages."""
    if query != RESOURCE:
        raise ResourceMissing(f"a mailbox has no '{query}'", hint=f"query: {RESOURCE}")
    columns = tuple(Column(name, kind) for name, kind in TYPES.items())
    newest = CursorCandidate("sent_at", "when it was sent", append_only=True)
    return Resource(RESOURCE, columns, primary_key=("message_id",), cursors=(newest,), kind="mailbox")


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Messages from the cursor on, in batches of at most `batch_bytes`."""
    describe(client, query)
    start = datetime.fromisoformat(cursor.start) if cursor.start else None
    end = datetime.fromisoformat(cursor.end) if cursor.end else None
    most = max(1, client.config.batch_bytes // ROW_BYTES)
    rows: list[dict[str, Any]] = []
    for key in client.box.iterkeys():
        if client.closed:
            raise ConnectionFailed("the mailbox was closed while it was read", "lost", hint="run it again")
        row = _row(client.box, key)
        sent = row["sent_at"]
        # rows without a cursor value are read too: the pipeline says what becomes of them
        if sent is None or ((start is None or sent >= start) and (end is None or sent < end)):
            rows.append(row)
        if len(rows) >= most:
            yield _item(rows)
            rows = []
    yield _item(rows)


def close(client: Client) -> None:
    """Close the mailbox; a read under way ends with an error."""
    client.closed = True
    client.box.close()


def _item(rows: list[dict[str, Any]]) -> IngestedItem:
    return IngestedItem(payload=pl.DataFrame(rows, schema=SCHEMA), types=TYPES)


def _row(box: mailbox.mbox, key: str) -> dict[str, Any]:
    data = box.get_bytes(key)
    message = box.get_message(key)

    def text(name: str) -> str | None:
        value = message.get(name)
        return None if value is None else str(make_header(decode_header(str(value))))

    return {
        "message_id": text("Message-ID"),
        "sent_at": _moment(message.get("Date")),
        "sender": text("From"),
        "recipients": text("To"),
        "subject": text("Subject"),
        "bytes": len(data),
    }


def _moment(value: Any) -> datetime | None:
    try:
        moment = parsedate_to_datetime(str(value))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

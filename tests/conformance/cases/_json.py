"""Rows as JSON, for the cases of sources that speak it: numbers with every digit, times as ISO 8601."""

from __future__ import annotations

import msgspec

from tests.conformance.case import Row

_ENCODER = msgspec.json.Encoder(decimal_format="number")
TYPES = {
    "id": "bigint",
    "name": "text",
    "amount": "numeric",
    "at": "timestamp with time zone",
    "flag": "boolean",
}


def json_text(row: Row) -> bytes:
    """One row as one JSON object."""
    return _ENCODER.encode(dict(row))

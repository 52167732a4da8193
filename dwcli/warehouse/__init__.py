"""The warehouse: a PostgreSQL database, dw's own (`embedded`) or one that is already there."""

from __future__ import annotations

from dwcli.warehouse.engine import Check, check, connect, make_engine, mask_url, resolve_url

__all__ = ["Check", "check", "connect", "make_engine", "mask_url", "resolve_url"]

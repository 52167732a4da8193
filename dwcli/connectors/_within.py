"""The cursor of a source that cannot be asked for a part: rows outside its bounds are left out here."""

from __future__ import annotations

from dataclasses import replace

from dwcli.contract import Cursor, IngestedItem


def within(item: IngestedItem, cursor: Cursor, name: str) -> IngestedItem:
    """The rows within the cursor's bounds, and those whose cursor is NULL.

    name: the resource, for errors. Raises SourceData where the column is missing or cannot be compared.
    """
    if not cursor.column or (cursor.start is None and cursor.end is None):
        return item
    import polars as pl

    from dwcli.connectors._formats import SOURCE_PATH, Frame
    from dwcli.connectors._formats.items import within as rows_within

    assert isinstance(item.payload, pl.DataFrame)
    named = item.payload.with_columns(pl.lit(name).alias(SOURCE_PATH))
    kept = rows_within(Frame(named, dict(item.types)), cursor).data
    return replace(item, payload=kept.drop(SOURCE_PATH))

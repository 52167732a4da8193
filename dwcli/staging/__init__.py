"""Between source and table: the lake's files, the table's schema, the load, the state, the audit.

The names are imported when they are first used: `dw status` reads the audit log without polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dwcli.staging.audit import ensure_audit_table, write_audit_record
    from dwcli.staging.dw_schema import ensure_table_exists
    from dwcli.staging.loader import load_parquet_files_to_dw
    from dwcli.staging.writer import write_ingestion_result_to_parquet

__all__ = [
    "ensure_audit_table",
    "ensure_table_exists",
    "load_parquet_files_to_dw",
    "write_audit_record",
    "write_ingestion_result_to_parquet",
]

_ROOMS = {
    "ensure_audit_table": "audit",
    "ensure_table_exists": "dw_schema",
    "load_parquet_files_to_dw": "loader",
    "write_audit_record": "audit",
    "write_ingestion_result_to_parquet": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)

"""`.dw/last.json`: how each pipeline's last run from here ended, for when the warehouse is down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dwcli.references import write_private

if TYPE_CHECKING:
    from dwcli.project import Project


def read_last(project: Project) -> dict[str, dict[str, Any]]:
    """Full name → {status, finished_at, rows_loaded, rows_read, error, error_code}; empty without one."""
    try:
        found = json.loads((project.private / "last.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def write_last(project: Project, results: Iterable[Mapping[str, Any]]) -> None:
    """Note how runs ended. `error` is the sentence of the error, or None."""
    known = read_last(project)
    for result in results:
        error = result.get("error") or {}
        known[str(result["pipeline_name"])] = {
            "run_id": result.get("run_id"),
            "status": result["status"],
            "started_at": result.get("started_at"),
            "finished_at": datetime.now(UTC).isoformat(),
            "rows_loaded": result.get("rows_loaded"),
            "rows_read": _rows_read(known.get(str(result["pipeline_name"]), {}), result),
            "error": error.get("message"),
            "error_code": error.get("code"),
        }
    project.private.mkdir(mode=0o700, exist_ok=True)
    write_private(project.private / "last.json", json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def _rows_read(before: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """What good runs read, the last of each kind: of `everything`, and of what was `new`."""
    rows: dict[str, Any] = dict(before.get("rows_read") or {})
    if result["status"] == "success":
        rows["everything" if result.get("cursor_from") is None else "new"] = result.get("rows_read")
    return rows


def rows_before(project: Project) -> dict[tuple[str, bool], int]:
    """Rows that each pipeline's last good run from here read, by whether it began at a cursor value."""
    return {
        (name, kind == "new"): rows
        for name, entry in read_last(project).items()
        for kind, rows in (entry.get("rows_read") or {}).items()
        if rows
    }


def last_runs_here(project: Project) -> dict[str, list[dict[str, Any]]]:
    """The record in the form of the audit log's `latest_runs`: one run per pipeline."""
    return {
        name: [
            {
                "pipeline_name": name,
                "run_id": entry.get("run_id"),
                "status": entry.get("status"),
                "rows_loaded": entry.get("rows_loaded"),
                "started_at": _moment(entry.get("started_at")),
                "finished_at": datetime.fromisoformat(entry["finished_at"]),
                "error_message": entry.get("error"),
                "error_code": entry.get("error_code"),
            }
        ]
        for name, entry in read_last(project).items()
        if entry.get("finished_at")
    }


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None

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
    """Full name → {status, finished_at, rows_loaded, error}; empty where nothing was written yet."""
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
            "error": error.get("message"),
        }
    project.private.mkdir(mode=0o700, exist_ok=True)
    write_private(project.private / "last.json", json.dumps(known, indent=1, ensure_ascii=False) + "\n")


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
            }
        ]
        for name, entry in read_last(project).items()
        if entry.get("finished_at")
    }


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None

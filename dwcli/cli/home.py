"""`dw` alone: where you stand, and what to type next. Local files only, so it is there at once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dwcli.cli import _tab
from dwcli.cli.settings import settings

FAILED = ("failure", "failed", "interrupted")


@dataclass(frozen=True)
class Line:
    """One pipeline on the home screen. `name` is what `dw run` takes."""

    name: str
    source: str
    state: str
    finished_at: str | None
    rows: int | None
    error: str
    #: what to type about a failure
    fix: str = ""


def home() -> None:
    """Show the home screen: without a project three words to begin with, else a line per pipeline."""
    import os
    import sys

    given = settings().project
    root = _tab.find_root(["-C", str(given)] if given else [])
    lines = [] if root is None else _lines(root)
    if settings().json:
        from dwcli.render.console import print_json

        print_json(_as_json(root, lines))
        return
    name = "" if root is None else _project_name(root)
    text = _welcome() if root is None else _screen(name, root, lines, datetime.now(UTC))
    sys.stdout.write(text)
    if root is not None and os.environ.get("DW_PROJECT") and not given:
        sys.stderr.write(f"(project from DW_PROJECT: {root})\n")


def _welcome() -> str:
    return (
        "dw - a data warehouse in this folder.\n\n"
        "  dw init            start here\n"
        "  dw add-source      connect data\n"
        "  dw run orders      load it\n\n"
        "Next: dw init\n"
    )


def _lines(root: str) -> list[Line]:
    last = _last_runs(root)
    found = _tab.sources(root)
    every = [name for _, names in found for name in names]
    lines: list[Line] = []
    for source, names in found:
        for name in names:
            run = last.get(f"{source}.{name}") or {}
            lines.append(
                Line(
                    name if every.count(name) == 1 else f"{source}.{name}",
                    source,
                    str(run.get("status") or "new"),
                    run.get("finished_at"),
                    run.get("rows_loaded"),
                    str(_error_text(run.get("error"))),
                    _fix(source, run),
                )
            )
    return lines


def _last_runs(root: str) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads((Path(root) / ".dw" / "last.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {str(name): run for name, run in kept.items() if isinstance(run, dict)}


def _fix(source: str, run: dict[str, Any]) -> str:
    """As `dw status` says it: a connection is tested, all else is told by the audit log."""
    code, run_id = str(run.get("error_code") or ""), str(run.get("run_id") or "")
    if not code or not run_id or code.startswith("DW-CONN"):
        return f"dw test-connection {source}"
    return f"dw audit {run_id[:8]}"


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or "")
    return str(error or "").split("\n")[0]


def _project_name(root: str) -> str:
    text = (Path(root) / "dw.yaml").read_text("utf-8", "replace")
    named = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("name:")]
    return named[0].split(" #")[0].strip().strip("\"'") if named else Path(root).name


def _screen(name: str, root: str, lines: list[Line], now: datetime) -> str:
    failed = [line for line in lines if line.state in FAILED]
    new = [line for line in lines if line.state == "new"]
    found = _tab.sources(root)
    bare = [source for source, names in found if not names]
    parts = [name, _counted(len(found), "source")]
    if wrong := len(failed) + len(bare):
        parts.append(f"{wrong} need{'s' if wrong == 1 else ''} attention")
    width = max((len(shown) for shown in [*(line.name for line in lines), *bare]), default=0)
    body = [row for line in lines for row in _rows(f"  {line.name:<{width}}  ", line, now)]
    body += [f"  {source:<{width}}  its file shows no pipelines" for source in bare]
    step = "dw doctor" if bare else _next_step(len(found), failed, new)
    return "\n".join(["  ".join(parts), *body, "", f"Next: {step}", ""])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rows(head: str, line: Line, now: datetime) -> list[str]:
    """The line of a pipeline; on a screen that it does not fit, without rows, and its error below."""
    import shutil
    import sys
    import textwrap

    row = head + _state_text(line, now)
    columns = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or len(row) <= columns:
        return [row]
    margin = " " * 6
    error = textwrap.wrap(line.error, max(20, columns), initial_indent=margin, subsequent_indent=margin)
    return [head + _state_text(replace(line, error="", rows=None), now), *error]


def _state_text(line: Line, now: datetime) -> str:
    if line.state == "new":
        return "not run yet"
    word = "FAILED" if line.state in FAILED else "ok" if line.state == "success" else line.state
    parts = [f"{word:<6}", f"{_ago(line.finished_at, now):<10}"]
    if line.state in FAILED:
        parts.append(line.error)
    elif line.rows is not None:
        parts.append(f"{line.rows:,} row{'s' if line.rows != 1 else ''} loaded")
    return "  ".join(parts).rstrip()


def _ago(moment: str | None, now: datetime) -> str:
    try:
        then = datetime.fromisoformat(str(moment))
    except ValueError:
        return ""
    seconds = max(0.0, (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def _next_step(sources: int, failed: list[Line], new: list[Line]) -> str:
    if not sources:
        return "dw add-source"
    if failed:
        return failed[0].fix
    if new:
        return f"dw run {new[0].name}"
    return "dw status"


def _as_json(root: str | None, lines: list[Line]) -> dict[str, Any]:
    return {
        "project": root and _project_name(root),
        "root": root,
        "pipelines": [
            {
                "name": line.name,
                "source": line.source,
                "state": line.state,
                "finished_at": line.finished_at,
                "rows": line.rows,
                "error": line.error or None,
            }
            for line in lines
        ],
    }

"""Answers of a wizard that was left before its end: kept in `.dw/drafts`, never a secret among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dwcli.errors import NameUnknown
from dwcli.references import write_private


def save_draft(root: Path, name: str, draft: dict[str, Any]) -> str:
    """Keep the answers so far. Secret values are left out; references to them stay.

    What is in the way, or nothing: a full disk is no reason to stop asking.
    """
    path = _path(root, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, json.dumps(_public(draft), indent=1) + "\n")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def read_draft(root: Path, name: str) -> dict[str, Any]:
    """The answers that were kept. Raises NameUnknown when there are none."""
    try:
        draft = json.loads(_path(root, name).read_text("utf-8"))
    except (OSError, ValueError):
        raise NameUnknown("there are no saved answers to go on from", hint=f"dw {name}") from None
    return draft if isinstance(draft, dict) else {}


def drop_draft(root: Path, name: str) -> None:
    """Forget the answers: the wizard came to its end."""
    _path(root, name).unlink(missing_ok=True)


def _path(root: Path, name: str) -> Path:
    return root / ".dw" / "drafts" / f"{name}.json"


def _public(value: Any) -> Any:
    from pydantic import SecretStr

    if isinstance(value, dict):
        return {k: _public(v) for k, v in value.items() if not isinstance(v, SecretStr)}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value if not isinstance(item, SecretStr)]
    return str(value) if isinstance(value, Path) else value

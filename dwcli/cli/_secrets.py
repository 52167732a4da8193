"""Secrets on their way to `.env`: git must not see it, before it is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dwcli.errors import UsageError
from dwcli.references import write_env_value


def write_secret(root: Path, name: str, value: str) -> None:
    """Keep a secret in the project's `.env`: 0600, and git-ignored before its first byte.

    Raises UsageError when git already tracks `.env`: what is committed there would be published.
    """
    if is_tracked(root, ".env"):
        raise UsageError(
            ".env is in git: a secret written there would be published with the next push",
            hint="git rm --cached .env, commit that, change the secrets in it, then try again",
        )
    ignore(root, [".env"])
    write_env_value(root / ".env", name, value)


def ignore(root: Path, names: list[str]) -> bool:
    """Make git pass over these names; whether a line had to be added."""
    path = root / ".gitignore"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    known = {line.strip().strip("/") for line in lines}
    missing = [name for name in names if name.strip("/") not in known]
    if missing:
        path.write_text("\n".join([*lines, *missing]) + "\n", "utf-8")
    return bool(missing)


def is_tracked(root: Path, name: str) -> bool:
    """Whether git has this file in its index; False without git."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "--error-unmatch", "--", name],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0

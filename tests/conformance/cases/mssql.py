"""SQL Server, on pysqlbridge, which gives JSON files as tables and cannot be written to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._files import HEADER
from tests.connectors.places import package
from tests.connectors.servers_documents import free_port


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """The server over the tables that bridge.json names."""
    command = [sys.executable, "-m", "pysqlbridge", "--config", "bridge.json", "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "BRIDGE_PASSWORD": "right", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "listening on" in line:
            break
    reader = threading.Thread(target=process.stdout.read)  # so that it never waits for a reader
    reader.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stdout.close()


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    package("pysqlbridge")
    held: dict[str, list[dict[str, Any]]] = {}
    port = free_port()
    with ExitStack() as running:

        def put(name: str, rows: Sequence[Row]) -> str:
            running.close()
            table = held.setdefault(name, [])
            table.extend({column: stored(row[column]) for column in row} for row in rows)
            listed = []
            for number, (table_name, found) in enumerate(held.items()):
                (folder / f"{number}.json").write_text(json.dumps(found or [dict.fromkeys(HEADER)]), "utf-8")
                listed.append({"name": table_name, "json": f"{number}.json"})
            logins = [{"user": "sa", "password": "${env:BRIDGE_PASSWORD}"}]
            (folder / "bridge.json").write_text(json.dumps({"tables": listed, "logins": logins}), "utf-8")
            running.enter_context(serving(folder, port))
            spelled = name.replace("]", "]]")
            return f"[{spelled}]" if table else f"SELECT * FROM [{spelled}] WHERE 1 = 0"

        yield Place(
            {
                "host": "127.0.0.1",
                "port": port,
                "database": "master",
                "username": "sa",
                "password": "right",
                "trust_server_certificate": True,
            },
            put,
        )


def stored(value: Any) -> Any:
    """A value as JSON has it: no decimals, and times as seconds since 1970."""
    if isinstance(value, Decimal):
        return float(value)
    return int(value.timestamp()) if isinstance(value, datetime) else value


CASE = Case(
    place,
    types={"id": "bigint", "name": "text", "amount": "double precision"},
    columns={"at": "to_timestamp(at)"},
    wrong_password={"password": "secret-word"},
)

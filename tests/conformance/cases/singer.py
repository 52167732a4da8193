"""A Singer tap: a small program that gives the rows of a file behind the place in its state."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text

NO_SERVER = "a tap is a program on this machine"
TAP = (
    f"#!{sys.executable}\n"
    + """
import json, sys
from pathlib import Path

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(json.loads(Path(given["--config"]).read_text())["folder"])
kinds = {"id": "integer", "amount": "number", "flag": "boolean"}
streams = {path.stem: path.read_text("utf-8").splitlines() for path in folder.glob("*.jsonl")}


def schema(lines):
    names = dict.fromkeys(name for line in lines for name in json.loads(line))
    of = {name: {"type": ["null", kinds.get(name, "string")]} for name in names or ["id"]}
    if "at" in of:
        of["at"]["format"] = "date-time"
    return {"type": "object", "properties": of}


if "--discover" in sys.argv:
    listed = [(name, schema(lines)) for name, lines in streams.items()]
    print(json.dumps({"streams": [{"tap_stream_id": n, "stream": n, "schema": s} for n, s in listed]}))
    sys.exit()
state = json.loads(Path(given["--state"]).read_text()) if "--state" in given else {}
catalog = json.loads(Path(given["--catalog"]).read_text())
for stream in catalog["streams"]:
    chosen = any(not m["breadcrumb"] and m["metadata"].get("selected") for m in stream.get("metadata", []))
    if not (chosen or stream["schema"].get("selected")):
        continue
    name = stream["stream"]
    lines = streams[name]
    print(json.dumps({"type": "SCHEMA", "stream": name, "schema": schema(lines), "key_properties": ["id"]}))
    for line in lines[state.get(name, 0):]:
        print('{"type": "RECORD", "stream": ' + json.dumps(name) + ', "record": ' + line + "}")
    print(json.dumps({"type": "STATE", "value": {**state, name: len(lines)}}))
"""
)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    program = folder / "tap-case"
    program.write_text(TAP, "utf-8")
    program.chmod(0o755)

    def put(name: str, rows: Sequence[Row]) -> str:
        with (folder / f"{name}.jsonl").open("ab") as out:
            out.writelines(json_text(row) + b"\n" for row in rows)
        return name

    yield Place({"tap": str(program), "tap_config": json.loads(json.dumps({"folder": str(folder)}))}, put)


CASE = Case(
    place,
    types=TYPES,
    cursor=None,
    absent={
        "resume_after_a_cut_connection": NO_SERVER,
        "wrong_password": NO_SERVER,
        "unreachable_host": NO_SERVER,
    },
)

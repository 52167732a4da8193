"""Avro messages whose schemas are in a schema registry.

Such a message is a zero byte, the number of its schema (four bytes), and the Avro value. Columns are typed
by the schema: decimals keep their digits, logical dates and times become the warehouse's. What has parts
(records, arrays, maps) is jsonb. A message that is none of this, or whose schema the registry does not know,
is left to `payload_raw`.
"""

from __future__ import annotations

import base64
import io
import json
import math
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from dwcli.connectors._messages import Decoded, Shape, field_name, raw_series, with_raw
from dwcli.connectors._rows import Filled, base_type, fill_values
from dwcli.errors import ConnectionFailed, DwError

TIMEOUT_SECONDS = 10.0
_PREFIX = 5
_NESTED = ("record", "error", "array", "map")
_PLAIN = {
    "int": "bigint",
    "long": "bigint",
    "float": "double precision",
    "double": "double precision",
    "boolean": "boolean",
    "string": "text",
    "enum": "text",
    "bytes": "bytea",
    "fixed": "bytea",
}
_LOGICAL = {
    "date": "date",
    "timestamp-millis": "timestamptz",
    "timestamp-micros": "timestamptz",
    "local-timestamp-millis": "timestamptz",
    "local-timestamp-micros": "timestamptz",
    "time-millis": "time",
    "time-micros": "time",
    "uuid": "uuid",
}


@dataclass(frozen=True)
class Schema:
    """A schema in fastavro's parsed form, and the PostgreSQL type of each field of its record."""

    parsed: Any
    fields: Mapping[str, str]
    #: whether a value may hold a number that JSON cannot write
    floats: bool


@dataclass
class Registry:
    """Where schemas are, and those that have been seen. None: the registry does not know it."""

    url: str
    username: str = ""
    password: str = ""
    ca: Path | None = None
    schemas: dict[int, Schema | None] = field(default_factory=dict)


# -- the registry ----------------------------------------------------------------------------------------


def check(registry: Registry) -> None:
    """Ask the registry for anything. Raises ConnectionFailed with the layer that failed."""
    _get(registry, "/")


def schema_of(registry: Registry, number: int) -> Schema | None:
    """The schema of this number, asked for once. Raises ConnectionFailed."""
    if number not in registry.schemas:
        answer = _get(registry, f"/schemas/ids/{number}")
        registry.schemas[number] = _parsed(registry, answer) if answer else None
    return registry.schemas[number]


def _parsed(registry: Registry, answer: Mapping[str, Any]) -> Schema | None:
    """The schema in the registry's answer, None if it is none of Avro."""
    from fastavro.schema import SchemaParseException, UnknownType, parse_schema

    if answer.get("schemaType", "AVRO") != "AVRO":
        return None
    named: dict[str, Any] = {}
    try:
        _learn(registry, answer.get("references", ()), named)
        parsed: Any = parse_schema(json.loads(answer["schema"]), named_schemas=named)
    except (SchemaParseException, UnknownType, ValueError, KeyError):
        return None
    fields: dict[str, str] = {}
    if isinstance(parsed, dict) and parsed.get("type") == "record":
        fields = {one["name"]: postgres_type(one["type"], named) for one in parsed["fields"]}
    text = json.dumps(answer)
    return Schema(parsed, fields, "float" in text or "double" in text)


def _learn(registry: Registry, references: Sequence[Mapping[str, Any]], named: dict[str, Any]) -> None:
    """Parse the schemas that another one refers to, innermost first."""
    from fastavro.schema import parse_schema

    for reference in references:
        if reference["name"] in named:
            continue
        subject = urllib.parse.quote(reference["subject"], safe="")
        answer = _get(registry, f"/subjects/{subject}/versions/{reference['version']}")
        if answer is None:
            raise KeyError(reference["subject"])
        _learn(registry, answer.get("references", ()), named)
        parse_schema(json.loads(answer["schema"]), named_schemas=named)


def _get(registry: Registry, path: str) -> dict[str, Any] | None:
    """The registry's answer, None for what it does not have."""
    url = registry.url.rstrip("/") + path
    if not url.lower().startswith(("http://", "https://")):
        raise ConnectionFailed(
            f"{registry.url} is no address of a schema registry",
            layer="name",
            hint="schema_registry_url: http://host:8081",
        )
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    if registry.username:
        login = f"{registry.username}:{registry.password}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
    try:
        context = ssl.create_default_context()
        if registry.ca:
            context.load_verify_locations(registry.ca)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise _refused(registry, error) from None
    except (OSError, ssl.SSLError) as error:
        raise _unreachable(registry, error) from None
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConnectionFailed(
            f"{registry.url} answers with something else than a schema registry does",
            layer="database",
            hint="check schema_registry_url",
        )
    return found


def _refused(registry: Registry, error: urllib.error.HTTPError) -> DwError:
    layer = {401: "login", 403: "permission"}.get(error.code, "database")
    hints = {
        "login": "check schema_registry_username and schema_registry_password",
        "permission": "let this user read the subjects of the registry",
    }
    return ConnectionFailed(
        f"the schema registry {registry.url} refuses to answer",
        layer,
        f"HTTP {error.code} {error.reason}",
        hints.get(layer, "try again when the registry is well"),
    )


def _unreachable(registry: Registry, error: OSError) -> DwError:
    reason = getattr(error, "reason", error)
    host = urllib.parse.urlsplit(registry.url).netloc.rpartition("@")[2]
    import socket

    if isinstance(reason, socket.gaierror):
        layer, hint = "name", "check the host in schema_registry_url"
    elif isinstance(reason, ssl.SSLError):
        layer, hint = "tls", "set ssl_ca to the authority of the registry's certificate"
    else:
        layer, hint = "port", "check schema_registry_url, and that the registry is running"
    return ConnectionFailed(f"the schema registry at {host} cannot be reached", layer, str(reason), hint)


# -- types -----------------------------------------------------------------------------------------------


def postgres_type(schema: Any, named: Mapping[str, Any]) -> str:
    """The PostgreSQL type of an Avro schema. named: parsed schemas by name."""
    if isinstance(schema, list):
        kinds = {postgres_type(branch, named) for branch in schema if branch != "null"}
        return _of_union(kinds)
    if isinstance(schema, str):
        return _PLAIN.get(schema) or (postgres_type(named[schema], named) if schema in named else "jsonb")
    logical = schema.get("logicalType")
    if logical == "decimal" and schema.get("precision"):
        return f"numeric({schema['precision']},{schema.get('scale', 0)})"
    if schema["type"] in _NESTED:
        return "jsonb"
    return _LOGICAL.get(logical or "") or postgres_type(schema["type"], named)


def _of_union(kinds: set[str]) -> str:
    if len(kinds) <= 1:
        return next(iter(kinds), "text")
    if "jsonb" in kinds:
        return "jsonb"
    numbers = all(base_type(kind) in ("bigint", "numeric", "double precision") for kind in kinds)
    return "numeric" if numbers else "text"


# -- values ----------------------------------------------------------------------------------------------


def decode_avro(
    shape: Shape, registry: Registry, seen: dict[str, str], values: Sequence[bytes | None]
) -> Decoded:
    """Avro values as `payload` (their JSON), and the fields of records as columns.

    seen: PostgreSQL type of each column so far; it grows.
    """
    payloads: list[str | None] = []
    rows: list[Mapping[str, Any]] = []
    raw: dict[int, bytes] = {}
    used: dict[int, Schema] = {}
    for number, value in enumerate(values):
        payload, row = None, {}
        if value is not None:
            schema = _schema_in(registry, value)
            try:
                found = _value(schema, value) if schema else None
                payload = json_text(found, schema.floats) if schema else None
            except _UNDECODABLE:
                schema = None
            if schema is None:
                raw[number] = value
            elif isinstance(found, dict) and schema.fields:
                row, used[id(schema)] = found, schema
        payloads.append(payload)
        rows.append(row)
    payload_column = pl.Series(values=payloads, dtype=pl.String)
    decoded = with_raw(payload_column, "jsonb", raw_series(raw, len(values)), "not Avro of the registry")
    if not shape.expand:
        return decoded
    columns, types = dict(decoded.columns), dict(decoded.types)
    changed = Counter(decoded.changed)
    declared: dict[str, set[str]] = {}
    for schema in used.values():
        for key, kind in schema.fields.items():
            declared.setdefault(key, set()).add(kind)
    for key, kinds in declared.items():
        name = field_name(shape, key)
        kind = _of_union(kinds | ({seen[name]} if name in seen else set()))
        filled = _column([row.get(key) for row in rows], kind)
        columns[name], types[name], seen[name] = filled.series, filled.type, filled.type
        for what, count in filled.changed.items():
            changed[f"{name}: {what}"] += count
    return Decoded(columns, types, changed)


#: What fastavro raises for bytes that are no value of the schema.
_UNDECODABLE = (EOFError, ValueError, IndexError, KeyError, OverflowError, TypeError, RecursionError)


def _schema_in(registry: Registry, value: bytes) -> Schema | None:
    if len(value) < _PREFIX or value[0] != 0:
        return None
    return schema_of(registry, int.from_bytes(value[1:_PREFIX]))


def _value(schema: Schema, value: bytes) -> Any:
    from fastavro import schemaless_reader

    stream = io.BytesIO(value)
    stream.seek(_PREFIX)
    found = schemaless_reader(stream, schema.parsed, None)
    if stream.tell() != len(value):
        raise ValueError("bytes behind the end of the value")
    return found


def _column(values: Sequence[Any], kind: str) -> Filled:
    """Values as a column of the PostgreSQL type `kind`, or a wider one; those with parts as JSON."""
    if kind != "jsonb":
        return fill_values(values, kind)
    texts = [None if value is None else json_text(value, floats=True) for value in values]
    return Filled(pl.Series(values=texts, dtype=pl.String), kind)


@cache
def _encoder() -> Any:
    import msgspec

    return msgspec.json.Encoder(decimal_format="number")


def json_text(value: Any, floats: bool) -> str:
    """A value as JSON: decimals as numbers, times in ISO form, bytes as base64, NaN as a string.

    floats: whether there may be numbers that JSON cannot write.
    """
    text: str = _encoder().encode(_spelled(value) if floats else value).decode()
    return text


def _spelled(value: Any) -> Any:
    """The value with its infinities and NaN as strings, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {key: _spelled(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_spelled(part) for part in value]
    return value


def key_of(registry: Registry, key: bytes | None) -> bytes | str | None:
    """An Avro key as text, JSON if it has parts; the bytes themselves where they are none of the registry."""
    schema = _schema_in(registry, key) if key else None
    if schema is None or key is None:
        return key
    try:
        found = _value(schema, key)
    except _UNDECODABLE:
        return key
    return found if isinstance(found, str) or found is None else json_text(found, schema.floats)

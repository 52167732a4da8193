"""Sources. One module here is one kind of source, and the file is its registration.

A connector is a module with a few functions and no base class:

    TITLE = "PostgreSQL"                       how people call it (wizard, docs)
    ALIASES = ("postgresql", "pgsql")          optional: other protocol names
    EXTRA = "excel"                            optional: the pip extra of its driver, where that is not
                                               named like the protocol
    TRIED = "PostgreSQL 15"                    the real server that its tests run against
    STAND_IN = "moto 5.2"                      or what speaks the protocol in its place there
    INCREMENTAL = "a cursor column"            how it finds what is new: a noun phrase, "" for not at all
    TYPING = "declared"                        where types come from: declared or inferred
    STREAMING = True                           whether memory is bounded by the batch, not by the resource
    class Config(ConnectorConfig): ...         the only definition: flags, questions, validation, docs
    def connect(config) -> Client              raises ConnectionFailed with the layer that failed
    def discover(client) -> Iterator[Resource]
    def read(client, query, cursor) -> Iterator[IngestedItem]      lazily: one item = one bounded batch
    def describe(client, query) -> Resource    one resource or query: columns, key, cursors, estimates
    def keys(client, query, key) -> Iterator[IngestedItem]         optional: these columns of every row
    def estimate(client, query) -> (rows, bytes)                   optional: what a read would bring, where
                                               that is told more cheaply than by describe; None: not known
    def acknowledge(client, position) -> None  optional: streams, after the warehouse has committed
    def close(client) -> None                  may be called twice; ends a read that is under way

The constants are plain literals above the first definition: they are read from the source text, so that
listing protocols imports nothing. Drivers are imported inside `connect`, so that `--help` of a connector
works without its driver. Third-party connectors are modules named by the entry point group
`dwcli.connectors`. Modules whose name begins with an underscore are shared code.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel, SecretStr, ValidationError

from dwcli.contract import Cursor, IngestedItem, IngestionResult, Resource
from dwcli.documents import Document, invalid, nearest, read_document
from dwcli.errors import ConfigError, DriverMissing, DwError, NameUnknown
from dwcli.references import environment, resolve

ENTRY_POINTS = "dwcli.connectors"
#: What a connector says about itself at its head.
LITERALS = ("TITLE", "ALIASES", "EXTRA", "TRIED", "STAND_IN", "QUERY", "INCREMENTAL", "TYPING", "STREAMING")


@dataclass
class Connector:
    """A configured source, from `connect()` to `close()`: one record for every protocol."""

    protocol: str
    config: BaseModel
    module: ModuleType
    client: Any = field(default=None, repr=False)

    def connect(self) -> None:
        """Open the connection. Raises ConnectionFailed, which names the layer that failed."""
        self.client = self.module.connect(self.config)

    def discover(self) -> Iterator[Resource]:
        """What the source offers, lazily."""
        resources: Iterator[Resource] = self.module.discover(self.client)
        return resources

    def describe(self, query: str) -> Resource:
        """Columns, key, cursor candidates and estimates of one resource or query."""
        resource: Resource = self.module.describe(self.client, query)
        return resource

    def estimate(self, query: str) -> tuple[int | None, int | None]:
        """How many rows and bytes a read of everything would bring; None where nobody can tell."""
        if hasattr(self.module, "estimate"):
            told: tuple[int | None, int | None] = self.module.estimate(self.client, query)
            return told
        resource = self.describe(query)
        return resource.row_estimate, resource.bytes_estimate

    def fetch_data(self, query: str, cursor: Cursor | None = None) -> IngestionResult:
        """Read a resource or query. The items are lazy: iterating them is the reading."""
        items = self.module.read(self.client, query, cursor or Cursor())
        return IngestionResult(success=True, protocol=self.protocol, items=items)

    @property
    def is_database(self) -> bool:
        """Whether rows stay where they are: it can give the keys of all of them alone."""
        return hasattr(self.module, "keys")

    def keys(self, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
        """The key columns of every row; of a source that cannot give them alone, every column."""
        if self.is_database:
            yield from self.module.keys(self.client, query, key)
        else:
            yield from self.module.read(self.client, query, Cursor())

    def holds_states(self, query: str, key: Collection[str]) -> bool:
        """Whether a row is all that the source holds of its key: that of a table with this primary key."""
        if not self.is_database:
            return False
        resource = self.describe(query)
        own = set(resource.primary_key)
        return resource.kind == "table" and bool(own) and own <= set(key)

    def acknowledge(self, position: Any) -> None:
        """Tell a stream that everything up to `position` is in the warehouse."""
        if hasattr(self.module, "acknowledge"):
            self.module.acknowledge(self.client, position)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.client is not None:
            self.module.close(self.client)
            self.client = None


def create_connector(
    config: Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None
) -> Connector:
    """A connector from a dict, or from a JSON or YAML file. Nothing is connected yet.

    Layers, later wins: the model's defaults, the file (`config`, or its key `config_file`), the
    environment (`<PREFIX>_<FIELD>` where `env_prefix` is given, such as PG_HOST), `config` itself where
    it is a dict, then `overrides`. `${env:NAME}` and `${file:PATH}` are resolved. Keys of a source file
    that are not the connection's (`pipelines`) are passed over.

    Raises ConfigError (all problems at once, with file, line and column), SecretMissing, NameUnknown for
    a protocol that does not exist.
    """
    document: Document | None = None
    given: dict[str, Any] = {}
    if isinstance(config, Mapping):
        given = {key: value for key, value in config.items() if key not in ("config_file",)}
        if "config_file" in config:
            document = read_document(config["config_file"])
    else:
        document = read_document(config)
    from_file = dict(document.data) if document else {}
    from_file.pop("pipelines", None)
    prefix = given.pop("env_prefix", None) or from_file.get("env_prefix")
    from_file.pop("env_prefix", None)
    protocol = (overrides or {}).get("protocol") or given.get("protocol") or from_file.get("protocol")
    if not protocol:
        raise ConfigError(
            f"{document.where(()) if document else 'config'}: 'protocol' is missing",
            hint="add a line such as: protocol: postgres",
        )
    module = load(str(protocol))
    layers = from_file | _from_environment(module.Config, prefix) | given | dict(overrides or {})
    layers.pop("protocol", None)
    base = document.path.parent if document else Path()
    subject = str(document.path) if document else f"{protocol} config"
    return Connector(
        resolve_name(str(protocol)),
        validated(module.Config, resolve(layers, environment(_env_file(base)), base, subject), document),
        module,
    )


def placed(protocol: str, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Connection values, with relative paths of local files and folders taken from `folder`."""
    fields = load(protocol).Config.model_fields
    local = {
        name
        for name, info in fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("local_path")
    }
    return {
        name: str(folder / Path(value).expanduser())
        if name in local and isinstance(value, str) and "://" not in value
        else value
        for name, value in values.items()
    }


def _env_file(base: Path) -> Path | None:
    """`.env` beside the config file, or beside the dw.yaml above it."""
    return next((p / ".env" for p in (base, base.parent) if (p / ".env").exists()), None)


def validated(model: type[BaseModel], values: Mapping[str, Any], document: Document | None) -> BaseModel:
    """The config model for these values; ConfigError names every problem and where it stands."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = [*model.model_fields, "protocol", "pipelines", "env_prefix"]
        raise invalid(document, error, known, "config") from None


def _from_environment(model: type[BaseModel], prefix: str | None) -> dict[str, str]:
    if not prefix:
        return {}
    names = {name: f"{prefix.rstrip('_')}_{name}".upper() for name in model.model_fields}
    return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


def secrets_of(config: BaseModel) -> list[str]:
    """The secret values in a config, however deep, for redaction; of a URL its password too."""
    found = [secret.get_secret_value() for secret in _secrets_in(config)]
    with_password = [text for text in found if "://" in text and "@" in text]
    for text in with_password:
        written = text.partition("://")[2].rpartition("@")[0].partition(":")[2]
        found += [written, unquote(written)]
    return [text for text in found if text]


def _secrets_in(value: Any) -> Iterator[SecretStr]:
    if isinstance(value, SecretStr):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item)


# -- the registry: names cost nothing, loading one imports one ---------------------------------------


@cache
def names() -> tuple[str, ...]:
    """Every protocol that can be used, built-in and third-party, without importing any."""
    folder = Path(__file__).parent
    return tuple(
        sorted({p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")} | set(_plugins()))
    )


@cache
def _plugins() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


@cache
def literals(protocol: str) -> dict[str, Any]:
    """The constants at the head of a connector (TITLE, ALIASES …), read from its text."""
    path = _source_file(protocol)
    if path is None:
        return {}
    # Only the text above the first definition is parsed: names are listed at every start of `dw`.
    head = re.split(r"^(?:class|def|@)", path.read_text("utf-8"), maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, Any] = {}
    for node in ast.parse(head).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in LITERALS:
                found[name] = ast.literal_eval(node.value)
    return found


def _source_file(protocol: str) -> Path | None:
    """Where a connector's text is, without importing it; None where it cannot be told."""
    target = _plugins().get(protocol)
    if target is None:
        path = Path(__file__).parent / f"{protocol}.py"
        return path if path.exists() else None
    first, *rest = target.split(".")
    spec = find_spec(first)
    if spec is None or (rest and not spec.submodule_search_locations):
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    below = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    files = [p for path in below for p in (path.with_suffix(".py"), path / "__init__.py")]
    return next((p for p in files if p.exists()), None)


@cache
def extra(protocol: str) -> str | None:
    """The pip extra that brings a built-in connector's driver; None where it needs none."""
    wanted = str(literals(protocol).get("EXTRA", protocol))
    return wanted if protocol not in _plugins() and _packages(wanted) else None


def missing_packages(protocol: str) -> list[str]:
    """The packages of a connector's extra that are not installed. Nothing is imported to find out."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for package in _packages(extra(protocol) or ""):
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


@cache
def _packages(extra: str) -> tuple[str, ...]:
    """The packages of one of dw's own extras, as its metadata names them."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("dwcli") or ()
    except PackageNotFoundError:
        return ()
    marked = (re.match(r"([A-Za-z0-9._-]+).*;.*\bextra == ['\"]([^'\"]+)['\"]", line) for line in needed)
    return tuple(match[1] for match in marked if match and match[2] == extra)


def title(protocol: str) -> str:
    """How people call this kind of source."""
    return str(literals(protocol).get("TITLE", protocol))


def resolve_name(protocol: str) -> str:
    """The protocol's own name for a name or an alias. Raises NameUnknown with the nearest one."""
    wanted = protocol.strip().lower()
    if wanted in names():
        return wanted
    aliases = {alias: name for name in names() for alias in literals(name).get("ALIASES", ())}
    if wanted in aliases:
        return aliases[wanted]
    raise NameUnknown(
        f"there is no connector '{protocol}'.{nearest(wanted, [*names(), *aliases])}",
        hint=f"known: {', '.join(names())}",
    )


def load(protocol: str) -> ModuleType:
    """Import one connector, by name or alias. Raises NameUnknown, or DwError for a broken plugin."""
    name = resolve_name(protocol)
    target = _plugins().get(name) or f"{__name__}.{name}"
    try:
        return importlib.import_module(target)
    except ImportError as error:
        if target.startswith(f"{__name__}."):
            raise
        raise DwError(f"the connector '{name}' ({target}) cannot be loaded", why=str(error)) from error


def driver_missing(protocol: str, error: ImportError) -> DriverMissing:
    """The error for a driver that is not installed: one line, with the command that installs it."""
    return DriverMissing(
        f"{title(protocol)} needs a driver that is not installed ({error.name})",
        hint=f"pip install 'dwcli[{extra(protocol) or protocol}]'",
    )

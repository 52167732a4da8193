"""Sources. One module here is one kind of source, and the file is its registration.

A connector is a module with a few functions and no base class:

    TITLE = "PostgreSQL"                       how people call it (wizard, docs)
    ALIASES = ("postgresql", "pgsql")          optional: other protocol names
    EXTRA = "mysql"                            optional: the pip extra that brings its driver
    class Config(ConnectorConfig): ...         the only definition: flags, questions, validation, docs
    def connect(config) -> Client              raises ConnectionFailed with the layer that failed
    def discover(client) -> Iterator[Resource]
    def read(client, query, cursor) -> Iterator[IngestedItem]      lazily: one item = one bounded batch
    def describe(client, query) -> Resource    one resource or query: columns, key, cursors, estimates
    def keys(client, query, key) -> Iterator[IngestedItem]         optional: these columns of every row
    def acknowledge(client, position) -> None  optional: streams, after the warehouse has committed
    def close(client) -> None                  may be called twice; ends a read that is under way

The three constants are plain literals: they are read from the source text, so that listing protocols
imports nothing. Drivers are imported inside `connect`, so that `--help` of a connector works without
its driver. Third-party connectors are modules named by the entry point group `dwcli.connectors`.
Modules whose name begins with an underscore are shared code.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from dwcli.contract import Cursor, IngestedItem, IngestionResult, Resource
from dwcli.documents import Document, invalid, nearest, read_document
from dwcli.errors import ConfigError, DriverMissing, DwError, NameUnknown
from dwcli.references import environment, resolve

ENTRY_POINTS = "dwcli.connectors"


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

    def fetch_data(self, query: str, cursor: Cursor | None = None) -> IngestionResult:
        """Read a resource or query. The items are lazy: iterating them is the reading."""
        items = self.module.read(self.client, query, cursor or Cursor())
        return IngestionResult(success=True, protocol=self.protocol, items=items)

    def keys(self, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
        """The key columns of every row; of a source that cannot give them alone, every column."""
        if hasattr(self.module, "keys"):
            yield from self.module.keys(self.client, query, key)
        else:
            yield from self.module.read(self.client, query, Cursor())

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
    """The secret values in a config, for redaction."""
    found: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, SecretStr):
                found.append(item.get_secret_value())
    return found


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
    """TITLE, ALIASES and EXTRA of a built-in connector, read from its text."""
    path = Path(__file__).parent / f"{protocol}.py"
    if not path.exists():
        return {}
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("TITLE", "ALIASES", "EXTRA"):
                found[name] = ast.literal_eval(node.value)
    return found


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
    extra = literals(protocol).get("EXTRA", protocol)
    return DriverMissing(
        f"{title(protocol)} needs a driver that is not installed ({error.name})",
        hint=f"pip install 'dwcli[{extra}]'",
    )

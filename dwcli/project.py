"""The project folder: dw.yaml and sources/*.yaml, as checked records, and back to files.

shop/
  dw.yaml               ProjectConfig
  sources/shop.yaml     one Source: its connection, and its Pipelines
  .env                  values of the references in both
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dwcli.clock import checked_every
from dwcli.clock import seconds as seconds
from dwcli.connectors import placed
from dwcli.contract import KEYED, Contract, Deletes, WriteDisposition
from dwcli.documents import Document, invalid, nearest, read_document
from dwcli.errors import ConfigError, NameUnknown, ProjectMissing
from dwcli.references import REFERENCE, environment, resolve, write_private

#: What can be told: a run failed, the first good one after that, a pipeline is late.
News = Literal["failure", "recovery", "stale"]
Model = TypeVar("Model", bound=BaseModel)

PROJECT_FILE = "dw.yaml"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
SIZES = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}


def size_bytes(text: object) -> int:
    """The bytes in a size such as `512MB` or `2GB`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(text).upper())
    if not match or (match[2] not in SIZES and match[2] + "B" not in SIZES):
        raise ValueError(f"not a size: write it as 512MB or 2GB, not {str(text)[:20]!r}")
    return int(float(match[1]) * SIZES.get(match[2], SIZES.get(match[2] + "B", 1)))


def checked_name(text: str) -> str:
    """A name that is safe as a file name, a flag and part of `source.pipeline`. Raises ValueError."""
    if not NAME.fullmatch(text):
        raise ValueError("a name is letters, digits, _ and -, at most 63, and does not begin with -")
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _a_duration(value: str) -> str:
    seconds(value)
    return value


def _a_size(value: str) -> str:
    size_bytes(value)
    return value


Name = Annotated[str, AfterValidator(checked_name)]
Duration = Annotated[str, BeforeValidator(str), AfterValidator(_a_duration)]
Every = Annotated[str, BeforeValidator(checked_every)]
Size = Annotated[str, BeforeValidator(str), AfterValidator(_a_size)]
Columns = Annotated[list[str], BeforeValidator(_as_list)]


def _a_reference(value: str) -> str:
    if not REFERENCE.search(value):
        raise ValueError("whoever has this URL can write to you: keep it in .env, and write ${env:NAME} here")
    return value


def _as_notify(value: object) -> object:
    return {"to": value} if isinstance(value, str | list) else value


class Notify(BaseModel):
    """Who is told when something happens; `notify:` may also be the list of URLs alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Annotated[list[Annotated[str, AfterValidator(_a_reference)]], BeforeValidator(_as_list)] = Field(
        min_length=1, description="apprise URLs, as references"
    )
    on: Annotated[list[News], BeforeValidator(_as_list)] = Field(
        default=["failure", "recovery", "stale"], description="what is told"
    )


class ProjectConfig(BaseModel):
    """What `dw.yaml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="name of the project")
    warehouse: str = Field("embedded", description="embedded, or the URL of a PostgreSQL")
    schema_: str = Field("public", alias="schema", description="schema that tables are loaded into")
    lake: str = Field("lake", description="folder that keeps the Parquet files")
    keep: Duration | None = Field(None, description="how long loaded Parquet files are kept; empty: for ever")
    memory: Size = Field("512MB", description="memory that a run may take")
    notify: Annotated[Notify, BeforeValidator(_as_notify)] | None = Field(
        None, description="who is told of failures, recoveries and late pipelines"
    )


class PipelineConfig(BaseModel):
    """One entry under `pipelines:` of a source file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str = Field("", description="what to read: table, SQL, path or glob, endpoint, topic …")
    target: str | None = Field(None, description="table to load into; the pipeline's name unless given")
    schema_: str | None = Field(None, alias="schema", description="schema of that table")
    write: WriteDisposition = Field("append", description="how new rows meet the table")
    key: Columns = Field(default_factory=list, description="columns that identify a row, for merge")
    cursor: str | None = Field(None, description="column that tells new rows from old ones")
    cursor_nulls: Literal["error", "include", "exclude"] = Field(
        "error", description="what to do with rows whose cursor is NULL"
    )
    deletes: Deletes = Field(
        "ignore", description="what becomes of rows that the source no longer has; compares all keys"
    )
    lookback: Duration | int | None = Field(None, description="read again this far behind the cursor")
    columns: dict[str, str] = Field(default_factory=dict, description="types that override inferred ones")
    contract: Contract = Field("evolve", description="what a change of the source's schema may do")
    max_rejects: int | None = Field(
        None, ge=0, description="rows that may be set aside in etl_rejects; more, and the run fails"
    )
    every: Every | None = Field(
        None, description="when it should run: a duration (1h) or a cron expression (0 6 * * 1-5)"
    )


@dataclass(frozen=True)
class Source:
    """One file in `sources/`. `connection` is as written: references are not yet resolved."""

    name: str
    protocol: str
    path: Path
    connection: Mapping[str, Any]
    pipelines: Mapping[str, PipelineConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """A project folder that has been read and found valid."""

    root: Path
    config: ProjectConfig
    sources: Mapping[str, Source]

    @property
    def lake(self) -> Path:
        return self.root / Path(self.config.lake).expanduser()

    @property
    def private(self) -> Path:
        """`.dw`: the embedded warehouse, logs, drafts, completion cache."""
        return self.root / ".dw"


@dataclass(frozen=True)
class Pipeline:
    """One named pipeline of a project, with every default filled in."""

    source: Source
    name: str
    config: PipelineConfig
    target: str
    schema: str

    @property
    def full_name(self) -> str:
        return f"{self.source.name}.{self.name}"


def find_root(start: Path) -> Path | None:
    """The nearest folder, from `start` upward, that has a dw.yaml."""
    return next((folder for folder in (start, *start.parents) if (folder / PROJECT_FILE).is_file()), None)


def load_project(folder: Path | str | None = None) -> Project:
    """Read the project at `folder`, else at DW_PROJECT, else from here upward.

    Raises ProjectMissing, or ConfigError for anything in it that is not valid.
    """
    given = folder or os.environ.get("DW_PROJECT")
    start = Path(given or ".").resolve()
    root = start if given and (start / PROJECT_FILE).is_file() else find_root(start)
    if root is None:
        raise ProjectMissing(f"there is no dw project here or above ({start})")
    project = Project(root, read_config(root), read_sources(root))
    _refuse_shared_tables(project)
    return project


def read_config(root: Path) -> ProjectConfig:
    """The project's dw.yaml. Raises ConfigError."""
    document = read_document(root / PROJECT_FILE)
    return _validate(ProjectConfig, document.data, document)


def read_sources(root: Path) -> dict[str, Source]:
    """Every source file of a project, by name."""
    found: dict[str, Source] = {}
    for path in source_files(root):
        if path.stem in found:
            raise ConfigError(
                f"{path}: there is a second file for source '{path.stem}'",
                hint=f"remove one of them: rm {path}",
            )
        try:
            found[path.stem] = read_source(path)
        except ConfigError as error:
            error.hint = error.hint or f"correct {path}, then: dw doctor"
            raise
    return found


def source_files(root: Path) -> list[Path]:
    folder = root / "sources"
    return sorted(p for p in folder.glob("*") if p.suffix in (".yaml", ".yml", ".json") and p.is_file())


def read_source(path: Path) -> Source:
    """One source file. Connection values are checked when the connector is made, not here."""
    return source_of(read_document(path))


def source_of(document: Document) -> Source:
    """`read_source` for a document already in hand. Raises ConfigError for what is not valid in it."""
    path = document.path
    values = dict(document.data)
    if not NAME.fullmatch(path.stem):
        raise ConfigError(
            f"{path}: a source's file name is letters, digits, _ and - (then .yaml)",
            hint=f"rename it: mv {path} …",
        )
    protocol = values.pop("protocol", None)
    if not isinstance(protocol, str):
        raise ConfigError(f"{path}:1:1: 'protocol' is missing", hint="add a line such as: protocol: postgres")
    entries = values.pop("pipelines", None) or {}
    if not isinstance(entries, dict):
        raise ConfigError(f"{document.where(['pipelines'])}: 'pipelines' is a mapping of names")
    pipelines: dict[str, PipelineConfig] = {}
    for name, entry in entries.items():
        if not NAME.fullmatch(str(name)):
            raise ConfigError(
                f"{document.where(['pipelines', name])}: a pipeline's name is letters, digits, _ and -"
            )
        nested = Document(
            path,
            entry or {},
            {k[2:]: v for k, v in document.marks.items() if k[:2] == ("pipelines", str(name))},
        )
        if not isinstance(nested.data, dict):
            raise ConfigError(f"{document.where(['pipelines', name])}: a mapping (key: value) is expected")
        pipelines[str(name)] = _checked(_validate(PipelineConfig, nested.data, nested), nested)
    return Source(path.stem, protocol, path, values, pipelines)


def _checked(config: PipelineConfig, document: Document) -> PipelineConfig:
    """What no single field can say: which settings need each other."""
    if config.write in KEYED and not config.key:
        raise ConfigError(
            f"{document.where(['write'])}: '{config.write}' needs a key", hint="add a line such as: key: [id]"
        )
    if config.lookback is not None and config.write not in KEYED:
        raise ConfigError(
            f"{document.where(['lookback'])}: 'lookback' reads rows again, so it needs write: merge and a key"
        )
    if config.deletes != "ignore" and config.write not in KEYED:
        raise ConfigError(
            f"{document.where(['deletes'])}: 'deletes' compares keys, so it needs write: merge and a key",
            hint="a replace leaves no deleted row behind",
        )
    if config.deletes == "hard" and config.write == "scd2":
        raise ConfigError(
            f"{document.where(['deletes'])}: a history forgets nothing, so it has no 'hard'",
            hint="deletes: soft ends the version of a row that is gone",
        )
    if config.lookback is not None and not config.cursor:
        raise ConfigError(f"{document.where(['lookback'])}: 'lookback' needs a cursor")
    return config


def _validate(model: type[Model], values: Mapping[str, Any], document: Document) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = [info.alias or name for name, info in model.model_fields.items()]
        raise invalid(document, error, known, str(document.path)) from None


def _refuse_shared_tables(project: Project) -> None:
    owners: dict[tuple[str, str], str] = {}
    for pipeline in pipelines_of(project):
        table = (pipeline.schema, pipeline.target)
        if table in owners:
            raise ConfigError(
                f"{pipeline.source.path}: {pipeline.full_name} and {owners[table]} both load "
                f"{pipeline.schema}.{pipeline.target}",
                hint="give one of them another target: in its source file",
            )
        owners[table] = pipeline.full_name


def with_source(project: Project, source: Source) -> Project:
    """The project as it would be with this source in it. Raises ConfigError where two share a table."""
    changed = replace(project, sources={**project.sources, source.name: source})
    _refuse_shared_tables(changed)
    return changed


def pipelines_of(project: Project) -> list[Pipeline]:
    """Every pipeline of the project, in the order of the files."""
    return [
        Pipeline(
            source,
            name,
            config,
            config.target or name,
            config.schema_ or project.config.schema_,
        )
        for source in project.sources.values()
        for name, config in source.pipelines.items()
    ]


def select(project: Project, names: Iterable[str]) -> list[Pipeline]:
    """The pipelines meant by names: a pipeline, a source (all of its), or `source.pipeline`.

    No pipeline twice. Raises NameUnknown with the nearest name, or when a bare pipeline name stands in
    more than one source.
    """
    every = pipelines_of(project)
    chosen: dict[str, Pipeline] = {}
    for name in names:
        matches = (
            [p for p in every if p.full_name == name]
            or [p for p in every if p.name == name]
            or [p for p in every if p.source.name == name]
        )
        if not matches:
            known = [*(p.name for p in every), *(p.full_name for p in every), *project.sources]
            raise NameUnknown(
                f"there is no pipeline or source '{name}'.{nearest(name, known)}",
                hint=f"known: {', '.join(sorted(p.full_name for p in every)) or 'none yet: dw add-source'}",
            )
        if len(matches) > 1 and matches[0].name == name:
            raise NameUnknown(
                f"'{name}' stands in {len(matches)} sources",
                hint="say which: " + " or ".join(p.full_name for p in matches),
            )
        chosen |= {p.full_name: p for p in matches}
    return list(chosen.values())


def connection_values(project: Project, source: Source) -> dict[str, Any]:
    """A source's connection, ready for `create_connector`: references resolved, paths from the project."""
    known = environment(project.root / ".env")
    values: dict[str, Any] = resolve(dict(source.connection), known, project.root, str(source.path))
    return {"protocol": source.protocol, **placed(source.protocol, values, project.root)}


def find_source(project: Project, name: str) -> Source:
    """A source by name. Raises NameUnknown with the nearest one."""
    if name in project.sources:
        return project.sources[name]
    raise NameUnknown(
        f"there is no source '{name}'.{nearest(name, project.sources)}",
        hint=f"known: {', '.join(project.sources) or 'none yet: dw add-source'}",
    )


def notify_urls(project: Project) -> list[tuple[str, str]]:
    """(as written, as meant) of each apprise URL under `notify:`. Raises SecretMissing."""
    if project.config.notify is None:
        return []
    known = environment(project.root / ".env")
    return [
        (written, str(resolve(written, known, project.root, PROJECT_FILE)))
        for written in project.config.notify.to
    ]


# -- writing ------------------------------------------------------------------------------------------


def write_source(
    root: Path,
    name: str,
    protocol: str,
    connection: Mapping[str, Any],
    pipelines: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write `sources/NAME.yaml` whole or not at all. Secrets must already be references.

    Raises ConfigError if the source exists.
    """
    path = root / "sources" / f"{checked_name(name)}.yaml"
    if path.exists():
        raise ConfigError(f"{path} is there already", hint="choose another name, or change the file itself")
    path.parent.mkdir(exist_ok=True)
    write_private(path, source_text(protocol, connection, pipelines))
    return path


def source_text(
    protocol: str, connection: Mapping[str, Any], pipelines: Mapping[str, Mapping[str, Any]]
) -> str:
    """The YAML text of a source file."""
    return dump_yaml(
        {"protocol": protocol, **connection, "pipelines": {k: dict(v) for k, v in pipelines.items()}}
    )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their own order; short lists stand on one line."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    def flow(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): flow(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            sequence = CommentedSeq([flow(item) for item in value])
            sequence.fa.set_flow_style()
            return sequence
        return as_typed(value)

    yaml = YAML()
    yaml.width = 100
    out = StringIO()
    yaml.dump(flow(values), out)
    return out.getvalue()


def as_typed(value: Any) -> Any:
    """A whole number as a person writes it: `30`, also where a setting takes fractions."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value

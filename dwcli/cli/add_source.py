"""`dw add-source`: connect data. A wizard for whatever the flags leave open.

    flags ──▶ draft ──▶ (questions) ──▶ live test ──▶ tables ──▶ key, cursor, write ──▶ sources/NAME.yaml

The draft is one plain dict: protocol, name, answers (config values by field), plans, every. It is saved
after each answer, without secrets, so that Ctrl-C loses nothing.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from dwcli.cli import forms, prompts
from dwcli.cli._drafts import drop_draft, read_draft, save_draft
from dwcli.cli._inference import (
    Plan,
    cautions,
    matching,
    pipeline_name,
    propose,
    same_choices,
    without_value,
    write_for,
)
from dwcli.cli._say import command_line, say, waiting
from dwcli.cli._secrets import is_tracked, write_secret
from dwcli.cli.settings import can_ask, settings
from dwcli.contract import KEYED, WriteDisposition
from dwcli.errors import AnswerMissing, ConfigError, ConnectionFailed, DwError, ResourceMissing, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dwcli.connectors import Connector
    from dwcli.contract import Resource
    from dwcli.project import Project

WRITES = get_args(WriteDisposition)
#: Fields that say where a source is, in kinds without host and port.
ADDRESSES = (
    "hosts",
    "servers",
    "bootstrap_servers",
    "base_url",
    "url",
    "wsdl_url",
    "uri",
    "api_url",
    "database_path",
    "path",
)
DRAFT = "add-source"
#: Messages of a queue that are looked at before its key is believed.
LOOKED_AT = 20
STOPPED = "Stopped. Answers saved (not the password). Continue: dw add-source --resume"


@dataclass(frozen=True)
class Choices:
    """What the flags say about pipelines. Values may be for one of them: `orders=updated_at`."""

    tables: tuple[str, ...]
    pipelines: tuple[str, ...]
    write: tuple[str, ...]
    key: tuple[str, ...]
    cursor: tuple[str, ...]
    every: str | None
    test: bool
    dry_run: bool


def add_source(
    given: dict[str, Any],
    protocol: Annotated[
        str | None, typer.Argument(help="Kind of source; `dw add-source PROTOCOL --help` lists its flags.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Name for it; its file is sources/NAME.yaml.")] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--tables", metavar="GLOB", help="One pipeline per match, such as 'public.*'."),
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option("--pipeline", metavar="NAME=QUERY", help="A pipeline: table, SQL, path or glob …"),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option("--write", metavar="append|replace|merge|scd2", help="How new rows meet the table."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="COLUMN", help="Column that identifies a row; again for each more."),
    ] = None,
    cursor: Annotated[
        list[str] | None,
        typer.Option("--cursor", metavar="COLUMN", help="Column that tells new rows from old ones."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            "--every", metavar="WHEN", help="How often it should run: 1h, 1d, or cron: '0 6 * * *'."
        ),
    ] = None,
    no_test: Annotated[bool, typer.Option("--no-test", help="Do not connect.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file; write nothing.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last wizard was stopped.")
    ] = False,
) -> None:
    """Add a source and its pipelines; asks for whatever the flags leave open.

    --key, --cursor and --write hold for every pipeline, or for one: --key orders=id.
    """
    from dwcli.project import load_project

    project = load_project(settings().project)
    draft: dict[str, Any] = read_draft(project.root, DRAFT) if resume else {}
    draft |= {word: value for word, value in (("protocol", protocol), ("name", name)) if value}
    choices = Choices(
        tuple(tables or ()),
        tuple(pipeline or ()),
        tuple(write or ()),
        tuple(key or ()),
        tuple(cursor or ()),
        every or draft.get("every"),
        not no_test,
        dry_run,
    )
    _check_choices(choices)
    with prompts.on_stderr(), _kept_when_stopped(project, draft):
        _add(project, draft, choices, given)


def _add(project: Project, draft: dict[str, Any], choices: Choices, given: Mapping[str, Any]) -> None:
    """The story of one new source."""
    model = _model(draft["protocol"]) if draft.get("protocol") else None
    if model is not None:
        draft["answers"] = draft.get("answers", {}) | forms.answers_from_flags(model, given)
    open_flags = _missing(model, draft, choices)
    if open_flags and not can_ask():
        raise _cannot_ask(model, draft, choices, open_flags)
    from dwcli.cli import _wizard

    wizard = bool(open_flags)
    if wizard:
        model = _wizard.ask_connection(project, draft)
    assert model is not None  # neither open nor asked for: then it was given
    _refuse_taken(project, draft["name"])
    make_paths_absolute(model, draft["answers"])
    plans = _choose_plans(project, draft, choices, wizard)
    if wizard and choices.every is None and not draft.get("every"):
        draft["every"] = _wizard.ask_every()
    _finish(project, draft, plans, choices.every or draft.get("every") or None, wizard, choices.dry_run)


def flags_for(argv: Sequence[str]) -> dict[str, inspect.Parameter]:
    """The flags that the connector on this command line adds."""
    protocol = protocol_on(argv)
    if not protocol:
        return {}
    own = set(inspect.signature(add_source).parameters)
    return {name: p for name, p in forms.parameters(_model(protocol)).items() if name not in own}


def protocol_on(argv: Sequence[str]) -> str:
    """The PROTOCOL of a command line: its first plain word, unless it is some flag's value."""
    switches = ("--no-test", "--dry-run", "--resume", "--help", "-h")
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if word not in switches and "=" not in word:
            next(words, None)
    return ""


def _model(protocol: str) -> type[BaseModel]:
    from dwcli.connectors import load

    model: type[BaseModel] = load(protocol).Config
    return model


# -- what is open -------------------------------------------------------------------------------------


def _check_choices(choices: Choices) -> None:
    from dwcli.clock import checked_every

    for value in choices.write:
        if value.rpartition("=")[2] not in WRITES:
            raise UsageError(f"--write is one of {', '.join(WRITES)}", hint="dw add-source --help")
    if choices.every:
        try:
            checked_every(choices.every)
        except ValueError as error:
            raise UsageError(f"--every: {error}", hint="--every 1h") from None
    if choices.tables and not choices.test:
        raise UsageError(
            "--tables looks into the source, --no-test does not", hint="--pipeline NAME=TABLE instead"
        )


def _missing(model: type[BaseModel] | None, draft: Mapping[str, Any], choices: Choices) -> list[str]:
    """Everything that must still be said, as the words that would say it."""
    words = [word.upper() for word in ("protocol", "name") if not draft.get(word)]
    if model is not None:
        words += [field.flags[0] for field in forms.missing(model, draft.get("answers", {}))]
    if not (choices.pipelines or choices.tables or draft.get("plans")):
        words.append("--pipeline")
    return words


def _cannot_ask(
    model: type[BaseModel] | None, draft: Mapping[str, Any], choices: Choices, open_flags: Sequence[str]
) -> AnswerMissing:
    """The error for a place without a person: all that is missing, as a command to fill in."""
    words = ["dw", "add-source", draft.get("protocol") or "PROTOCOL", draft.get("name") or "NAME"]
    if model is not None:
        words += forms.flags_from_answers(model, draft.get("answers", {}))
        for field in forms.missing(model, draft.get("answers", {})):
            words += [field.flags[0], "VARIABLE" if field.secret else field.name.upper()]
    words += _choice_flags(choices)
    if "--pipeline" in open_flags:
        words += ["--pipeline", "NAME=QUERY"]
    return AnswerMissing(
        "can't ask questions: no terminal (or --no-input)",
        why=f"missing: {', '.join(open_flags)}",
        hint=command_line(words),
    )


def _choice_flags(choices: Choices) -> list[str]:
    pairs = [("--tables", choices.tables), ("--pipeline", choices.pipelines), ("--key", choices.key)]
    pairs += [("--cursor", choices.cursor), ("--write", choices.write)]
    words = [word for flag, values in pairs for value in values for word in (flag, value)]
    return [*words, *(["--every", choices.every] if choices.every else [])]


def _refuse_taken(project: Project, name: str) -> None:
    from dwcli.project import NAME

    if not NAME.fullmatch(name):
        raise UsageError(
            "a source's name is letters, digits, _ and -, at most 63, and does not begin with -",
            hint="dw add-source PROTOCOL NAME",
        )
    if name in project.sources:
        raise ConfigError(
            f"there is a source '{name}' already ({project.sources[name].path})",
            hint=f"choose another name, or change it: dw edit {name}",
        )


def make_paths_absolute(model: type[BaseModel], answers: dict[str, Any]) -> None:
    """A path means the file that it means here and now, wherever `dw run` is typed later."""
    for field in forms.fields_of(model):
        value = answers.get(field.name)
        if field.type is Path and field.shape == "one" and value:
            answers[field.name] = str(Path(value).expanduser().absolute())


# -- the connection -----------------------------------------------------------------------------------


def open_connector(project: Project, draft: Mapping[str, Any]) -> Connector:
    """The connector of a draft, not yet connected; its batches are small, for a first look."""
    from dwcli.connectors import create_connector, placed
    from dwcli.references import environment, resolve

    connection, secrets = forms.split_secrets(draft["answers"], draft["name"])
    known = environment(project.root / ".env") | secrets
    subject = f"sources/{draft['name']}.yaml"
    values = placed(draft["protocol"], resolve(connection, known, project.root, subject), project.root)
    return create_connector({"batch_bytes": 64 * 1024, **values, "protocol": draft["protocol"]})


def test_live(connector: Connector) -> ConnectionFailed | None:
    """Try the connection layer by layer, each shown as it is found; the failure, if there is one."""
    from dwcli.cli.test_connection import checks
    from dwcli.render.sources import WARNING
    from dwcli.render.words import duration

    wide = 28 if shutil.get_terminal_size().columns >= 50 else 0
    say()
    say(f"  Testing {place_of(connector)}", fold=True)
    found = iter(checks(connector, ""))
    while True:
        with waiting("waiting for an answer"):
            check = next(found, None)
        if check is None:
            return None
        mark = "FAIL" if not check.ok else "!   " if check.layer == WARNING else "ok  "
        taken = duration(check.milliseconds / 1000) if mark == "ok  " else ""
        say(f"    {mark}  {check.detail:<{wide}} {taken}".rstrip(), fold=True)
        if not check.ok:
            return ConnectionFailed(check.detail, check.layer, hint=check.hint)


def place_of(connector: Connector) -> str:
    """Where a source is, as its configuration says it: host and port, an address, or its kind."""
    config = connector.config
    host, port = getattr(config, "host", None), getattr(config, "port", None)
    if host and port:
        return f"{host}:{port}"
    found = (getattr(config, name, "") for name in (*ADDRESSES, "endpoint"))
    address = next((value for value in found if isinstance(value, str | Path) and str(value)), None)
    place = str(address or connector.protocol)
    if not place.startswith("/"):
        return place
    place = str(Path(place).resolve()) if "/../" in place else place
    return place.removeprefix(f"{Path.cwd()}/")


# -- pipelines ----------------------------------------------------------------------------------------


def _choose_plans(project: Project, draft: dict[str, Any], choices: Choices, wizard: bool) -> list[Plan]:
    if draft.get("plans") and not (choices.pipelines or choices.tables):
        return [Plan(**{**plan, "key": tuple(plan["key"]), "why": ()}) for plan in draft["plans"]]
    from dwcli.cli import _wizard

    connector = None
    if choices.test:
        if wizard:
            connector = _wizard.connect_or_fix(project, draft)
        else:
            connector = open_connector(project, draft)
            failure = test_live(connector)
            if failure is not None:
                failure.hint = failure.hint or "check the flags; --no-test adds the source untested"
                raise failure
            connector.connect()
    taken = taken_names(project)
    if connector is None:
        if choices.pipelines:
            return _untested_plans(choices, taken)
        return _wizard.ask_plans_blind(draft["protocol"], taken)
    with closing(connector):
        if choices.pipelines or choices.tables:
            return _plans_from_flags(connector, choices, taken)
        plans = _wizard.ask_plans(connector, draft["name"], taken)
    draft["plans"] = [asdict(plan) for plan in plans]
    return plans


def taken_names(project: Project) -> set[str]:
    """Names that a new pipeline cannot have: its table, or the word after `dw run`, is another's."""
    from dwcli.project import pipelines_of

    return {word for p in pipelines_of(project) for word in (p.name, p.target)}


def _plans_from_flags(connector: Connector, choices: Choices, taken: set[str]) -> list[Plan]:
    plans: list[Plan] = []
    for name, resource in _wanted(connector, choices, taken):
        if not _scoped(choices.key, name):
            resource = _with_a_key_that_holds(connector, resource)
        plan = _with_flags(propose(name, resource), resource, choices)
        say(f"  {name:<16} {plan.write:<8} {'; '.join(plan.why)}".rstrip())
        for caution in cautions(resource, plan.key, plan.cursor, plan.write):
            say(f"    Note: {caution}", fold=True)
        plans.append(plan)
    return plans


def _with_a_key_that_holds(connector: Connector, resource: Resource) -> Resource:
    """A queue without its key, unless every message at its head has one: it is the sender's to give."""
    if resource.kind != "queue" or not resource.primary_key:
        return resource
    from dwcli.cli.preview import first_rows

    try:
        _, rows = first_rows(connector.fetch_data(resource.name).items, LOOKED_AT)
    except DwError:
        rows = []
    if rows and not without_value(resource.primary_key, rows):
        return resource
    columns = ", ".join(without_value(resource.primary_key, rows)) or resource.primary_key[-1]
    seen = f"messages have no {columns}" if rows else f"no message waits that shows whether {columns} is set"
    say(
        f"    Note: {seen}, so rows are appended, without a key (--key {columns} if every one has it)",
        fold=True,
    )
    return replace(resource, primary_key=(), key_reason="")


def _wanted(connector: Connector, choices: Choices, taken: set[str]) -> Iterator[tuple[str, Resource]]:
    """(name, resource) of each --pipeline, then of everything that --tables matches."""
    used: set[str] = set()
    queries: set[str] = set()
    for text in choices.pipelines:
        name, query = split_pipeline(text, taken | used)
        used.add(name)
        resource = connector.describe(query)
        queries.add(resource.name)
        # what a person typed is what is kept: a query, or a name without quotes
        yield name, replace(resource, name=query)
    resources = list(connector.discover()) if choices.tables else []
    for pattern in choices.tables:
        found = [r for r in matching(resources, pattern) if r.name not in queries]
        if not found and not matching(resources, pattern):
            raise ResourceMissing(
                f"nothing in the source matches {pattern}",
                hint="it has: " + (", ".join(r.name for r in resources[:10]) or "no tables at all"),
            )
        for resource in found:
            queries.add(resource.name)
            name = pipeline_name(resource.name, taken | used)
            used.add(name)
            yield name, resource if resource.columns else connector.describe(resource.name)


def split_pipeline(text: str, taken: set[str]) -> tuple[str, str]:
    """NAME=QUERY, or a QUERY that names itself. Raises UsageError for SQL without a name."""
    match = re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_-]{0,62})=(.+)", text, re.DOTALL)
    if match:
        if match[1] in taken:
            raise UsageError(
                f"there is a pipeline or a table '{match[1]}' already", hint="--pipeline OTHER=QUERY"
            )
        return match[1], match[2]
    if re.search(r"\s", text.strip()) or not text.strip():
        raise UsageError("a query needs a name", hint="--pipeline 'NAME=SELECT …'")
    return pipeline_name(text, taken), text


def _with_flags(plan: Plan, resource: Resource, choices: Choices) -> Plan:
    """A proposed plan with what the flags say put in its place; every combination is checked."""
    key = _scoped(choices.key, plan.name)
    cursor = _scoped(choices.cursor, plan.name)
    write = _scoped(choices.write, plan.name)
    _check_columns(resource, [*key, *cursor])
    if len(cursor) > 1:
        raise UsageError(f"pipeline {plan.name}: there can be one cursor", hint="give --cursor once")
    wanted = write[-1] if write else ""
    if wanted == "replace" and cursor:
        raise UsageError(
            f"pipeline {plan.name}: replace reloads everything, so a cursor has no place in it",
            hint="leave out --cursor, or --write merge",
        )
    new_key = tuple(key) or plan.key
    new_cursor = cursor[0] if cursor else plan.cursor
    if key and not cursor and not new_cursor and wanted != "replace":
        proved = [c.column for c in resource.cursors if c.sure and not c.append_only]
        new_cursor = proved[0] if proved else None
    if wanted == "replace":
        new_cursor = None
    new_write = wanted or write_for(resource, new_key, new_cursor)
    if new_write in KEYED and not new_key:
        raise UsageError(
            f"pipeline {plan.name}: {new_write} needs a key, and the source declares none",
            hint=f"--key {plan.name}=COLUMN",
        )
    changed = (new_key, new_cursor, new_write) != (plan.key, plan.cursor, plan.write)
    why = (_as_given(new_key, new_cursor),) if changed else plan.why
    return replace(plan, key=new_key, cursor=new_cursor, write=new_write, why=why)


def _as_given(key: Sequence[str], cursor: str | None) -> str:
    parts = [f"key {', '.join(key)}"] if key else []
    return "; ".join([*parts, *([f"cursor {cursor}"] if cursor else [])])


def _scoped(values: Sequence[str], name: str) -> list[str]:
    """The values for one pipeline: its own if it has any, else those for all."""
    own = [value.partition("=")[2] for value in values if value.startswith(f"{name}=")]
    return own or [value for value in values if "=" not in value]


def _check_columns(resource: Resource, columns: Sequence[str]) -> None:
    from dwcli.documents import nearest

    known = [column.name for column in resource.columns]
    for column in columns if known else ():
        if column not in known:
            raise UsageError(
                f"{resource.name} has no column '{column}'.{nearest(column, known)}",
                hint=f"it has: {', '.join(known[:30])}",
            )


def _untested_plans(choices: Choices, taken: set[str]) -> list[Plan]:
    """Plans for a source that nobody looked into: only what the flags say."""
    from dwcli.contract import Resource

    plans: list[Plan] = []
    for text in choices.pipelines:
        name, query = split_pipeline(text, taken | {plan.name for plan in plans})
        resource = Resource(query)
        plans.append(_with_flags(Plan(name, query, "replace"), resource, choices))
    return plans


# -- the end ------------------------------------------------------------------------------------------


def _finish(
    project: Project,
    draft: Mapping[str, Any],
    plans: Sequence[Plan],
    every: str | None,
    wizard: bool,
    dry_run: bool,
) -> None:
    """Write the secrets and the file, say how to do the same with flags, and what comes next."""
    from dwcli.cli import _wizard
    from dwcli.project import source_text, write_source

    name, protocol = draft["name"], draft["protocol"]
    connection, secrets = forms.split_secrets(draft["answers"], name)
    pipelines = {plan.name: plan.entry(every) for plan in plans}
    if dry_run:
        import sys

        sys.stdout.write(source_text(protocol, connection, pipelines))
        return
    if secrets and is_tracked(project.root, ".env"):
        raise UsageError(
            ".env is in git: a secret written there would be published with the next push",
            hint="git rm --cached .env, commit that, change the secrets in it, then try again",
        )
    for variable, value in secrets.items():
        write_secret(project.root, variable, value)
    path = write_source(project.root, name, protocol, connection, pipelines)
    drop_draft(project.root, DRAFT)
    say()
    say(f"  + {path.relative_to(project.root)}   (pipelines: {', '.join(pipelines)})", fold=True)
    for variable in secrets:
        say(f"  + .env   {variable} (0600, git-ignored)")
    _show_json(name, path, pipelines)
    flags = flag_form(draft, connection, plans, every)
    if wizard:
        load = _wizard.ask_load()
        say(f"\nSame without questions:\n  {flags.replace(chr(10), chr(10) + '  ')}")
        if load != "no":
            _load(name, 1000 if load == "first" else None)
            say(f"Next: {_look_at(project, name)}")
            return
    say(f"Next: dw run {next(iter(pipelines)) if len(pipelines) == 1 else name}")


def _look_at(project: Project, source: str) -> str:
    """The command that shows the first rows of what was loaded."""
    from dwcli.cli._record import read_last
    from dwcli.cli.query import quoted
    from dwcli.project import load_project, pipelines_of

    loaded = read_last(project)
    pipelines = [p for p in pipelines_of(load_project(project.root)) if p.source.name == source]
    with_rows = [p for p in pipelines if loaded.get(p.full_name, {}).get("rows_loaded")]
    pipeline = (with_rows or pipelines)[0]
    table = quoted(pipeline.schema, pipeline.target)
    # for a person to type, with names in quotes
    return command_line(["dw", "query", f"select * from {table} limit 5"])  # noqa: S608


def flag_form(
    draft: Mapping[str, Any], connection: Mapping[str, Any], plans: Sequence[Plan], every: str | None
) -> str:
    """The command that adds the same source without a question."""
    words = ["dw", "add-source", draft["protocol"], draft["name"]]
    words += forms.flags_from_answers(_model(draft["protocol"]), connection)
    for plan in plans:
        words += ["--pipeline", f"{plan.name}={plan.query}"]
    same = same_choices(plans)
    for index, plan in enumerate(plans):
        scope = "" if len(plans) == 1 else f"{plan.name}="
        for flag, values in (
            ("key", plan.key),
            ("cursor", (plan.cursor,) if plan.cursor else ()),
            ("write", (plan.write,)),
        ):
            if same[flag] and index:
                continue
            for value in values:
                words += [f"--{flag}", value if same[flag] else f"{scope}{value}"]
    return command_line([*words, *(["--every", every] if every else [])])


def _show_json(name: str, path: Path, pipelines: Mapping[str, Any]) -> None:
    if settings().json:
        from dwcli.render.console import print_json

        print_json({"ok": True, "source": name, "file": str(path), "pipelines": pipelines})


def _load(source: str, limit: int | None) -> None:
    from dwcli.cli.run import run

    run(names=[source], limit=limit)


@contextmanager
def _kept_when_stopped(project: Project, draft: dict[str, Any]) -> Iterator[None]:
    """Ctrl-C keeps the answers, without secrets, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if draft and not (project.root / "sources" / f"{draft.get('name')}.yaml").exists():
            say()
            leave(project, draft)
        raise


def leave(project: Project, draft: dict[str, Any]) -> None:
    """Keep the answers and say how to go on, or that they could not be kept."""
    problem = save_draft(project.root, DRAFT, draft)
    say(f"Stopped. The answers could not be saved: {problem}." if problem else STOPPED)


def failed_anyway(error: DwError) -> str:
    """An error in one line, for inside the wizard."""
    return error.message + (f" ({error.why})" if error.why else "")

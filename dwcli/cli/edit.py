"""`dw edit`: change a source or one of its pipelines, in its file.

    flags or questions ──▶ new text of the file ──▶ valid? ──▶ live test ──▶ the difference ──▶ written whole

Only the values that change are touched in the file. Until the last step nothing is: Ctrl-C leaves
everything as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli import forms, prompts
from dwcli.cli._output import tell, tell_next
from dwcli.cli._rewrite import GONE, difference, read_text, replace_text, rewritten
from dwcli.cli._say import command_line, say
from dwcli.cli.settings import can_ask, settings
from dwcli.errors import AnswerMissing, ConfigError, DriverMissing, DwError, SecretMissing, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dwcli.cli._meaning import Meaning
    from dwcli.contract import Resource
    from dwcli.project import Pipeline, PipelineConfig, Project, Source

#: Settings of a pipeline that the source itself can say something about.
LIVE = ("query", "key", "cursor")


@dataclass(frozen=True)
class Subject:
    """What is edited: a source's connection, or (pipeline is given) one entry of it. text: the whole file."""

    project: Project
    source: Source
    pipeline: Pipeline | None
    model: type[BaseModel]
    text: str

    @property
    def name(self) -> str:
        return self.pipeline.full_name if self.pipeline else self.source.name

    @property
    def current(self) -> dict[str, Any]:
        """The values that stand in the file, by key."""
        if self.pipeline is None:
            return dict(self.source.connection)
        given = self.pipeline.config.model_dump(by_alias=True, exclude_unset=True)
        return {key: value for key, value in given.items() if value is not None}

    def keys(self, field: str) -> tuple[str, ...]:
        return ("pipelines", self.pipeline.name, field) if self.pipeline else (field,)


def edit(
    given: dict[str, Any],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A source, a pipeline, or source.pipeline.")],
    editor: Annotated[
        bool, typer.Option("--editor", help="Open the file in $EDITOR; what is saved is checked first.")
    ] = False,
    no_test: Annotated[bool, typer.Option("--no-test", help="Do not connect.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the difference; write nothing.")] = False,
) -> None:
    """Change a source or a pipeline; asks when no flag says what. Comments and order of its file stay.

    The flags here are those of a pipeline; `dw edit SOURCE --help` has those of that source. An empty value
    takes a setting out: --cursor ''.
    """
    from dwcli.project import load_project

    if editor:
        from dwcli.cli._editor import edit_file

        if given or dry_run:
            raise UsageError(
                "--editor goes alone: what you save is what is meant", hint=f"dw edit {name} --editor"
            )
        edit_file(name)
        return
    subject = _subject(load_project(settings().project), name)
    if given:
        _change(subject, _wanted(subject, given), no_test, dry_run)
        return
    if not can_ask():
        raise AnswerMissing(
            "can't ask questions: no terminal (or --no-input)",
            why="no flag says what to change",
            hint=_example(subject),
        )
    with prompts.asking("Nothing more was changed."):
        _ask(subject, no_test, dry_run)


def flags_for(argv: Sequence[str]) -> dict[str, inspect.Parameter]:
    """The flags of what this command line edits: of a pipeline, unless it names a source."""
    from dwcli.cli._named import named
    from dwcli.project import PipelineConfig, load_project

    pipeline = forms.parameters(PipelineConfig, "Settings of a pipeline")
    words = [word for word in argv[1:] if not word.startswith("-")]
    if not words or "--editor" in argv:
        return pipeline
    try:
        project = load_project(settings().project)
    except DwError:
        if "--help" in argv or "-h" in argv:
            return pipeline
        raise
    for word in words:
        try:
            source, _, whole = named(project, word)
        except DwError:
            continue
        if whole:
            own = set(inspect.signature(edit).parameters)
            found = forms.parameters(
                _model(source.protocol), f"Settings of {source.name} ({source.protocol})"
            )
            found = {name: p for name, p in found.items() if name not in own}
            example = f"{source.name}.{next(iter(source.pipelines), 'PIPELINE')}"
            _refuse_foreign(argv, found, pipeline, "a pipeline", example)
            return found
        own_flags = forms.parameters(_model(source.protocol))
        _refuse_foreign(argv, pipeline, own_flags, "the source", source.name)
        break
    return pipeline


def _refuse_foreign(
    argv: Sequence[str], known: Mapping[str, Any], others: Mapping[str, Any], whose: str, name: str
) -> None:
    """Raises UsageError for a flag that belongs to the other half of the file."""
    for word in argv:
        flag = word.partition("=")[0]
        field = flag[2:].replace("-", "_")
        if flag.startswith("--") and field in others and field not in known:
            raise UsageError(f"{flag} is a setting of {whose}", hint=f"dw edit {name} {flag} …")


def _model(protocol: str) -> type[BaseModel]:
    from dwcli.connectors import load

    model: type[BaseModel] = load(protocol).Config
    return model


def _subject(project: Project, name: str) -> Subject:
    from dwcli.cli._named import named
    from dwcli.project import PipelineConfig

    source, pipelines, whole = named(project, name)
    text = read_text(source.path)
    if whole:
        return Subject(project, source, None, _model(source.protocol), text)
    return Subject(project, source, pipelines[0], PipelineConfig, text)


def _example(subject: Subject) -> str:
    if subject.pipeline:
        return f"dw edit {subject.name} --every 1h, or dw edit {subject.name} --help for all flags"
    flag = forms.fields_of(subject.model)[0].flags[0]
    return f"dw edit {subject.name} {flag} …, or dw edit {subject.name} --help for all flags"


# -- what is wanted -----------------------------------------------------------------------------------


def _wanted(subject: Subject, given: Mapping[str, Any]) -> dict[str, Any]:
    """Field → new value, or GONE, as the flags say. Raises UsageError for taking out what is needed."""
    fields = {field.name: field for field in forms.fields_of(subject.model)}
    gone = [name for name, field in fields.items() if given.get(_word(field)) in ("", [""])]
    for name in gone:
        if fields[name].required:
            raise UsageError(f"{fields[name].flag} is needed: it cannot be taken out")
    rest = {word: value for word, value in given.items() if value not in ("", [""])}
    wanted = forms.answers_from_flags(subject.model, rest)
    _make_paths_absolute(subject, wanted)
    for name, value in wanted.items():
        if fields[name].shape == "dict":
            merged = {**subject.current.get(name, {}), **value}
            wanted[name] = {key: item for key, item in merged.items() if item != ""} or GONE
    return wanted | dict.fromkeys(gone, GONE)


def _make_paths_absolute(subject: Subject, wanted: dict[str, Any]) -> None:
    """A path that is typed means a file from here on; one that stands in the file stays as it is written."""
    from dwcli.cli.add_source import make_paths_absolute

    typed = {name: value for name, value in wanted.items() if value is not GONE}
    typed = {name: value for name, value in typed.items() if value != subject.current.get(name)}
    make_paths_absolute(subject.model, typed)
    wanted |= typed


def _word(field: forms.Field) -> str:
    return field.flag[2:].replace("-", "_")


def _change(subject: Subject, wanted: Mapping[str, Any], no_test: bool, dry_run: bool) -> None:
    """Do what flags say: everything is checked before anything is written."""
    text, secrets = _new_text(subject, wanted)
    source = validated(subject.project, subject.source.path, text, secrets)
    if not no_test:
        failure = _tested(subject, source, wanted, secrets)
        if failure is not None:
            failure.hint = failure.hint or "check the flags; --no-test writes it untested"
            raise failure
    _finish(subject, text, secrets, source, dry_run)


def _new_text(subject: Subject, wanted: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The file with the wanted values in it, and the typed secrets that go to `.env`, by variable."""
    there = {name: value for name, value in wanted.items() if value is not GONE}
    plain, secrets = forms.split_secrets(there, subject.source.name)
    changes = {subject.keys(name): plain.get(name, GONE) for name in wanted}
    return rewritten(subject.text, subject.source.path, changes), secrets


def validated(project: Project, path: Path, text: str, secrets: Mapping[str, str] | None = None) -> Source:
    """The source that a file of this text would be. Raises ConfigError, with the line, for what is not valid.

    A secret without a value, and a driver that is not installed, are no faults of the file.
    """
    from dwcli.connectors import create_connector, placed
    from dwcli.documents import parse_document
    from dwcli.project import source_of, with_source
    from dwcli.references import environment, resolve

    source = source_of(parse_document(text, path))
    with_source(project, source)
    known = environment(project.root / ".env") | dict(secrets or {})
    try:
        values = resolve(dict(source.connection), known, project.root, str(path))
        create_connector({**placed(source.protocol, values, project.root), "protocol": source.protocol})
    except (SecretMissing, DriverMissing):
        pass
    return source


# -- the live test ------------------------------------------------------------------------------------


def _tested(
    subject: Subject, source: Source, wanted: Mapping[str, Any], secrets: Mapping[str, str]
) -> DwError | None:
    """Try what was changed; what failed, or None. Settings that the source knows nothing of are not tried."""
    from dwcli.cli.add_source import test_live

    try:
        connector = _connector(subject.project, source, secrets)
        if subject.pipeline is None:
            return test_live(connector)
        if not set(LIVE) & set(wanted):
            return None
        with closing(connector):
            connector.connect()
            config = source.pipelines[subject.pipeline.name]
            resource = connector.describe(config.query or subject.pipeline.name)
        _check_columns(resource, config)
        columns = _named_columns(config)
        say(f"  ok    {resource.name} {'has ' + ', '.join(columns) if columns else 'can be read'}")
    except DwError as error:
        return error
    return None


def _connector(project: Project, source: Source, secrets: Mapping[str, str]) -> Any:
    from dwcli.connectors import create_connector, placed
    from dwcli.references import environment, resolve

    known = environment(project.root / ".env") | dict(secrets)
    values = resolve(dict(source.connection), known, project.root, str(source.path))
    placed_values = placed(source.protocol, values, project.root)
    return create_connector({"batch_bytes": 64 * 1024, **placed_values, "protocol": source.protocol})


def _named_columns(config: PipelineConfig) -> list[str]:
    return [*config.key, *([config.cursor] if config.cursor else [])]


def _check_columns(resource: Resource, config: PipelineConfig) -> None:
    from dwcli.documents import nearest

    known = [column.name for column in resource.columns]
    for column in _named_columns(config) if known else ():
        if column not in known:
            raise UsageError(
                f"{resource.name} has no column '{column}'.{nearest(column, known)}",
                hint=f"it has: {', '.join(known[:30])}",
            )


# -- the end ------------------------------------------------------------------------------------------


def _finish(
    subject: Subject, text: str, secrets: Mapping[str, str], source: Source, dry_run: bool, ask: bool = False
) -> bool:
    """Show the difference and what it means, write it, say what comes next. False: it was not wanted."""
    found = _meanings(subject, source) if subject.pipeline else []
    _show(subject.project, subject.source.path, subject.text, text, secrets, found, dry_run)
    changed = text != subject.text or bool(secrets)
    if changed and not dry_run:
        if ask and not prompts.confirm("Write it?"):
            return False
        write(subject.project, subject.source.path, subject.text, text, secrets)
    _print(subject, text, secrets, found, changed, dry_run)
    if changed and not dry_run and subject.pipeline:
        refresh = [" --full-refresh"] if any(meaning.refresh for meaning in found) else [""]
        tell_next(f"dw run {subject.name}{refresh[0]}")
    return True


def _meanings(subject: Subject, source: Source) -> list[Meaning]:
    from dwcli.cli._meaning import meanings

    assert subject.pipeline is not None
    name = subject.pipeline.name
    if name not in source.pipelines:
        return []
    found = meanings(name, subject.pipeline.config, source.pipelines[name])
    return found if found and has_loaded(subject.project, subject.pipeline) else []


def has_loaded(project: Project, pipeline: Pipeline) -> bool:
    """Whether a pipeline has loaded rows, by the warehouse if it runs now, else by the local record."""
    from dwcli.cli._record import read_last
    from dwcli.cli.status import running_url
    from dwcli.staging.state import receipts
    from dwcli.warehouse import connect

    try:
        url = running_url(project)
        if url is not None:
            with closing(connect(url, patience=2)) as connection:
                return any(receipt.rows_loaded for receipt in receipts(connection, pipeline.full_name))
    except DwError:
        pass
    return bool(read_last(project).get(pipeline.full_name, {}).get("rows_loaded"))


def _show(
    project: Project,
    path: Path,
    before: str,
    after: str,
    secrets: Mapping[str, str],
    found: Sequence[Meaning],
    dry_run: bool,
) -> None:
    """The difference: on stdout where it is all that is asked for, else for the person."""
    import sys

    lines = difference(before, after, str(path.relative_to(project.root)))
    if dry_run and not settings().json:
        from dwcli.render.console import write_text

        write_text(f"{line}\n" for line in lines)
    else:
        show_difference(lines)
    for variable in secrets:
        say(f"  {'+' if not dry_run else '(+)'} .env   {variable} (0600, git-ignored)")
    for meaning in found:
        say(f"  Note: {meaning.text}", fold=True)
    if not lines and not secrets:
        say("Nothing to change: it is like that already.")
    sys.stdout.flush()


def show_difference(lines: Sequence[str]) -> None:
    """A unified diff for the person, in colour where there is colour."""
    from rich.text import Text

    from dwcli.render.words import escape

    for line in lines[2:]:
        style = {"+": "green", "-": "red", "@": "dim"}.get(line[:1], "")
        tell(Text(f"  {escape(line)}", style=style))


def write(project: Project, path: Path, before: str, after: str, secrets: Mapping[str, str]) -> None:
    """The secrets first, then the file that refers to them."""
    import os

    from dwcli.cli._secrets import write_secret

    for variable, value in secrets.items():
        write_secret(project.root, variable, value)
        if os.environ.get(variable, value) != value:
            say(
                f"  Note: this shell has another {variable} in its environment, which wins over .env",
                fold=True,
            )
    if after != before:
        replace_text(path, before, after)
        say(f"  ok    {path.relative_to(project.root)}")


def _print(
    subject: Subject,
    text: str,
    secrets: Mapping[str, str],
    found: Sequence[Meaning],
    changed: bool,
    dry_run: bool,
) -> None:
    from dwcli.render.console import print_json

    if settings().json:
        path = str(subject.source.path.relative_to(subject.project.root))
        print_json(
            {
                "ok": True,
                "name": subject.name,
                "file": path,
                "changed": changed and not dry_run,
                "dry_run": dry_run,
                "difference": "".join(f"{line}\n" for line in difference(subject.text, text, path)),
                "secrets": list(secrets),
                "notes": [meaning.text for meaning in found],
                "needs_full_refresh": any(meaning.refresh for meaning in found),
            }
        )


# -- the questions ------------------------------------------------------------------------------------


def _ask(subject: Subject, no_test: bool, dry_run: bool) -> None:
    """Ask what to change and how, until the person is content with the difference."""
    wanted: dict[str, Any] = {}
    while True:
        wanted |= _ask_values(subject, {**subject.current, **wanted})
        try:
            text, secrets = _new_text(subject, wanted)
            source = validated(subject.project, subject.source.path, text, secrets)
        except ConfigError as error:
            say(f"  FAIL  {error.message}", fold=True)
            if error.hint:
                say(f"        fix: {error.hint}", fold=True)
            continue
        if not no_test and wanted:
            again = _ask_test(subject, source, wanted, secrets)
            if again is None:
                continue
            wanted = again
            text, secrets = _new_text(subject, wanted)
            source = validated(subject.project, subject.source.path, text, secrets)
        if _finish(subject, text, secrets, source, dry_run, ask=True):
            _say_flags(subject, wanted, secrets)
            return
        if (
            prompts.choose("And now?", [("more", "Change something else"), ("quit", "Quit")], "quit")
            == "quit"
        ):
            say("Nothing was changed.")
            return


def _ask_test(
    subject: Subject, source: Source, wanted: dict[str, Any], secrets: Mapping[str, str]
) -> dict[str, Any] | None:
    """Try it; the values that were mended meanwhile. None: ask again what to change. Raises typer.Exit."""
    if subject.pipeline is None:
        from dwcli.cli import _wizard

        answers = {**subject.current, **wanted}
        answers = {name: value for name, value in answers.items() if value is not GONE}
        draft: dict[str, Any] = {"protocol": source.protocol, "name": source.name, "answers": answers}
        connector = _wizard.connect_or_fix(subject.project, draft, lambda project, draft: None)
        if connector is not None:
            connector.close()
        mended = {name: v for name, v in draft["answers"].items() if v != subject.current.get(name, GONE)}
        gone = [name for name in subject.current if name not in draft["answers"]]
        mended |= dict.fromkeys(gone, GONE)
        return mended
    failure = _tested(subject, source, wanted, secrets)
    if failure is None:
        return wanted
    say(f"  FAIL  {failure.message}", fold=True)
    if failure.hint:
        say(f"        fix: {failure.hint}", fold=True)
    options = [("again", "Change it again"), ("save", "Go on anyway"), ("quit", "Quit")]
    answer = prompts.choose("And now?", options, "again")
    if answer == "quit":
        say("Nothing was changed.")
        raise typer.Exit(1)
    return wanted if answer == "save" else None


def _ask_values(subject: Subject, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the person picks, each with its value now as the default."""
    fields = forms.fields_of(subject.model)
    width = max(len(field.name) for field in fields)
    labels = [(f.name, f"{f.name:<{width}}  {_shown(f, values.get(f.name))}".rstrip()) for f in fields]
    picked = prompts.pick(f"What to change in {subject.name}?", labels)
    wanted: dict[str, Any] = {}
    look = _looker(subject, {**values})
    for field in fields:
        if field.name in picked:
            wanted[field.name] = _ask_value(subject, field, {**values, **wanted}, look)
    if (
        subject.pipeline
        and wanted.get("write") in ("merge", "scd2")
        and not ({**values, **wanted}).get("key")
    ):
        key = next(field for field in fields if field.name == "key")
        wanted["key"] = _ask_value(subject, key, {**values, **wanted}, look)
    _make_paths_absolute(subject, wanted)
    return wanted


def _shown(field: forms.Field, value: Any) -> str:
    from pydantic import SecretStr

    from dwcli.render.words import escape

    if value is None or value is GONE:
        default = forms.as_text(field.default)
        return f"({default})" if default and not field.secret else "-"
    if isinstance(value, SecretStr) or (field.secret and not str(value).startswith("${")):
        return "***"
    return escape(forms.as_text(value))


def _looker(subject: Subject, values: Mapping[str, Any]) -> Callable[[str], Resource | None]:
    """A look at what the source says of a query, taken once and only when it is needed."""
    seen: dict[str, Resource | None] = {}

    def look(query: str) -> Resource | None:
        if query not in seen:
            try:
                with closing(_connector(subject.project, subject.source, {})) as connector:
                    connector.connect()
                    seen[query] = connector.describe(query)
            except DwError as error:
                say(f"  (the source cannot be asked: {error.message})", fold=True)
                seen[query] = None
        return seen[query]

    return look


def _ask_value(
    subject: Subject, field: forms.Field, values: Mapping[str, Any], look: Callable[[str], Resource | None]
) -> Any:
    """One new value; GONE where it is left empty."""
    now = values.get(field.name)
    now = None if now is GONE else now
    if subject.pipeline and field.name in ("key", "cursor"):
        resource = look(values.get("query") or subject.pipeline.name)
        if resource is not None and resource.columns:
            return _ask_column(field, resource, now)
    if subject.pipeline and field.name == "write":
        from dwcli.cli._wizard import WRITE_WORDS

        return prompts.choose("Write", [*WRITE_WORDS.items()], str(now or field.default))
    answer = forms.ask_field(_without_default(field), now, subject.source.name)
    return GONE if answer is None or answer == [] or answer == {} else answer


def _without_default(field: forms.Field) -> forms.Field:
    """The field as one whose empty answer means: take it out."""
    optional = not field.required and field.shape != "one"
    return replace(field, default=None) if optional else field


def _ask_column(field: forms.Field, resource: Resource, now: Any) -> Any:
    """Key or cursor, of the columns that there are; what the catalogue says for it stands beside it."""
    if field.name == "key":
        reasons = {column: resource.key_reason for column in resource.primary_key}
        columns = [c.name for c in resource.columns]
        width = max(len(column) for column in columns)
        options = [(column, f"{column:<{width}} {reasons.get(column, '')}".rstrip()) for column in columns]
        picked = prompts.pick("Key", [*options, ("", "none")] if now else options, now or [])
        return GONE if "" in picked else picked
    reasons = {candidate.column: candidate.reason for candidate in resource.cursors}
    columns = sorted((c.name for c in resource.columns), key=lambda name: name not in reasons)
    width = max(4, *(len(column) for column in columns))
    options = [(column, f"{column:<{width}} {reasons.get(column, '')}".rstrip()) for column in columns]
    answer = prompts.choose("Cursor", [*options, ("", "none")], now or "")
    return answer or GONE


def _say_flags(subject: Subject, wanted: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
    """The same as a command."""
    there = {name: value for name, value in wanted.items() if value is not GONE}
    plain, _ = forms.split_secrets(there, subject.source.name)
    words = ["dw", "edit", subject.name]
    for field in forms.fields_of(subject.model):
        if field.name in plain:
            words += forms.flag_words(field, plain[field.name])
        elif wanted.get(field.name) is GONE:
            words += [field.flag, ""]
    if len(words) > 3:
        say(f"\nSame without questions:\n  {command_line(words)}")

"""The questions of `dw add-source`, in the order of the screen. Each puts its answer into the draft."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import typer
from pydantic import BaseModel, SecretStr

from dwcli.cli import forms, prompts
from dwcli.cli._drafts import save_draft
from dwcli.cli._fidelity import lookalikes, report
from dwcli.cli._inference import (
    STREAMS,
    Plan,
    cautions,
    nouns,
    own_place,
    pipeline_name,
    propose,
    without_value,
    write_for,
)
from dwcli.cli._say import say, waiting
from dwcli.cli.add_source import (
    ADDRESSES,
    DRAFT,
    WRITES,
    failed_anyway,
    leave,
    make_paths_absolute,
    open_connector,
    split_pipeline,
    test_live,
)
from dwcli.contract import KEYED
from dwcli.errors import DwError, UsageError

if TYPE_CHECKING:
    from dwcli.connectors import Connector
    from dwcli.contract import Resource
    from dwcli.project import Project

NONE = ""
#: The last of what can be picked: something that the source does not list.
OTHER = ""
SECRETS = (
    "password",
    "token",
    "api_key",
    "sasl_password",
    "secret_access_key",
    "account_key",
    "key_file",
    "service_account_file",
    "service_account_info",
)
PLACES = (
    "queue",
    "topic",
    "subject",
    "bucket",
    "container",
    "keyspace",
    "spreadsheet_id",
    "remote_base_path",
)
TLS = (
    "sslmode",
    "sslrootcert",
    "encrypt",
    "trust_server_certificate",
    "hostname_in_certificate",
    "tls",
    "tls_verify",
    "ca_file",
    "ssl_ca",
    "tls_ca",
    "security_protocol",
    "known_hosts",
)
#: layer that failed → fields that may be wrong
SUSPECTS = {
    "name": ("host", *ADDRESSES, "endpoint", "bucket", "region"),
    "port": ("port", "host", *ADDRESSES, "endpoint"),
    "tls": (*TLS, "host", "port"),
    "login": (*SECRETS, "username", "sasl_username", "access_key_id", "account_name", *ADDRESSES),
    "database": ("database", "database_path", "service_name", "keyspace", "username"),
    "permission": ("username", "password", "database_path", "path"),
    "read": (*PLACES, "database", "path", "url", "virtual_host"),
}
WRITE_WORDS = {
    "merge": "merge (insert new, update changed)",
    "append": "append (every row that is read is added)",
    "replace": "replace (reload everything)",
    "scd2": "scd2 (keep every version of a row)",
}
EVERY = (
    ("1h", "1 hour"),
    ("15m", "15 min"),
    ("1d", "1 day"),
    (NONE, "only by hand"),
    ("*", "other     2h, or by the clock: 0 6 * * 1-5 is at 6:00 from Monday to Friday"),
)
#: Kinds of sources that people ask for most stand first.
FIRST = ("postgres", "mysql", "files", "http", "sqlite")
PREVIEW_ROWS = 3
#: Of many picked tables the first few are shown.
PREVIEWED = 3


# -- the connection -----------------------------------------------------------------------------------


def ask_connection(project: Project, draft: dict[str, Any]) -> type[BaseModel]:
    """Ask for protocol, name and every open field; the connector's model."""
    from dwcli.connectors import load

    if not draft.get("protocol"):
        draft["protocol"] = _ask_protocol()
        _save(project, draft)
    model: type[BaseModel] = load(draft["protocol"]).Config
    if not draft.get("name"):
        draft["name"] = _ask_name(project, draft["protocol"])
        _save(project, draft)
    answers = draft.setdefault("answers", {})
    open_fields = [field for field in forms.questions_of(model) if field.name not in answers]
    fields = {field.name for field in forms.questions_of(model)}
    if {"host", "username", "password"} <= fields and not {"host", "uri"} & set(answers):
        _ask_way(model, answers)

    def keep(so_far: dict[str, Any]) -> None:
        draft["answers"] = so_far
        _save(project, draft)

    draft["answers"] = forms.ask(model, answers, keep, draft["name"])
    if len(open_fields) > 1:
        _ask_more(project, draft)
    return model


def _ask_more(project: Project, draft: dict[str, Any]) -> None:
    """The settings that were not asked for, and those that were: any of them, before the first try."""
    while True:
        ready = prompts.choose(
            "Ready to connect?", [("yes", "Yes, try it"), ("no", "No, set or change something first")], "yes"
        )
        if ready == "yes":
            return
        _ask_again(draft, "*")
        _save(project, draft)


def _save(project: Project, draft: dict[str, Any]) -> None:
    if problem := save_draft(project.root, DRAFT, draft):
        _tell_unsaved(problem)


@cache
def _tell_unsaved(problem: str) -> None:
    say(f"  Note: the answers cannot be kept for --resume: {problem}", fold=True)


def _ask_protocol() -> str:
    from dwcli.connectors import literals, names, title

    def shown(name: str) -> str:
        words = (name, *literals(name).get("ALIASES", ()))
        known = title(name).lower().replace(" ", "").replace("_", "")
        others = [word for word in words if word.replace("_", "") not in known]
        return f"{title(name)}  {', '.join(others)}".rstrip()

    order = sorted(names(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return prompts.choose("What kind of source?", [(name, shown(name)) for name in order], search=True)


def _ask_name(project: Project, protocol: str) -> str:
    from dwcli.project import checked_name

    def check(typed: str) -> str:
        if typed in project.sources:
            return f"there is a source '{typed}' already"
        try:
            checked_name(typed)
        except ValueError as error:
            return str(error)
        return ""

    return prompts.text("Name", pipeline_name(protocol, set(project.sources)), check)


def _ask_way(model: type[BaseModel], answers: dict[str, Any]) -> None:
    """Field by field, or all at once as a URL. A URL is typed hidden: it holds the password."""
    way = prompts.choose(
        "How to connect", [("fields", "Host, user, password"), ("url", "Connection URL")], "fields"
    )
    if way == "url":
        typed = prompts.hidden("Connection URL", lambda url: "" if "://" in url else "protocol://user@host/…")
        answers |= answers_from_url(model, typed)
        say(f"  {_masked(typed)}")


def answers_from_url(model: type[BaseModel], url: str) -> dict[str, Any]:
    """A URL's parts as answers to the fields that the model has; the rest is left to be asked."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    found: dict[str, Any] = {
        "host": parts.hostname,
        "port": port,
        "database": unquote(parts.path.lstrip("/")) or None,
        "username": unquote(parts.username) if parts.username else None,
        "password": SecretStr(unquote(parts.password)) if parts.password else None,
        **dict(parse_qsl(parts.query)),
    }
    fields = {field.name for field in forms.fields_of(model)}
    return {name: value for name, value in found.items() if name in fields and value is not None}


def _masked(url: str) -> str:
    from dwcli.warehouse import mask_url

    return mask_url(url)


def connect_or_fix(
    project: Project, draft: dict[str, Any], save: Callable[[Project, dict[str, Any]], None] = _save
) -> Connector | None:
    """A connected source. After a failure: fix a field and try again, save anyway (None), or quit.

    save: keeps the answers so far. Raises typer.Exit on quit.
    """
    while True:
        layer = "config"
        try:
            connector = open_connector(project, draft)
            failure: DwError | None = test_live(connector)
            if failure is None:
                connector.connect()
                return connector
            layer = getattr(failure, "layer", layer)
        except DwError as error:
            failure = error
            say(f"    FAIL  {failed_anyway(error)}", fold=True)
        if failure.hint:
            say(f"          fix: {failure.hint}", fold=True)
        answer = _ask_what_now(draft, layer, failure.hint)
        if answer == "save":
            return None
        if answer == "quit":
            if save is _save:
                leave(project, draft)
            else:
                save(project, draft)
                say("Nothing was changed.")
            raise typer.Exit(1)
        if answer != "again":
            _ask_again(draft, answer)
            save(project, draft)


def _ask_what_now(draft: Mapping[str, Any], layer: str, hint: str) -> str:
    fields = forms.fields_of(_model_of(draft))
    answers = draft["answers"]
    asked = [
        f for f in fields if f.name in answers or (not f.advanced and forms.is_question(f, fields, answers))
    ]
    likely = SUSPECTS.get(layer, ())
    suspects = [f for f in fields if f.name in likely and (f in asked or layer in ("tls", "name"))]
    # of the ways to log in, the one that was taken stands first
    suspects.sort(key=lambda f: (layer == "login" and f.name not in answers, likely.index(f.name)))
    if layer == "read":  # what is wrong with a file is told by name
        named = [f for f in fields if re.search(rf"\b{f.name}\b", hint)]
        suspects = named + [f for f in suspects if f not in named]
    return prompts.choose(
        "And now?",
        [
            *((field.name, f"Fix {field.name}{_now(field, answers)}") for field in suspects or asked),
            ("*", "Fix something else"),
            ("again", "Try again as it is"),
            ("save", "Save anyway, untested"),
            ("quit", "Quit"),
        ],
    )


def _now(field: forms.Field, answers: Mapping[str, Any]) -> str:
    """The value that a field has, in brackets; no secret, and nothing where there is none."""
    from dwcli.render.words import escape

    value = forms.typed(field, answers.get(field.name, field.default))
    value = {"True": "yes", "False": "no"}.get(value, value) if field.type is bool else value
    return f" ({escape(value)})" if value and not field.secret and len(value) <= 50 else ""


def _ask_again(draft: dict[str, Any], name: str) -> None:
    """Ask for one field anew; "*" is for the one that the person picks from all."""
    every = sorted(forms.fields_of(_model_of(draft)), key=lambda field: field.name == "batch_bytes")
    if name == "*":
        width = min(max(len(field.name) for field in every), 20)
        labels = [
            (f.name, f"{f.name + ':':<{width + 1}} {f.question}{_now(f, draft['answers'])}") for f in every
        ]
        name = prompts.choose("Which?", labels, search=True)
    field = next(field for field in every if field.name == name)
    before = draft["answers"].get(name)
    answer = forms.ask_field(field, None if isinstance(before, SecretStr) else before, draft["name"])
    answer = forms.emptied(field) if answer is None else answer
    if answer is None:
        draft["answers"].pop(name, None)
    else:
        typed = {name: answer}
        make_paths_absolute(_model_of(draft), typed)
        draft["answers"] |= typed


def _model_of(draft: Mapping[str, Any]) -> type[BaseModel]:
    from dwcli.connectors import load

    model: type[BaseModel] = load(draft["protocol"]).Config
    return model


# -- tables -------------------------------------------------------------------------------------------


def ask_plans(connector: Connector, source: str, taken: set[str]) -> list[Plan]:
    """Which tables, and how each is loaded."""
    with waiting("listing what it has"):
        resources = list(connector.discover())
    if not resources:
        say("  The source lists nothing to pick from: type what to read.")
        picked = [OTHER]
    else:
        options = [*_labels(resources), (OTHER, f"something else: {query_words(connector.protocol)}")]
        only = [resource.name for resource in resources] if len(resources) == 1 else []
        picked = prompts.pick(f"Which {nouns(resources)}?", options, only)
    chosen = [resource for resource in resources if resource.name in picked]
    with waiting("reading their columns"):
        chosen = [r if r.columns else connector.describe(r.name) for r in chosen]
    named: dict[str, Resource] = {}
    for resource in chosen:
        named[pipeline_name(resource.name, taken | set(named))] = resource
    if OTHER in picked:
        name, resource = _ask_query(connector, taken | set(named))
        named[name] = resource
    for name in list(named)[:PREVIEWED]:
        rows = _preview(connector, named[name])
        named[name] = _with_a_key_that_holds(named[name], rows)
        for sentence in lookalikes(named[name], rows):
            say(f"  Note: {sentence}", fold=True)
    for line in report(named, connector.protocol, getattr(connector.config, "timezone", "UTC")):
        say(line, fold=True)
    if len(named) == 1:
        return [_ask_plan(name, resource) for name, resource in named.items()]
    plans = [propose(name, resource) for name, resource in named.items()]
    for plan in plans:
        say(f"  {plan.name:<15}  {plan.write:<7}  {'; '.join(plan.why)}".rstrip(), fold=True)
    if prompts.choose("Load them like this?", [("yes", "Yes"), ("ask", "Ask me for each")], "yes") == "yes":
        _say_cautions(plans, named)
        return plans
    chosen_plans: list[Plan] = []
    for number, (name, resource) in enumerate(named.items(), 1):
        say(f"  {name}  ({number} of {len(named)})")
        chosen_plans.append(_ask_plan(name, resource))
    return chosen_plans


def _say_cautions(plans: Sequence[Plan], named: Mapping[str, Resource]) -> None:
    found = [c for p in plans for c in cautions(named[p.name], p.key, p.cursor, p.write)]
    for caution in dict.fromkeys(found):
        say(f"  Note: {caution}", fold=True)


def _labels(resources: Sequence[Resource]) -> list[tuple[str, str]]:
    """(name, what the list shows): the name first, so that a narrow screen cuts the sizes."""
    from dwcli.render.words import compact, escape, size

    width = min(max(len(resource.name) for resource in resources), 40)
    several_kinds = len({resource.kind for resource in resources}) > 1
    labels: list[tuple[str, str]] = []
    for resource in resources:
        facts = []
        # a first file without rows says nothing of the others
        if resource.row_estimate is not None and (resource.row_estimate or resource.kind != "files"):
            facts.append(f"~{compact(resource.row_estimate)} rows")
        if resource.bytes_estimate is not None:
            facts.append(size(resource.bytes_estimate))
        if resource.kind != "table" and several_kinds:
            facts.append(resource.kind)
        labels.append((resource.name, f"{escape(resource.name):<{width}}  {'  '.join(facts)}".rstrip()))
    return labels


def _with_a_key_that_holds(resource: Resource, rows: Sequence[Mapping[str, Any]]) -> Resource:
    """The resource without its key, where a row on the screen has none."""
    empty = without_value(resource.primary_key, rows)
    if not empty:
        return resource
    say(f"  Note: {', '.join(empty)} is empty in rows above, so it is no key", fold=True)
    return replace(resource, primary_key=(), key_reason="")


def _preview(connector: Connector, resource: Resource) -> list[dict[str, Any]]:
    """The first rows, as they would be loaded; a source that cannot show them is no reason to stop."""
    import sys

    from dwcli.cli.preview import first_rows
    from dwcli.render.console import console
    from dwcli.render.preview import preview_table, text
    from dwcli.render.words import compact

    try:
        with waiting("reading first rows"):
            types, records = first_rows(connector.fetch_data(resource.name).items, PREVIEW_ROWS)
    except DwError as error:
        say(f"  (no preview: {failed_anyway(error)})", fold=True)
        return []
    of = f" of ~{compact(resource.row_estimate)}" if resource.row_estimate else ""
    say(f"\n  {resource.name}, {len(records)}{of} rows")
    if not types:
        return []
    screen = console(sys.stderr)
    rows = [[text(record.get(name)) for name in types] for record in records]
    screen.print(preview_table(types, rows, screen.width))
    say()
    return records


# -- key, cursor, write -------------------------------------------------------------------------------


def _ask_plan(name: str, resource: Resource) -> Plan:
    guess = propose(name, resource, sure_only=False)
    key = _ask_key(resource)
    cursor = _ask_cursor(resource, guess.cursor if key else None)
    write = _ask_write(resource, key, cursor)
    if write == "replace":
        cursor = None
    for caution in cautions(resource, key, cursor, write):
        say(f"  Note: {caution}", fold=True)
    return replace(guess, key=key, cursor=cursor, write=write)


def _ask_key(resource: Resource) -> tuple[str, ...]:
    columns = [column.name for column in resource.columns]
    options = [(NONE, "none      rows cannot be told apart: no merge")]
    if columns:
        options.append(("*", "other     pick the columns"))
    if len(options) == 1 and not resource.primary_key:
        return ()
    proposed = ",".join(resource.primary_key)
    if proposed:
        options.insert(0, ("=", f"{proposed:<9} {resource.key_reason}"))
    answer = prompts.choose("Key (tells rows apart)", options, "=" if proposed else NONE)
    if answer == "*":
        return tuple(prompts.pick("Key columns", [(column, column) for column in columns]))
    return resource.primary_key if answer == "=" else ()


def _ask_cursor(resource: Resource, usual: str | None) -> str | None:
    if resource.kind in STREAMS:
        say(f"  Cursor: {own_place(resource)}")
        return None
    candidates = {candidate.column: candidate.reason for candidate in resource.cursors}
    others = [column.name for column in resource.columns if column.name not in candidates]
    width = max([9, *(len(column) for column in candidates)])
    options = [(column, f"{column:<{width}} {reason}") for column, reason in candidates.items()]
    options.append((NONE, f"{'none':<{width}} {own_place(resource) or 'reload everything each run'}"))
    if others:
        options.append(("*", f"{'other':<{width}} pick a column"))
    answer = prompts.choose("Cursor (tells what is new)", options, usual or NONE)
    if answer == "*":
        return prompts.choose("Cursor column", [(column, column) for column in others], search=True)
    return answer or None


def _ask_write(resource: Resource, key: Sequence[str], cursor: str | None) -> str:
    usual = write_for(resource, key, cursor)
    unfit = {*(() if key else KEYED), *(("replace",) if resource.kind in STREAMS else ())}
    possible = [word for word in WRITE_WORDS if word not in unfit]
    options = [(word, WRITE_WORDS[word]) for word in sorted(possible, key=lambda word: word != usual)]
    return prompts.choose("Write (rows into the table)", options, usual)


def query_words(protocol: str) -> str:
    """What a person may type for this kind of source."""
    from dwcli.connectors import literals

    return str(literals(protocol).get("QUERY", "a table, query or path"))


def ask_plans_blind(protocol: str, taken: set[str]) -> list[Plan]:
    """A pipeline for a source that could not be reached: what to read, and how."""
    query = prompts.text(f"What to read: {query_words(protocol)}", check=_needed)
    name = prompts.text("Name of the pipeline", pipeline_name(query, taken), _needed)
    keys = prompts.text("Key columns, with commas between (empty: none)")
    key = tuple(word.strip() for word in keys.split(",") if word.strip())
    cursor = prompts.text("Cursor column (empty: none)") or None
    usual = "merge" if key and cursor else "append" if cursor else "replace"
    write = prompts.choose(
        "Write (rows into the table)",
        [(word, WRITE_WORDS[word]) for word in WRITES if word not in KEYED or key],
        usual,
    )
    return [Plan(name, query, write, key, None if write == "replace" else cursor)]


def _needed(typed: str) -> str:
    return "" if typed.strip() else "this is needed"


def _ask_query(connector: Connector, taken: set[str]) -> tuple[str, Resource]:
    def check(typed: str) -> str:
        if not typed.strip():
            return "this is needed"
        try:
            connector.describe(typed)
        except DwError as error:
            return failed_anyway(error)
        return ""

    query = prompts.text(f"What to read: {query_words(connector.protocol)}", check=check)
    resource = replace(connector.describe(query), name=query)
    try:
        name, _ = split_pipeline(query, taken)
    except UsageError:
        name = prompts.text("Name of the pipeline", check=_needed)
    return name, resource


# -- the end ------------------------------------------------------------------------------------------


def ask_every() -> str:
    """How often; "" is only by hand."""
    answer = prompts.choose("Every (how often it runs)", EVERY, "1h")
    if answer != "*":
        return answer
    return prompts.text("Duration, or cron: minute hour day month weekday", check=_no_time).strip()


def _no_time(typed: str) -> str:
    from dwcli.clock import checked_every

    try:
        checked_every(typed)
    except ValueError as error:
        return str(error)
    return ""


def ask_load() -> str:
    """yes, first or no."""
    return prompts.choose(
        "Load now?", [("yes", "Yes"), ("first", "First 1,000 rows only"), ("no", "No")], "yes"
    )

"""`dw init`: a project folder, and a warehouse that has been written to and read back."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli import prompts
from dwcli.cli._say import command_line, say
from dwcli.cli._secrets import ignore, write_secret
from dwcli.cli.settings import can_ask, settings
from dwcli.errors import AnswerMissing, DwError, UsageError

if TYPE_CHECKING:
    from dwcli.project import Project

PASSWORD_VARIABLE = "WAREHOUSE_PASSWORD"
KEEP = (("30d", "30 days"), ("90d", "90 days"), ("", "for ever"))


@dataclass(frozen=True)
class Answers:
    """What a new project is made from. keep "" is for ever; port None is any that is free."""

    name: str
    warehouse: str
    port: int | None
    lake: str
    schema: str
    keep: str


def init(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder of the project.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the project.", show_default="the folder's")
    ] = None,
    warehouse: Annotated[
        str | None,
        typer.Option(
            help="embedded: a PostgreSQL of its own; or the URL of one that is there.",
            metavar="embedded|URL",
            show_default="embedded",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port of its own PostgreSQL.", min=1, max=65535, show_default="a free one"),
    ] = None,
    lake: Annotated[
        str | None, typer.Option(help="Folder of the Parquet files.", show_default="lake")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="Schema that tables are loaded into.", show_default="public")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="How long loaded Parquet files are kept, such as 30d; '' is for ever.", show_default="30d"
        ),
    ] = None,
) -> None:
    """Make a project here or in DIR, with a warehouse that works. Never overwrites anything."""
    root = (folder or settings().project or Path()).absolute()
    given = {
        "name": name,
        "warehouse": warehouse,
        "port": port,
        "lake": lake,
        "schema": schema,
        "keep": keep,
    }
    if (root / "dw.yaml").is_file():
        _complete(root, folder)
        return
    with prompts.asking("Nothing was written."):
        answers = _collect(root, folder, given)
    _make(root, folder, answers)


def _make(root: Path, folder: Path | None, answers: Answers) -> None:
    if answers.warehouse != "embedded":
        _try_warehouse(answers.warehouse)
    created = write_project(root, answers)
    say("\n  " + "   ".join(f"+ {_shown(folder, name)}" for name in created))
    project = _load(root)
    try:
        facts = _prove(project, answers.port)
    except DwError as error:
        again = command_line(["dw", "init", *([str(folder)] if folder else [])])
        error.hint = f"{error.hint}; then {again} goes on from here" if error.hint else again
        raise
    _tell_end(root, folder, answers)
    _show_json(project, created, facts)


# -- answers ------------------------------------------------------------------------------------------


def _collect(root: Path, folder: Path | None, given: dict[str, Any]) -> Answers:
    """Every answer: given, else asked for, else (--yes) the default. Checked before anything is written."""
    open_questions = [flag for flag in ("warehouse", "keep") if given[flag] is None]
    ask = bool(open_questions) and not settings().yes
    if ask and not can_ask():
        words = ["dw", "init", *([str(folder)] if folder else [])]
        raise AnswerMissing(
            "can't ask questions: no terminal (or --no-input)",
            why="missing: " + ", ".join(f"--{flag}" for flag in open_questions),
            hint=command_line([*words, "--yes"]) + ", or give the missing flags",
        )
    warehouse, port = given["warehouse"], given["port"]
    if warehouse is None:
        warehouse = _ask_warehouse() if ask else "embedded"
        if warehouse == "embedded" and port is None and ask:
            port = _ask_port()
    keep = given["keep"]
    if keep is None:
        keep = prompts.choose("Keep staged Parquet for", KEEP, "30d") if ask else "30d"
    if port is not None and warehouse != "embedded":
        raise UsageError("--port is for a warehouse of dw's own", hint="write the port into the URL")
    return _checked(
        Answers(
            given["name"] or _name_of(root),
            warehouse,
            port,
            given["lake"] or "lake",
            given["schema"] or "public",
            "" if keep in ("", "forever", "ever") else keep,
        )
    )


def _checked(answers: Answers) -> Answers:
    from pydantic import ValidationError

    from dwcli.project import ProjectConfig
    from dwcli.warehouse import resolve_url

    resolve_url(answers.warehouse, {}, None)
    try:
        ProjectConfig.model_validate(
            {
                "name": answers.name,
                "lake": answers.lake,
                "keep": answers.keep or None,
                "schema": answers.schema,
            }
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(
            f"--{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}", hint="dw init --help"
        ) from None
    return answers


def _name_of(root: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", root.name).strip("_-")[:63] or "warehouse"


def _ask_warehouse() -> str:
    kind = prompts.choose(
        "Warehouse",
        [
            ("embedded", "Start Postgres here, managed by dw (recommended)"),
            ("url", "Use a Postgres I already have"),
        ],
        "embedded",
    )
    if kind == "embedded":
        return kind
    return prompts.hidden("URL, postgresql://user:password@host/database", _check_url)


def _check_url(typed: str) -> str:
    return "" if re.match(r"postgres(ql)?://.+", typed) else "postgresql://user:password@host:5432/database"


def _ask_port() -> int | None:
    """The port that was typed; None for the offered one: whichever is free when the server starts."""
    from dwcli.warehouse.embedded import FIRST_PORT, free_port

    offered = str(free_port(FIRST_PORT))

    def check(typed: str) -> str:
        return "" if typed.isdigit() and 0 < int(typed) < 65536 else "a number from 1 to 65535"

    typed = prompts.text("Port", offered, check)
    return None if typed == offered else int(typed)


# -- files --------------------------------------------------------------------------------------------


def write_project(root: Path, answers: Answers) -> list[str]:
    """Write what is missing of a project folder; the names of what was made. dw.yaml comes last.

    A folder without dw.yaml is no project yet: whatever stops this half-way, the next `dw init` does
    all of it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = _write_surroundings(root, answers.lake)
        warehouse = answers.warehouse
        if warehouse != "embedded":
            warehouse = _keep_password(root, warehouse)
        _write_new(root / "dw.yaml", config_text(answers, warehouse))
    except OSError as error:
        raise DwError(
            f"{error.filename or root} cannot be written",
            why=error.strerror or str(error),
            hint=f"check who owns the folder: ls -ld {shlex.quote(str(root))}",
        ) from None
    return ["dw.yaml", *made]


def _write_surroundings(root: Path, lake: str) -> list[str]:
    """sources/, .gitignore and .dw/, each where it is missing."""
    made = []
    if not (root / "sources").is_dir():
        (root / "sources").mkdir()
        made.append("sources/")
    if ignore(root, [".dw/", ".env", *([] if Path(lake).is_absolute() or "://" in lake else [f"{lake}/"])]):
        made.append(".gitignore")
    (root / ".dw").mkdir(mode=0o700, exist_ok=True)
    return made


def config_text(answers: Answers, warehouse: str) -> str:
    """The text of dw.yaml: few lines, each with its reason."""
    import json

    lines = (
        (f"name: {answers.name}", ""),
        (
            f"warehouse: {warehouse if warehouse == 'embedded' else json.dumps(warehouse)}",
            "embedded, or postgresql://user@host/database",
        ),
        (f"schema: {json.dumps(answers.schema)}", "tables are loaded into this schema"),
        (f"lake: {json.dumps(answers.lake)}", "what was read, as Parquet files"),
        (f"keep: {answers.keep or 'null'}", "how long loaded Parquet files stay; null: for ever"),
        ("memory: 512MB", "what one run may take"),
    )
    return "".join(f"{line:<24}# {reason}\n" if reason else f"{line}\n" for line, reason in lines)


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _keep_password(root: Path, url: str) -> str:
    """The URL with a reference in place of its password, which goes to .env."""
    from urllib.parse import unquote

    match = re.fullmatch(r"(\w+(?:\+\w+)?://[^:@/]*):(.*)(@[^@]*)", url, re.DOTALL)
    if not match or match[2].startswith("${"):
        return url
    write_secret(root, PASSWORD_VARIABLE, unquote(match[2]))
    return f"{match[1]}:${{env:{PASSWORD_VARIABLE}}}{match[3]}"


# -- the warehouse ------------------------------------------------------------------------------------


def _try_warehouse(url: str) -> None:
    """Reach a warehouse of somebody else's before anything is written."""
    import os

    from dwcli.references import resolve
    from dwcli.warehouse import connect

    connect(str(resolve(url, os.environ, Path(), "--warehouse"))).close()


def _prove(project: Project, port: int | None) -> dict[str, Any]:
    """Start the warehouse, write and read a row, make the audit table; says so line by line."""
    from dwcli.cli._warehouse import server_home, started, warehouse_url_for
    from dwcli.staging.audit import ensure_log
    from dwcli.warehouse import connect, embedded, mask_url, resolve_url

    facts: dict[str, Any] = {}
    begun = time.perf_counter()
    if resolve_url(None, _environment(project), project.config.warehouse, project.root) == "embedded":
        home = server_home(project)
        server, was_down = started(home, port)
        word = "started" if was_down else "runs"
        seconds = time.perf_counter() - begun
        say(f"  ok  Postgres {server.version} {word} on 127.0.0.1:{server.port}   ({seconds:.1f} s)")
        facts |= {"host": "127.0.0.1", "port": server.port}
        url = embedded.url(server)
    else:
        url = warehouse_url_for(project)
        say(f"  ok  Postgres answers: {mask_url(url)}")
    _write_and_read(url, project.config.schema_)
    say("  ok  wrote and read back a test row")
    with connect(url) as session:
        ensure_log(session)
    say("  ok  audit table ready")
    return facts


def _environment(project: Project) -> dict[str, str]:
    from dwcli.references import environment

    return environment(project.root / ".env")


def _write_and_read(url: str, schema: str) -> None:
    """One row in, the same row out, in the schema that tables are loaded into; nothing stays."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    from dwcli.errors import WarehouseError
    from dwcli.warehouse import connect

    table = Identifier(schema, "dw_init_check")
    try:
        with connect(url) as connection:
            connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(schema)))
            connection.commit()
            connection.execute(SQL("CREATE TABLE {} (word text)").format(table))
            connection.execute(SQL("INSERT INTO {} VALUES ('written')").format(table))
            row = connection.execute(SQL("SELECT word FROM {}").format(table)).fetchone()
            connection.rollback()
    except psycopg.Error as error:
        raise WarehouseError(
            f"the warehouse refused a test row in schema '{schema}'",
            why=error.diag.message_primary or type(error).__name__,
            hint=f'its owner may run: GRANT CREATE, USAGE ON SCHEMA "{schema}" TO the user of the URL',
        ) from None
    if row != ("written",):
        raise WarehouseError("the warehouse did not give back the row that was written")


# -- a project that is there, and the end -------------------------------------------------------------


def _complete(root: Path, folder: Path | None) -> None:
    """In a project: overwrite nothing, add what is missing, and have its warehouse up."""
    project = _load(root)
    count = len(project.sources)
    say(f"Already a dw project ({count} {'source' if count == 1 else 'sources'}). Nothing is overwritten.")
    try:
        made = _write_surroundings(root, project.config.lake)
    except OSError as error:
        raise DwError(f"{error.filename or root} cannot be written", why=error.strerror or "") from None
    if made:
        say("  " + "   ".join(f"+ {_shown(folder, name)}" for name in made))
    facts = _prove(project, None)
    say(f"Next: {_next_command(folder, 'dw run --all' if count else 'dw add-source')}")
    _show_json(project, made, facts)


def _load(root: Path) -> Project:
    from dwcli.project import load_project

    return load_project(root)


def _tell_end(root: Path, folder: Path | None, answers: Answers) -> None:
    words = ["dw", "init", *([str(folder)] if folder else [])]
    if answers.name != _name_of(root):
        words += ["--name", answers.name]
    if answers.warehouse != "embedded":
        from dwcli.warehouse import mask_url

        words += ["--warehouse", mask_url(answers.warehouse)]
    if answers.port:
        words += ["--port", str(answers.port)]
    if answers.lake != "lake":
        words += ["--lake", answers.lake]
    if answers.schema != "public":
        words += ["--schema", answers.schema]
    words += ["--keep", answers.keep, "--yes"]
    say(f"\nSame thing without questions:  {command_line(words)}")
    say("Tab-completion:                dw completion install")
    say(f"Next: {_next_command(folder, 'dw add-source')}")


def _shown(folder: Path | None, name: str) -> str:
    return f"{folder}/{name}" if folder and folder != Path() else name


def _next_command(folder: Path | None, command: str) -> str:
    return f"cd {shlex.quote(str(folder))} && {command}" if folder and folder != Path() else command


def _show_json(project: Project, created: list[str], facts: dict[str, Any]) -> None:
    if settings().json:
        from dwcli.render.console import print_json

        print_json(
            {
                "ok": True,
                "project": project.config.name,
                "root": str(project.root),
                "created": created,
                "sources": len(project.sources),
                "warehouse": "embedded" if facts else "url",
                **facts,
            }
        )

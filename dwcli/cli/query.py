"""`dw query`: ask the warehouse, in SQL."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dwcli.cli._output import tell
from dwcli.cli.settings import settings
from dwcli.errors import DwError, ProjectMissing, UsageError, WarehouseError

if TYPE_CHECKING:
    import psycopg

    from dwcli.render.results import ResultColumn, Row

Format = Literal["table", "csv", "tsv", "json", "parquet"]

#: Rows that a screen shows unless --max-rows says otherwise; a pipe or a file gets them all.
SCREENFUL = 500
#: Rows that come from the server at a time.
CHUNK = 1000


def query(
    sql: Annotated[
        str | None, typer.Argument(metavar="SQL", help="What to ask; without it psql or pgcli opens.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the SQL from a file; - is stdin."),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", help="Default: table on a screen, tsv into a pipe.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Allow changes; without it the session is read-only.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Rows at most; a screen shows {SCREENFUL}.")
    ] = None,
    spreadsheet: Annotated[
        bool,
        typer.Option(
            "--spreadsheet",
            help="In csv and tsv: a ' before text that a spreadsheet would run as a formula.",
        ),
    ] = False,
) -> None:
    """Ask the warehouse in SQL; read-only unless --write."""
    if sql is not None and file is not None:
        raise UsageError("either SQL or --file, not both", hint="dw query --file FILE")
    url = _warehouse()
    asked = _sql_from(sql, file)
    if asked is None:
        open_shell(url, write)
        return
    chosen = _format(format, output)
    if spreadsheet and chosen not in ("csv", "tsv"):
        raise UsageError(f"--spreadsheet is for csv and tsv, not for {chosen}", hint="add --format csv")
    with closing(_connect(url, write)) as connection, sql_errors_shown(asked):
        begun = time.perf_counter()
        if write:
            rows = _write(connection, asked, chosen, output, max_rows, spreadsheet)
        else:
            rows = _show(*stream(connection, asked), chosen, output, max_rows, spreadsheet)
        if rows is not None:
            tell(_measure(rows, time.perf_counter() - begun))


def _measure(rows: int, seconds: float) -> str:
    from dwcli.render import words

    return f"{words.count(rows, 'row')}, {words.duration(seconds)}"


def _warehouse() -> str:
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project
    from dwcli.warehouse import resolve_url

    try:
        return warehouse_url_for(load_project(settings().project))
    except ProjectMissing:
        if not (os.environ.get("DW_URL") or os.environ.get("DW_HOST")):
            raise
        return resolve_url(None, os.environ, None)


def _sql_from(sql: str | None, file: Path | None) -> str | None:
    """The SQL of this command line; None when a person should get a prompt."""
    if file is not None and str(file) != "-":
        try:
            sql = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read", why=str(error)) from None
    elif file is not None or (sql is None and not sys.stdin.isatty()):
        sql = sys.stdin.read()
    if sql is not None and not sql.strip():
        raise UsageError("there is no SQL to run", hint="dw query 'select 1'")
    return sql


def _format(given: Format | None, output: Path | None) -> Format:
    if settings().json and given in (None, "json"):
        return "json"
    if settings().json:
        raise UsageError(f"--json and --format {given} do not go together", hint="dw query --json …")
    by_suffix: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet"}
    if given is None and output is not None:
        return by_suffix.get(output.suffix.lower(), "tsv")
    if given == "parquet" and output is None:
        raise UsageError("Parquet needs a file to go to", hint="dw query … --output FILE.parquet")
    return given or ("table" if sys.stdout.isatty() else "tsv")


# -- asking --------------------------------------------------------------------------------------------


def _connect(url: str, write: bool) -> psycopg.Connection:
    """A session whose values all come as PostgreSQL's own text: no digit is lost in Python's types."""
    from psycopg.adapt import AdaptersMap
    from psycopg.types.string import TextLoader

    from dwcli.warehouse import connect

    connection = connect(url, autocommit=True, application_name="dw query")
    if not write:
        connection.execute("set default_transaction_read_only = on")
    plain: AdaptersMap = connection.adapters
    for info in plain.types:
        plain.register_loader(info.oid, TextLoader)
        plain.register_loader(info.array_oid, TextLoader)
    return connection


def stream(connection: psycopg.Connection, sql: str) -> tuple[list[ResultColumn], Iterator[Row]]:
    """Ask for one statement. The rows come in chunks: an answer of any size takes little memory."""
    cursor = connection.cursor()
    rows = cursor.stream(sql.encode(), size=CHUNK)
    first = list(islice(rows, 1))
    return columns_of(cursor), chain(first, rows)


def columns_of(cursor: psycopg.Cursor[Any]) -> list[ResultColumn]:
    """The columns of an answer."""
    from dwcli.render.results import ResultColumn

    types = cursor.adapters.types
    found: list[ResultColumn] = []
    for column in cursor.description or []:
        info = types.get(column.type_code)
        element = info.oid if info is not None and info.array_oid == column.type_code else 0
        digits = (column.precision, column.scale or 0) if column.precision else None
        found.append(ResultColumn(column.name, column.type_code, element, digits))
    return found


def _write(
    connection: psycopg.Connection,
    sql: str,
    format: Format,
    output: Path | None,
    max_rows: int | None,
    spreadsheet: bool,
) -> int | None:
    """Run statements that may change things, all of them or none. Shows each answer they have."""
    shown: int | None = None
    with connection.transaction():
        cursor = connection.execute(sql.encode())
        while True:
            if cursor.description:
                shown = (shown or 0) + _show(
                    columns_of(cursor), cursor, format, output, max_rows, spreadsheet
                )
            else:
                tell(cursor.statusmessage or "done")
            if not cursor.nextset():
                return shown


@contextmanager
def sql_errors_shown(sql: str) -> Iterator[None]:
    """Turn what the server says about the SQL into an error with the place marked."""
    import psycopg

    from dwcli.render.results import excerpt

    try:
        yield
    except psycopg.Error as error:
        said = error.diag
        if error.sqlstate is None and isinstance(error, psycopg.ProgrammingError):
            raise UsageError(
                "that statement has no answer to show", hint="dw query --write … for statements that change"
            ) from None
        room = max(20, shutil.get_terminal_size().columns - 20)
        place = excerpt(sql, int(said.statement_position), min(60, room)) if said.statement_position else ""
        raise WarehouseError(
            said.message_primary or "the connection to the warehouse was lost",
            why=place or (said.context or ""),
            hint=_hint(error),
            code="DW-SQL",
        ) from None


def _hint(error: psycopg.Error) -> str:
    if error.sqlstate == "25006":
        return "dw query --write …"
    if error.sqlstate == "42P01":
        return _table_meant(error.diag.message_primary or "")
    if error.sqlstate == "42601" and "multiple commands" in str(error):
        return "one statement at a time; with --write several may stand together"
    return error.diag.message_hint or ""


def _table_meant(said: str) -> str:
    """The table that a name which does not exist is nearest to, among those of the project."""
    from dwcli.documents import closest
    from dwcli.project import load_project, pipelines_of

    try:
        tables = [(p.schema, p.target) for p in pipelines_of(load_project(settings().project))]
    except DwError:
        return ""
    asked = said.partition('"')[2].rpartition('"')[0].rpartition(".")[2].lower()
    names = {table.lower(): quoted(schema, table) for schema, table in tables}
    near = closest(asked, names)
    return f"did you mean {names[near]}?" if near else "dw status lists what is loaded"


def quoted(schema: str, table: str) -> str:
    """A table's name as a person types it in SQL: quotes where it needs them, no schema if it is public."""
    words = [table] if schema == "public" else [schema, table]
    return ".".join(
        word if re.fullmatch(r"[a-z_][a-z0-9_]*", word) else '"' + word.replace('"', '""') + '"'
        for word in words
    )


# -- showing -------------------------------------------------------------------------------------------


def _show(
    columns: Sequence[ResultColumn],
    rows: Iterable[Row],
    format: Format,
    output: Path | None,
    max_rows: int | None,
    spreadsheet: bool,
) -> int:
    """Show an answer; how many rows it has."""
    from dwcli.render.console import write_text
    from dwcli.render.results import csv_lines, json_lines, tsv_lines, without_formulas, write_parquet

    rows = without_formulas(columns, rows) if spreadsheet else rows
    wanted = rows if max_rows is None else islice(rows, max_rows)
    if format == "table" and output is None:
        return _show_table(columns, rows, max_rows or SCREENFUL)
    tally = count()
    counted = (row for row, _ in zip(wanted, tally, strict=False))
    if format == "parquet" and output is not None:
        with whole(output) as path:
            write_parquet(columns, counted, path, CHUNK)
        return next(tally)
    writers = {"csv": csv_lines, "tsv": tsv_lines, "json": json_lines, "table": tsv_lines}
    lines = writers[format](columns, counted)
    if output is None:
        write_text(lines)
    else:
        with whole(output) as path, path.open("w", encoding="utf-8", newline="") as out:
            out.writelines(lines)
    return next(tally)


def _show_table(columns: Sequence[ResultColumn], rows: Iterable[Row], most: int) -> int:
    from dwcli.render.console import show, stdout
    from dwcli.render.results import result_table

    shown = list(islice(rows, most + 1))
    more = len(shown) > most
    show(result_table(columns, shown[:most], stdout().width))
    if more:
        tell(f"There is more: these are the first {most:,} rows. --max-rows N, or --output FILE for all.")
    return min(len(shown), most)


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A path to write to; what is written there becomes `output` when all of it went well, or not at all."""
    if output.exists() and not output.is_file():
        yield output  # a pipe or a device
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(output)
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written", why=error.strerror or str(error), hint="choose another --output"
        ) from None
    finally:
        part.unlink(missing_ok=True)


# -- the prompt ----------------------------------------------------------------------------------------


def open_shell(url: str, write: bool) -> None:
    """Become pgcli, else psql, connected to the warehouse. The password travels in the environment."""
    program = shutil.which("pgcli") or shutil.which("psql") or _own_psql()
    if program is None:
        raise DwError(
            "neither pgcli nor psql is installed", hint="pip install pgcli, or: dw query 'select 1'"
        )
    tell(f"{Path(program).name}, {'read and write' if write else 'read-only: changes need dw query --write'}")
    sys.stdout.flush()
    os.execve(program, [program], os.environ | shell_environment(url, write))


def _own_psql() -> str | None:
    from dwcli.warehouse.embedded import find_binaries

    try:
        return shutil.which("psql", path=str(find_binaries().path))
    except WarehouseError:
        return None


def shell_environment(url: str, write: bool) -> dict[str, str]:
    """libpq's variables for a warehouse: nothing of it stands in a command line that others can see."""
    from psycopg.conninfo import conninfo_to_dict

    variables = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE",
        "sslrootcert": "PGSSLROOTCERT",
        "sslcert": "PGSSLCERT",
        "sslkey": "PGSSLKEY",
        "options": "PGOPTIONS",
    }
    given = conninfo_to_dict(re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url))
    chosen = {variables[name]: str(value) for name, value in given.items() if name in variables}
    if not write:
        options = chosen.get("PGOPTIONS", "")
        chosen["PGOPTIONS"] = f"{options} -c default_transaction_read_only=on".strip()
    return chosen

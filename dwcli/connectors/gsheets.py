"""Google Sheets: worksheets, ranges and named ranges, each cell by what it holds and not by how it looks.

A cell is asked for its value and the kind of its format, so that a date is a date, although a sheet keeps
it as a number of days. Sheets keep times without a zone: they are read in the spreadsheet's own.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator

from dwcli.connectors._web import answered, unreachable
from dwcli.connectors._within import within
from dwcli.contract import LOCAL_PATH, Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

TITLE = "Google Sheets"
ALIASES = ("google_sheets", "sheets")
EXTRA = "gsheets"
STAND_IN = "a server of its own that answers as the Sheets API v4 does"
QUERY = "a sheet, a range such as Prices!A1:D20, or its name"
INCREMENTAL = ""
TYPING = "declared"
STREAMING = True

log = get_logger(__name__)

API = "https://sheets.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/spreadsheets.readonly"
#: Bytes of an answer per cell, with its value and its format
CELL_BYTES = 160
#: Rows that `describe` looks at
PEEK_ROWS = 500
TIMEOUT_SECONDS = 180
LONGEST_PAUSE_SECONDS = 64.0
#: Day 0 of a sheet
EPOCH = datetime.datetime(1899, 12, 30)
DAY_MILLISECONDS = 86_400_000


class Config(ConnectorConfig):
    """A Google spreadsheet, read by a service account."""

    spreadsheet_id: str = Field(description="id or address of the spreadsheet", min_length=1)
    service_account_file: Path | None = Field(
        None, description="file with the service account's key (JSON)", json_schema_extra=LOCAL_PATH
    )
    service_account_info: SecretStr | None = Field(
        None,
        description="the service account's key (JSON), instead of a file",
        json_schema_extra={"unless": "service_account_file"},
    )
    header: bool = Field(True, description="whether the first row names the columns")
    values: Literal["typed", "shown"] = Field(
        "typed",
        description="what to read of a cell: its value, or the text that is shown",
        json_schema_extra={"advanced": True},
    )
    timezone: str = Field(
        "",
        description="time zone of dates with a time; empty for the spreadsheet's own",
        json_schema_extra={"advanced": True},
    )
    max_wait_seconds: float = Field(
        600.0,
        ge=0,
        description="seconds to wait in all while the service asks for patience",
        json_schema_extra={"advanced": True},
    )
    api_url: str = Field(API, description="address of the Sheets API", json_schema_extra={"advanced": True})

    @field_validator("spreadsheet_id")
    @classmethod
    def _id_of_address(cls, value: str) -> str:
        match = re.search(r"/d/([A-Za-z0-9_-]+)", value)
        return match[1] if match else value.strip()

    @field_validator("service_account_info", mode="before")
    @classmethod
    def _info_as_text(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_key(self) -> Config:
        if (self.service_account_file is None) == (self.service_account_info is None):
            raise ValueError("give either service_account_file or service_account_info")
        return self


@dataclass(frozen=True)
class _Sheet:
    title: str
    rows: int
    columns: int


@dataclass(frozen=True)
class _Book:
    """What the spreadsheet says of itself."""

    title: str
    timezone: str
    sheets: tuple[_Sheet, ...]
    #: name → (sheet, first row, row behind the last, first column, column behind the last)
    named: dict[str, tuple[int, int, int, int, int]]


@dataclass
class Client:
    """A session with the API and the spreadsheet's contents page."""

    config: Config
    http: Any
    email: str
    book: _Book = field(default_factory=lambda: _Book("", "UTC", (), {}))
    closing: threading.Event = field(default_factory=threading.Event)
    waited: float = 0.0


def connect(config: Config) -> Client:
    """Sign in and read the list of sheets. Raises ConnectionFailed with the layer that failed."""
    try:
        from google.oauth2.service_account import Credentials
        from gspread.http_client import HTTPClient
    except ImportError as error:
        from dwcli.connectors import driver_missing

        raise driver_missing("gsheets", error) from None

    info = _account(config)
    try:
        credentials = Credentials.from_service_account_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionFailed(
            "the service account's key cannot be used",
            layer="login",
            why=f"{type(error).__name__}: it lacks a part, or the private key in it is damaged",
            hint="make a new key of the service account (type JSON) and give the file as it is",
        ) from None
    http = HTTPClient(credentials)
    http.set_timeout(TIMEOUT_SECONDS)
    client = Client(config, http, str(info.get("client_email", "")))
    try:
        client.book = _book(client)
    except DwError:
        close(client)
        raise
    return client


def close(client: Client) -> None:
    """End the session; a read that is under way ends with an error."""
    client.closing.set()
    client.http.session.close()


def _account(config: Config) -> dict[str, Any]:
    if config.service_account_file is not None:
        path = config.service_account_file.expanduser()
        try:
            text, where = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConnectionFailed(
                f"{path} cannot be read",
                layer="login",
                why=getattr(error, "strerror", None) or "it is not text",
                hint="check service_account_file",
            ) from None
    else:
        assert config.service_account_info is not None
        text, where = config.service_account_info.get_secret_value(), "service_account_info"
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    if not isinstance(info, dict) or info.get("type") != "service_account":
        raise ConnectionFailed(
            f"{where} is not the key of a service account",
            layer="login",
            why='it is a JSON object with "type": "service_account"',
            hint="make a key of the service account (type JSON) and give the file as it is",
        )
    return info


# -- the API ---------------------------------------------------------------------------------------------


def _get(client: Client, path: str, parameters: Sequence[tuple[str, str]]) -> bytes:
    """One answer of the API; patience and passing faults are waited for.

    Raises ConnectionFailed, ResourceMissing, QueryFailed.
    """
    url = f"{client.config.api_url.rstrip('/')}/v4/spreadsheets/{quote(client.config.spreadsheet_id)}{path}"
    pause = 1.0
    while True:
        if client.closing.is_set():
            raise ConnectionFailed("the read was stopped", layer="lost")
        found = _asked(client, url, parameters)
        if isinstance(found, bytes):
            return found
        # a little chance keeps several runs from asking at the same moment
        seconds = found.seconds or pause * (1 + random.random() / 4)
        if client.waited + seconds > client.config.max_wait_seconds:
            raise ConnectionFailed(
                f"Google Sheets still refuses after {client.waited:.0f} s of waiting",
                layer="lost",
                why=found.why,
                hint="run again later, or set max_wait_seconds higher",
            )
        log.info("gsheets: waiting %.0f s: %s", seconds, found.why)
        client.waited += seconds
        client.closing.wait(seconds)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True)
class _Later:
    """The API asks for patience: for so many seconds, if it says so."""

    why: str
    seconds: float = 0.0


def _asked(client: Client, url: str, parameters: Sequence[tuple[str, str]]) -> bytes | _Later:
    import requests
    from google.auth.exceptions import RefreshError, TransportError
    from gspread.exceptions import APIError

    try:
        response = answered(lambda: client.http.request("get", url, params=list(parameters)), client.closing)
        return bytes(response.content)
    except APIError as error:
        return _refused(client, error.response)
    except RefreshError as error:
        raise ConnectionFailed(
            f"Google does not accept the key of {client.email or 'the service account'}",
            layer="login",
            why=_words(error),
            hint="check that the service account and its key still exist, and this machine's clock",
        ) from None
    except (TransportError, requests.RequestException) as error:
        raise unreachable(error, client.config.api_url, client.closing.is_set()) from None


def _words(error: Exception) -> str:
    """What an error of the login says, without the answer it carries."""
    return str(error.args[0])[:300] if error.args else type(error).__name__


def _refused(client: Client, response: Any) -> _Later:
    """An error answer: one to wait for, or an error. `response` is requests' own."""
    try:
        said = response.json()["error"]
        why, status = str(said.get("message", ""))[:400], str(said.get("status", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        why, status = f"HTTP {response.status_code}", ""
    code = response.status_code
    if code == 429 or code >= 500 or status == "RESOURCE_EXHAUSTED":
        return _Later(why, _retry_after(response.headers.get("Retry-After", "")))
    if code == 401:
        raise ConnectionFailed(
            "Google does not accept the service account's token", layer="login", why=why,
            hint="check that the service account and its key still exist",
        )  # fmt: skip
    if code == 403:
        raise ConnectionFailed(
            f"{client.email or 'the service account'} may not read the spreadsheet",
            layer="permission",
            why=why,
            hint=f"share the spreadsheet with {client.email}; its project needs the Sheets API enabled",
        )
    if code == 404:
        raise ConnectionFailed(
            f"there is no spreadsheet {client.config.spreadsheet_id}",
            layer="database",
            why=why,
            hint="the id stands in the spreadsheet's address, between /d/ and /edit",
        )
    raise QueryFailed("Google Sheets refused the request", why=why)


def _retry_after(text: str) -> float:
    if text.strip().isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def _book(client: Client) -> _Book:
    fields = (
        "properties(title,timeZone),namedRanges(name,range),"
        "sheets(properties(sheetId,title,sheetType,gridProperties(rowCount,columnCount)))"
    )
    found = _parsed(_get(client, "", [("fields", fields)]))
    sheets: list[_Sheet] = []
    places: dict[int, int] = {}
    for sheet in found.get("sheets", ()):
        facts = sheet.get("properties", {})
        if facts.get("sheetType", "GRID") != "GRID":
            continue  # a chart, or a connected data source
        grid = facts.get("gridProperties", {})
        places[facts.get("sheetId", 0)] = len(sheets)
        sheets.append(_Sheet(facts["title"], grid.get("rowCount", 0), grid.get("columnCount", 0)))
    named: dict[str, tuple[int, int, int, int, int]] = {}
    for one in found.get("namedRanges", ()):
        area = one.get("range", {})
        place = places.get(area.get("sheetId", 0))
        if place is not None:
            named[one["name"]] = (
                place,
                area.get("startRowIndex", 0),
                area.get("endRowIndex", sheets[place].rows),
                area.get("startColumnIndex", 0),
                area.get("endColumnIndex", sheets[place].columns),
            )
    facts = found.get("properties", {})
    return _Book(facts.get("title", ""), facts.get("timeZone") or "UTC", tuple(sheets), named)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SourceData("the answer of Google Sheets is no JSON object", hint="check api_url")
    return found


# -- what a query names ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Area:
    """A rectangle of cells: rows and columns counted from 0, the ends exclusive."""

    sheet: str
    top: int
    bottom: int
    left: int
    right: int
    #: whether the query says where the columns end
    given: bool = False


_A1 = re.compile(r"\$?([A-Za-z]{0,3})\$?([0-9]{0,8})(?::\$?([A-Za-z]{0,3})\$?([0-9]{0,8}))?")


def _area(client: Client, query: str) -> _Area:
    """The cells that a query names. Raises ResourceMissing for a sheet that is not there."""
    book, wanted = client.book, query.strip()
    for title in (wanted, _unquoted(wanted)):
        for sheet in book.sheets:
            if sheet.title == title:
                return _Area(sheet.title, 0, sheet.rows, 0, sheet.columns)
    if wanted in book.named:
        place, top, bottom, left, right = book.named[wanted]
        return _Area(book.sheets[place].title, top, bottom, left, right, True)
    name, mark, cells = wanted.rpartition("!")
    title = _unquoted(name) if mark else (book.sheets[0].title if book.sheets else "")
    found = next((sheet for sheet in book.sheets if sheet.title == title), None)
    match = _A1.fullmatch(cells) if cells else None
    if found is None or match is None or not (match[1] or match[2]):
        titles = [sheet.title for sheet in book.sheets]
        raise ResourceMissing(
            f"the spreadsheet has no sheet or range '{wanted}'.{nearest(title or wanted, titles)}",
            hint=f"its sheets: {', '.join(titles[:20])}; a part of one: Sheet!A1:D20",
        )
    first, last = (match[1], match[2]), (match[3], match[4])
    if match[3] is None:
        last = first
    left = _column_number(first[0]) - 1 if first[0] else 0
    right = _column_number(last[0]) if last[0] else found.columns
    top = int(first[1]) - 1 if first[1] else 0
    bottom = int(last[1]) if last[1] else found.rows
    return _Area(
        found.title, max(0, top), min(bottom, found.rows), left, min(right, found.columns), bool(last[0])
    )


def _unquoted(name: str) -> str:
    if len(name) > 1 and name[0] == name[-1] == "'":
        return name[1:-1].replace("''", "'")
    return name


def _column_number(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - 64
    return number


def _letters(number: int) -> str:
    """Column 1 is A, column 27 AA."""
    text = ""
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def _a1(area: _Area, top: int, bottom: int) -> str:
    title = area.sheet.replace("'", "''")
    return f"'{title}'!{_letters(area.left + 1)}{top + 1}:{_letters(area.right)}{bottom}"


def discover(client: Client) -> Iterator[Resource]:
    """Every worksheet, in the order of the tabs."""
    for sheet in client.book.sheets:
        yield Resource(sheet.title, row_estimate=max(0, sheet.rows - int(client.config.header)), kind="sheet")


def describe(client: Client, query: str) -> Resource:
    """The columns of a sheet or range, with the types that its first rows show. Raises ResourceMissing."""
    area = _area(client, query)
    first = next(iter(_items(client, area, most=PEEK_ROWS)))
    types = dict(first.types)
    assert first.payload is not None and not isinstance(first.payload, (dict, list))
    columns = tuple(Column(name, types.get(name) or "text") for name in first.payload.columns)
    return Resource(
        query, columns, row_estimate=max(0, area.bottom - area.top - int(client.config.header)), kind="sheet"
    )


# -- reading ---------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The rows of a sheet, a range or a named range; rows without any value are left out.

    Raises ResourceMissing, ConnectionFailed, SourceData for a value beside the named columns.
    """
    for item in _items(client, _area(client, query)):
        yield within(item, cursor, query)


@dataclass(frozen=True)
class _Fault:
    """What a formula could not work out, such as #DIV/0!"""

    shown: str


def _items(client: Client, area: _Area, most: int | None = None) -> Iterator[IngestedItem]:
    from dwcli.connectors._formats.frames import unique_names
    from dwcli.connectors._rows import RowColumn, empty_item, items

    pages = _pages(client, area, most)
    top, first = next(pages, (area.top, []))
    names: list[str] = []
    if client.config.header and first:
        names = [_shown(cell) for cell in first[0]]
        first, top = first[1:], top + 1
    while names and not names[-1]:
        names.pop()
    width = area.right - area.left if area.given else max([len(names), *map(_filled, first)])
    names = list(unique_names(names + [""] * (width - len(names))))
    zone = client.config.timezone or client.book.timezone
    columns = [RowColumn(name, _fill(zone, client.config.values == "shown")) for name in names]
    if not columns:
        yield empty_item(columns)
        return
    rows = _rows(client, area, [(top, first)], pages, width)
    waiting: list[list[Any]] = []

    def fetch(count: int) -> Sequence[Sequence[Any]]:
        while len(waiting) < count:
            row = next(rows, None)
            if row is None:
                break
            waiting.append(row)
        taken = waiting[:count]
        del waiting[:count]
        return taken

    yield from items(fetch, columns, client.config.batch_bytes)


def _filled(cells: Sequence[Any]) -> int:
    """How many cells a row has up to the last that holds something."""
    return max((place for place, cell in enumerate(cells, 1) if cell.effectiveValue is not None), default=0)


def _rows(
    client: Client, area: _Area, first: list[tuple[int, Any]], pages: Iterator[tuple[int, Any]], width: int
) -> Iterator[list[Any]]:
    """The rows that hold a value, all of one width."""
    value = _shown_or_none if client.config.values == "shown" else _value
    for source in (first, pages):
        for top, page in source:
            for number, cells in enumerate(page):
                row = [value(cell) for cell in cells]
                while len(row) > width and row[-1] is None:
                    row.pop()
                if len(row) > width:
                    place = f"{_letters(area.left + len(row))}{top + number + 1}"
                    raise SourceData(
                        f"{area.sheet}!{place} holds a value, but its column has no name",
                        hint=f"name the column, or say which ones to read: "
                        f"{area.sheet}!{_letters(area.left + 1)}:{_letters(area.left + width)}",
                    )
                if any(cell is not None for cell in row):
                    yield row + [None] * (width - len(row))


def _cell_types() -> Any:
    """Decodes an answer to the cells alone, numbers as they are written."""
    import msgspec

    def listed(kind: Any) -> Any:
        return list[kind]

    def struct(name: str, **fields: Any) -> Any:
        return msgspec.defstruct(name, [(key, kind | None, None) for key, kind in fields.items()], gc=False)

    number_format = struct("NumberFormat", type=str)
    form = struct("Format", numberFormat=number_format)
    fault = struct("Fault", type=str, message=str)
    value = struct("Value", numberValue=Decimal, stringValue=str, boolValue=bool, errorValue=fault)
    cell = struct("Cell", effectiveValue=value, effectiveFormat=form, formattedValue=str)
    row = struct("Row", values=listed(cell))
    data = struct("Data", rowData=listed(row))
    sheet = struct("Sheet", data=listed(data))
    return msgspec.json.Decoder(struct("Book", sheets=listed(sheet)))


def _pages(client: Client, area: _Area, most: int | None) -> Iterator[tuple[int, list[list[Any]]]]:
    """The cells of the area, page by page: (first row, rows)."""
    import msgspec

    decoder = _cell_types()
    width = area.right - area.left
    bottom = area.bottom if most is None else min(area.bottom, area.top + most)
    cells = max(1000, client.config.batch_bytes // CELL_BYTES)
    step = max(1, cells // max(width, 1))
    # an error's text is what is shown; of all other cells it is asked for only where it is wanted
    fields = (
        "sheets(data(rowData(values(effectiveValue,formattedValue,effectiveFormat(numberFormat(type))))))"
    )
    for top in range(area.top, bottom, step) if width > 0 else ():
        place = _a1(area, top, min(top + step, bottom))
        text = _get(client, "", [("ranges", place), ("fields", fields)])
        try:
            book = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SourceData("the answer of Google Sheets cannot be read", why=str(error)) from None
        data = [part for sheet in book.sheets or () for part in sheet.data or ()]
        yield top, [row.values or [] for part in data[:1] for row in part.rowData or ()]


def _shown(cell: Any) -> str:
    return (cell.formattedValue or "").strip()


def _shown_or_none(cell: Any) -> str | None:
    return cell.formattedValue or None


def _value(cell: Any) -> Any:
    """What a cell holds. An empty text is what a formula gives that wants to show nothing."""
    value = cell.effectiveValue
    if value is None:
        return None
    if value.numberValue is not None:
        return _number(value.numberValue, _format_of(cell))
    if value.stringValue is not None:
        return value.stringValue or None
    if value.errorValue is not None:
        return _Fault(cell.formattedValue or value.errorValue.type or "error")
    return value.boolValue


def _format_of(cell: Any) -> str:
    form = cell.effectiveFormat
    return (form.numberFormat.type or "") if form and form.numberFormat else ""


def _number(number: Decimal, form: str) -> Any:
    """A number, or the day or time that its format says it is."""
    whole = number == number.to_integral_value()
    if form in ("DATE", "DATE_TIME", "TIME"):
        milliseconds = int((number * DAY_MILLISECONDS).to_integral_value())
        span = datetime.timedelta(milliseconds=milliseconds)
        if form == "TIME":
            return (EPOCH + span).time() if 0 <= milliseconds < DAY_MILLISECONDS else span
        try:
            moment = EPOCH + span
        except OverflowError:
            return int(number) if whole else number
        return moment.date() if form == "DATE" and milliseconds % DAY_MILLISECONDS == 0 else moment
    return int(number) if whole else number


def _fill(zone: str, shown: bool) -> Any:
    """A column's values by what they are; errors of formulas are NULL and counted."""
    from dwcli.connectors._rows import Filled, fill_values

    def fill(values: Sequence[Any], running: str) -> Filled:
        if shown:
            return fill_values(values, running or "text", zone)
        changed: dict[str, int] = {}
        if any(isinstance(value, _Fault) for value in values):
            for value in values:
                if isinstance(value, _Fault):
                    what = f"{value.shown} → NULL"
                    changed[what] = changed.get(what, 0) + 1
            values = [None if isinstance(value, _Fault) else value for value in values]
        kinds = {type(value) for value in values}
        if datetime.date in kinds and datetime.datetime in kinds:
            values = [_at_midnight(value) for value in values]
        if datetime.time in kinds and datetime.timedelta in kinds:
            values = [_as_span(value) for value in values]
        filled = fill_values(values, running, zone)
        return Filled(filled.series, filled.type, {**filled.changed, **changed})

    return fill


def _at_midnight(value: Any) -> Any:
    if type(value) is datetime.date:
        return datetime.datetime(value.year, value.month, value.day)
    return value


def _as_span(value: Any) -> Any:
    if isinstance(value, datetime.time):
        moment = datetime.datetime.combine(EPOCH.date(), value)
        return moment - EPOCH
    return value

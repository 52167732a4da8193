"""The Google Sheets connector, against a server that answers as the Sheets API v4 does."""

from __future__ import annotations

import datetime
import json
import re
import threading
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.pipeline.runs import rows_of

pytest.importorskip("gspread")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")


@dataclass
class Stand:
    """What the server holds, and what it was asked."""

    sheets: dict[str, list[list]] = field(default_factory=dict)
    named: list[dict] = field(default_factory=list)
    timezone: str = "Europe/Berlin"
    #: answers to give first: (status, message, headers)
    refusals: list[tuple[int, str, dict]] = field(default_factory=list)
    token_error: str = ""
    asked: list[str] = field(default_factory=list)
    cut: bool = False
    url: str = ""


def cell(value):
    """A cell in the API's form. ("DATE", 45000) is a number in that format, ("#N/A",) an error."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"effectiveValue": {"boolValue": value}, "formattedValue": str(value).upper()}
    if isinstance(value, str):
        return {"effectiveValue": {"stringValue": value}, "formattedValue": value}
    if isinstance(value, tuple) and len(value) == 1:
        return {"effectiveValue": {"errorValue": {"type": "N_A"}}, "formattedValue": value[0]}
    form, number = value if isinstance(value, tuple) else ("NUMBER", value)
    return {
        "effectiveValue": {"numberValue": number},
        "effectiveFormat": {"numberFormat": {"type": form}},
        "formattedValue": f"shown {number}",
    }


def trimmed(row):
    while row and row[-1] is None:
        row = row[:-1]
    return row


class Handler(BaseHTTPRequestHandler):
    stand: Stand

    def log_message(self, format, *values):
        pass

    def answer(self, status, document, headers=()):
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.stand.cut and "ranges" in self.path:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        if self.stand.token_error:
            self.answer(400, {"error": "invalid_grant", "error_description": self.stand.token_error})
        else:
            self.answer(200, {"access_token": "token-1", "expires_in": 3600, "token_type": "Bearer"})

    def do_GET(self):
        stand, parts = self.stand, urlsplit(self.path)
        parameters = parse_qs(parts.query)
        stand.asked.append(unquote(self.path))
        if self.headers["Authorization"] != "Bearer token-1":
            self.answer(401, {"error": {"code": 401, "message": "no token", "status": "UNAUTHENTICATED"}})
        elif stand.refusals:
            status, message, headers = stand.refusals.pop(0)
            self.answer(status, {"error": {"code": status, "message": message, "status": "X"}}, headers)
        elif parts.path != "/v4/spreadsheets/book-1":
            self.answer(404, {"error": {"code": 404, "message": "not found", "status": "NOT_FOUND"}})
        elif "ranges" in parameters:
            title, left, top, right, bottom = re.fullmatch(
                r"'(.*)'!([A-Z]+)(\d+):([A-Z]+)(\d+)", parameters["ranges"][0]
            ).groups()
            rows = stand.sheets[title.replace("''", "'")][int(top) - 1 : int(bottom)]
            cut = [trimmed(row[ord(left) - 65 : ord(right) - 64]) for row in rows]
            while cut and not cut[-1]:
                cut.pop()
            data = (
                {"rowData": [{"values": [cell(v) for v in row]} if row else {} for row in cut]} if cut else {}
            )
            self.answer(200, {"sheets": [{"data": [data]}]})
        else:
            sheets = [
                {
                    "properties": {
                        "sheetId": number,
                        "title": title,
                        "sheetType": "GRID",
                        "gridProperties": {
                            "rowCount": len(rows) + 5,
                            "columnCount": max([4, *map(len, rows)]),
                        },
                    }
                }
                for number, (title, rows) in enumerate(stand.sheets.items())
            ]
            sheets.append({"properties": {"sheetId": 99, "title": "Chart", "sheetType": "OBJECT"}})
            properties = {"title": "Shop", "timeZone": stand.timezone}
            self.answer(200, {"properties": properties, "sheets": sheets, "namedRanges": stand.named})


@pytest.fixture
def stand():
    stand = Stand()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stand": stand}))
    server.daemon_threads = True
    stand.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield stand
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def private_key():
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def account(stand, private_key):
    return {
        "type": "service_account",
        "client_email": "reader@shop.example",
        "private_key_id": "1",
        "private_key": private_key,
        "token_uri": f"{stand.url}/token",
    }


@pytest.fixture
def source(stand, account):
    opened = []

    def connect(**config):
        base = {"protocol": "gsheets", "spreadsheet_id": "book-1", "api_url": stand.url}
        if "service_account_file" not in config:
            base["service_account_info"] = json.dumps(account)
        connector = create_connector(base | config)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    items = list(connector.fetch_data(query, cursor).items)
    return items, [row for item in items for row in item.payload.rows()]


UTC = datetime.UTC


def test_cells_are_read_by_what_they_hold(stand, source):
    stand.sheets["Orders"] = [
        ["id", "Größe", "paid", "day", "at", "clock", "note", "mixed"],
        [1, 0.1, True, ("DATE", 45351), ("DATE_TIME", 45351.5), ("TIME", 0.25), "Zoë 🦆", 1],
        [2**53, 12.5, False, None, None, None, None, "x"],
        [None, ("CURRENCY", 3), None, ("DATE", 60), ("DATE_TIME", 45474.75), ("TIME", 0.5), "", None],
    ]
    (item,), rows = read(source(), "Orders")
    assert dict(item.types) == {
        "id": "bigint", "Größe": "numeric", "paid": "boolean", "day": "date", "at": "timestamptz",
        "clock": "time", "note": "text", "mixed": "text",
    }  # fmt: skip
    assert rows == [
        (1, "0.1", True, datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 11, tzinfo=UTC),
         "06:00:00", "Zoë 🦆", "1"),
        (2**53, "12.5", False, None, None, None, None, "x"),
        (None, "3", None, datetime.date(1900, 2, 28), datetime.datetime(2024, 7, 1, 16, tzinfo=UTC),
         "12:00:00", None, None),
    ]  # fmt: skip


def test_errors_of_formulas_are_null_and_counted(stand, source):
    stand.sheets["S"] = [["a", "b"], [("#N/A",), 1], [5, ("#DIV/0!",)], [("#N/A",), 2]]
    (item,), rows = read(source(), "S")
    assert rows == [(None, 1), (5, None), (None, 2)]
    assert item.metadata["changed"] == {"a: #N/A → NULL": 2, "b: #DIV/0! → NULL": 1}


def test_dates_with_and_without_a_time_are_timestamps(stand, source):
    stand.sheets["S"] = [
        ["at", "span"],
        [("DATE", 45351), ("TIME", 0.5)],
        [("DATE", 45351.25), ("TIME", 1.5)],
    ]
    (item,), rows = read(source(timezone="UTC"), "S")
    assert [row[0].hour for row in rows] == [0, 6] and item.types["at"] == "timestamptz"
    assert [row[1] for row in rows] == ["12:00:00", "36:00:00"] and item.types["span"] == "interval"


def test_a_number_that_is_no_day_stays_a_number(stand, source):
    stand.sheets["S"] = [["at"], [("DATE", 99_999_999)]]
    assert read(source(), "S")[1] == [(99_999_999,)]


def test_what_is_shown_is_read_on_demand(stand, source):
    stand.sheets["S"] = [["a", "b"], [1, ("DATE", 45351)], [None, ("#N/A",)]]
    (item,), rows = read(source(values="shown"), "S")
    assert rows == [("shown 1", "shown 45351"), (None, "#N/A")] and set(item.types.values()) == {"text"}


def test_names_that_are_missing_or_double_are_told_apart(stand, source):
    stand.sheets["S"] = [["id", None, "id", " "], [1, 2, 3, 4], [None] * 4, [5, None, None, None]]
    (item,), rows = read(source(), "S")
    assert item.payload.columns == ["id", "column_2", "id_2", "column_4"]
    assert rows == [(1, 2, 3, 4), (5, None, None, None)]


def test_without_a_header_the_columns_are_numbered(stand, source):
    stand.sheets["S"] = [[1, "a"], [2, "b"]]
    (item,), rows = read(source(header=False), "S")
    assert item.payload.columns == ["column_1", "column_2"] and rows == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("content", [[], [["id", "name"]]])
def test_an_empty_sheet_is_an_empty_batch(stand, source, content):
    stand.sheets["S"] = content
    (item,), rows = read(source(), "S")
    assert rows == [] and item.payload.columns == (content[0] if content else [])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("It's me!A1:B2", [("1", 2)]),
        ("'It''s me'!A1:B3", [("1", 2), ("4", 5)]),
        ("'It''s me'!B:C", [(2, 3), (5, 6)]),
        ("It's me!$B$1:$B", [(2,), (5,)]),
        ("A1:C2", [(7,)]),
        ("middle", [(2, 3), (5, 6)]),
        ("Q1!x", [(7,)]),
    ],
)
def test_a_query_is_a_sheet_a_range_or_a_named_range(stand, source, query, expected):
    stand.sheets["Q1!x"] = [["only"], [7]]
    stand.sheets["It's me"] = [["a", "b", "c"], ["1", 2, 3], ["4", 5, 6]]
    area = {"sheetId": 1, "startRowIndex": 0, "endRowIndex": 3, "startColumnIndex": 1, "endColumnIndex": 3}
    stand.named = [{"name": "middle", "range": area}]
    rows = [tuple(v for v in row if v is not None) for row in read(source(), query)[1]]
    assert rows == expected


def test_a_sheet_that_is_not_there_is_told_with_the_nearest_name(stand, source):
    stand.sheets["Orders"] = [["id"]]
    for query in ("Order", "Order!A1:B2", "Orders!nonsense", "Orders!"):
        with pytest.raises(ResourceMissing, match="no sheet or range"):
            read(source(), query)


def test_pages_lose_nothing_and_stay_small(stand, source):
    stand.sheets["S"] = [["id", "text"], *[[number, "x" * 50] for number in range(5000)]]
    items, rows = read(source(batch_bytes=64 * 1024), "S")
    assert [row[0] for row in rows] == list(range(5000))
    assert len(items) > 3 and max(item.payload.estimated_size() for item in items) < 128 * 1024
    assert sum("ranges" in path for path in stand.asked) > 10


def test_a_value_in_a_column_without_a_name_is_not_lost(stand, source):
    stand.sheets["S"] = [["id"], *[[number] for number in range(3000)], [1, None, "aside"]]
    with pytest.raises(SourceData, match="S!C3002 holds a value, but its column has no name"):
        read(source(batch_bytes=64 * 1024), "S")
    assert len(read(source(batch_bytes=64 * 1024), "S!A:A")[1]) == 3001


def test_the_cursor_bounds_the_rows(stand, source):
    stand.sheets["S"] = [["id"], *[[number] for number in range(10)], [None]]
    assert read(source(), "S", Cursor("id", "7", type="bigint"))[1] == [(7,), (8,), (9,)]


def test_discover_and_describe(stand, source):
    stand.sheets["Orders"] = [["id", "day"], [1, ("DATE", 45351)]]
    connector = source()
    assert [(r.name, r.kind) for r in connector.discover()] == [("Orders", "sheet")]
    resource = connector.describe("Orders")
    assert [(c.name, c.type) for c in resource.columns] == [("id", "bigint"), ("day", "date")]


# -- the service -----------------------------------------------------------------------------------------


def test_a_rate_limit_and_passing_faults_are_waited_for(stand, source):
    stand.sheets["S"] = [["id"], [1]]
    stand.refusals = [(429, "quota", {"Retry-After": "1"}), (503, "unavailable", {"Retry-After": "1"})]
    connector = source()
    assert connector.client.waited == 2.0 and read(connector, "S")[1] == [(1,)]
    stand.refusals = [(429, "Quota exceeded", {"Retry-After": "700"})]
    with pytest.raises(ConnectionFailed, match="still refuses after 2 s") as caught:
        read(connector, "S")
    assert caught.value.why == "Quota exceeded"


def test_closing_ends_a_wait(stand, source):
    stand.sheets["S"] = [["id"], [1]]
    connector = source()
    client = connector.client
    items = iter(connector.fetch_data("S").items)
    stand.refusals = [(429, "quota", {"Retry-After": "300"})] * 5
    failed = []

    def reading():
        try:
            next(items)
        except ConnectionFailed as error:
            failed.append(error)

    thread = threading.Thread(target=reading)
    thread.start()
    while len(stand.refusals) == 5:
        thread.join(0.01)
    connector.close()
    thread.join(30)
    assert not thread.is_alive() and client.closing.is_set() and failed[0].layer == "lost"


@pytest.mark.parametrize(
    ("status", "layer", "words"),
    [
        (401, "login", "does not accept the service account's token"),
        (403, "permission", "reader@shop.example may not read"),
        (404, "database", "there is no spreadsheet book-1"),
    ],
)
def test_refusals_name_their_layer(stand, source, status, layer, words):
    stand.refusals = [(status, "said so", {})] * 3
    with pytest.raises(ConnectionFailed, match=words) as caught:
        source()
    assert caught.value.layer == layer


def test_a_key_that_google_refuses(stand, source, account):
    stand.token_error = "Invalid JWT Signature."
    with pytest.raises(ConnectionFailed, match=r"does not accept the key of reader@shop\.example") as caught:
        source()
    assert caught.value.layer == "login" and "PRIVATE" not in f"{caught.value.why}"


@pytest.mark.parametrize(
    "info", ["no json", "[]", '{"type": "authorized_user"}', '{"type": "service_account"}']
)
def test_a_key_that_is_none(source, info):
    with pytest.raises(ConnectionFailed) as caught:
        source(service_account_info=info)
    assert caught.value.layer == "login"


def test_the_key_from_a_file_and_an_address_for_the_id(stand, source, account, tmp_path):
    stand.sheets["S"] = [["id"], [1]]
    path = tmp_path / "key.json"
    path.write_text(json.dumps(account))
    address = "https://docs.google.com/spreadsheets/d/book-1/edit#gid=0"
    assert read(source(service_account_file=str(path), spreadsheet_id=address), "S")[1] == [(1,)]
    with pytest.raises(ConnectionFailed, match=r"none\.json cannot be read"):
        source(service_account_file=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="either service_account_file or service_account_info"):
        create_connector({"protocol": "gsheets", "spreadsheet_id": "x"})


def test_a_server_that_cannot_be_reached(source):
    with pytest.raises(ConnectionFailed) as caught:
        source(api_url="http://127.0.0.1:9")
    assert caught.value.layer == "port"
    with pytest.raises(ConnectionFailed) as caught:
        source(api_url="http://sheets.invalid")
    assert caught.value.layer == "name"


def test_an_answer_that_is_cut_off_is_an_error(stand, source):
    stand.sheets["S"] = [["id"], *[[number] for number in range(100)]]
    connector = source()
    stand.cut = True
    with pytest.raises(ConnectionFailed) as caught:
        read(connector, "S")
    assert caught.value.layer == "lost"


# -- into the warehouse ----------------------------------------------------------------------------------


def test_a_sheet_in_the_warehouse(stand, account, tmp_path, warehouse_url, warehouse):
    stand.sheets["Price list"] = [
        ["Article No", "price", "since"],
        ["007", 0.1, ("DATE", 45351)],
        ["8", 2, None],
    ]
    (tmp_path / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "sources").mkdir()
    (tmp_path / "key.json").write_text(json.dumps(account))
    source = {
        "protocol": "gsheets",
        "spreadsheet_id": "book-1",
        "service_account_file": "key.json",
        "api_url": stand.url,
        "pipelines": {"prices": {"query": "Price list", "write": "replace"}},
    }
    (tmp_path / "sources" / "sheet.json").write_text(json.dumps(source))
    project = load_project(tmp_path)
    for _ in range(2):
        (result,) = run_project(
            project, select(project, ["prices"]), warehouse_url, RunOptions(), lambda event: None
        )
        assert result["status"] == "success"
    assert rows_of(warehouse, "select article_no, price, since from prices order by 1") == [
        ("007", Decimal("0.1"), datetime.date(2024, 2, 29)),
        ("8", Decimal(2), None),
    ]

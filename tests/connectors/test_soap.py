"""The SOAP connector, against a service that answers what each test puts into it."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.connectors._soap_service import serving
from tests.pipeline.runs import rows_of

pytest.importorskip("zeep")


@pytest.fixture
def service():
    with serving() as running:
        yield running


@pytest.fixture
def source(service):
    opened = []

    def connect(**config):
        connector = create_connector({"protocol": "soap", "wsdl_url": f"{service.url}/shop?wsdl"} | config)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    items = list(connector.fetch_data(query, cursor).items)
    return items, [row for item in items for row in item.payload.to_dicts()]


def orders(*rows):
    inner = "".join(row if row.startswith("<order") else f"<order>{row}</order>" for row in rows)
    return f"<GetOrdersResponse><count>{len(rows)}</count><orders>{inner}</orders></GetOrdersResponse>"


def column(service, source, *values, **config):
    """The type of a column and its values, each as it is written in the answer."""
    service.body = orders(*(f"<id>1</id>{value}" for value in values))
    items, rows = read(source(**config), "GetOrders")
    name = next(name for name in rows[0] if any(row[name] is not None and name != "id" for row in rows))
    return items[-1].types[name], [row[name] for row in rows], items[0].metadata.get("changed", {})


UTC = datetime.UTC


@pytest.mark.parametrize(
    ("values", "type", "expected"),
    [
        (["<total>50000.0000000000000001</total>", "<total> 1.50 </total>"], "numeric",
         ["50000.0000000000000001", "1.50"]),
        (["<total>x</total>", "<total>1</total>"], "text", ["x", "1"]),
        (["<total>1_0</total>"], "text", ["1_0"]),
        (["<day>2024-02-29</day>", ""], "date", [datetime.date(2024, 2, 29), None]),
        (["<at>2024-02-29T12:00:00+02:00</at>", "<at>2024-02-29T12:00:00</at>"], "timestamptz",
         [datetime.datetime(2024, 2, 29, 10, tzinfo=UTC), datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)]),
        (["<clock>12:00:00.5</clock>"], "time", ["12:00:00.500000"]),
        (["<paid>1</paid>", "<paid>false</paid>", "<paid/>"], "boolean", [True, False, None]),
        (["<weight>0.1</weight>", "<weight>-INF</weight>"], "double precision", [0.1, float("-inf")]),
        (["<big>18446744073709551615</big>"], "numeric", ["18446744073709551615"]),
        (["<lasts>-P1Y2M3DT4H5M6.7S</lasts>"], "interval",
         ["-1 years -2 months -3 days -4 hours -5 minutes -6.7 seconds"]),
        (["<lasts>P</lasts>"], "text", ["P"]),
        (["<seal>AAH/</seal>"], "bytea", [b"\x00\x01\xff"]),
        (["<mark>00ff</mark>"], "bytea", [b"\x00\xff"]),
        (["<name>Zoë 🦆 &lt;&amp;</name>", "<name/>", "<name> a </name>"], "text", ["Zoë 🦆 <&", "", " a "]),
        (["<tag>a</tag><tag>b &quot;</tag>", "", "<tag>c</tag>"], "jsonb", ['["a", "b \\""]', None, '["c"]']),
        (['<buyer vip="1"><name>Ann</name><limit>1.50</limit><phone>1</phone></buyer>'], "jsonb",
         ['{"@vip": true, "name": "Ann", "limit": 1.50, "phone": ["1"]}']),
    ],
)  # fmt: skip
def test_the_wsdl_decides_the_type_and_no_value_is_changed(service, source, values, type, expected):
    assert column(service, source, *values) == (type, expected, {})


@pytest.mark.parametrize(
    ("value", "expected", "changed"),
    [
        ("<day>2024-02-29+02:00</day>", datetime.date(2024, 2, 29), "day: offset of a date → left out"),
        ("<at>2024-02-29T12:00:00.1234567Z</at>",
         datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, UTC), "at: digits beyond microseconds → cut off"),
        ("<clock>12:00:00Z</clock>", "12:00:00", "clock: offset of a time → left out"),
    ],
)  # fmt: skip
def test_what_must_change_is_counted(service, source, value, expected, changed):
    assert column(service, source, value)[1:] == ([expected], {changed: 1})


def test_times_without_a_zone_are_in_the_zone_of_the_source(service, source):
    found = column(service, source, "<at>2024-07-01T12:00:00</at>", timezone="Europe/Berlin")
    assert found[1] == [datetime.datetime(2024, 7, 1, 10, tzinfo=UTC)]


def test_nil_missing_and_attributes(service, source):
    xsi = 'xmlns:i="http://www.w3.org/2001/XMLSchema-instance"'
    service.body = orders(
        f'<order no="7" {xsi}><id>1</id><name i:nil="true"/></order>', "<order><id>2</id></order>"
    )
    rows = read(source(), "GetOrders")[1]
    assert [(row["id"], row["name"], row["no"]) for row in rows] == [(1, None, 7), (2, None, None)]


def test_what_the_wsdl_does_not_know_is_a_column_too(service, source):
    rows = [f"<id>{n}</id>" for n in range(100)]
    service.body = orders(*rows, "<id>100</id><extra>x</extra><more><a>1</a></more>", "<id>101</id>")
    items, found = read(source(), "GetOrders")
    assert [row["id"] for row in found] == list(range(102))
    assert (found[100]["extra"], found[100]["more"]) == ("x", '{"a": "1"}')
    assert items[-1].types["extra"] == "text" and items[-1].types["more"] == "text"


def test_an_element_that_comes_again_is_a_list(service, source):
    service.body = orders("<id>1</id><name>a</name>", "<id>2</id><name>b</name><name>c</name><name>d</name>")
    rows = read(source(), "GetOrders")[1]
    assert [row["name"] for row in rows] == ["a", '["b", "c", "d"]']


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("GetOne(id=5)", "<GetOneResponse><id>5</id><total>1.10</total></GetOneResponse>",
         [{"id": 5, "total": "1.10"}]),
        ("GetNames", "<GetNamesResponse><name>a</name><name>é</name></GetNamesResponse>",
         [{"name": "a"}, {"name": "é"}]),
        ("GetAny", "<GetAnyResponse><row><a>1</a></row></GetAnyResponse>", [{"row": '{"a": "1"}'}]),
    ],
)  # fmt: skip
def test_rows_are_the_repeated_element_or_the_answer(service, source, query, body, expected):
    service.body = body
    assert read(source(), query)[1] == expected


def test_rows_by_a_path_of_ones_own(service, source):
    service.body = orders("<id>1</id><tag>a</tag><tag>b</tag>", "<id>2</id><tag>c</tag>")
    connector = source(data_path="order.tag")
    assert read(connector, "GetOrders")[1] == [{"tag": "a"}, {"tag": "b"}, {"tag": "c"}]
    service.body = "<GetAnyResponse><r><x><a>1</a></x><x><a>2</a><b/></x></r></GetAnyResponse>"
    assert [row["a"] for row in read(source(data_path="r.x"), "GetAny")[1]] == ["1", "2"]
    with pytest.raises(SourceData, match=r"holds no element r\.y"):
        read(source(data_path="r.y"), "GetAny")


def test_an_empty_answer_is_an_empty_batch_with_its_columns(service, source):
    service.body = orders()
    (item,), rows = read(source(), "GetOrders")
    assert rows == [] and dict(item.types)["total"] == "numeric" and len(item.payload.columns) == 15


@pytest.mark.parametrize("port", ["one", "two"])
def test_both_versions_of_soap(service, source, port):
    service.body = orders("<id>1</id>")
    assert read(source(port=port), "GetOrders")[1][0]["id"] == 1
    assert ("soap+xml" in service.headers[-1]["Content-Type"]) == (port == "two")


def test_the_rpc_style(service, source):
    connector = source(port="rpc")
    service.body = '<t:RpcResponse xmlns:t="urn:shop"><result xmlns=""><o:order xmlns:o="urn:shop">' + (
        "<o:id>1</o:id><o:total>1.10</o:total></o:order></result></t:RpcResponse>"
    )
    (row,) = read(connector, "Rpc(page=2)")[1]
    assert (row["id"], row["total"]) == (1, "1.10") and "<page>2</page>" in service.asked[-1]


# -- calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        'GetOrders(from="2024-01-01", page=1)',
        "GetOrders( from = '2024-01-01' , page = 1 )",
        'GetOrders({"from": "2024-01-01", "page": 1})',
        'GetOrders {"from": "2024-01-01", "page": 1}',
        "GetOrders(from=2024-01-01, page=1)",
    ],
)
def test_arguments(service, source, query):
    service.body = orders()
    read(source(), query)
    assert "from>2024-01-01</" in service.asked[-1] and "page>1</" in service.asked[-1]


def test_arguments_within_arguments(service, source):
    service.body = orders()
    read(source(), 'GetOrders(filter={"name": "Zoë", "limit": 1.10})')
    assert ":name>Zoë</" in service.asked[-1] and ":limit>1.10</" in service.asked[-1]


def test_an_argument_takes_the_cursor(service, source):
    service.body = orders(
        "<id>1</id><at>2024-01-01T00:00:00Z</at>", "<id>2</id><at>2024-01-02T00:00:00Z</at>"
    )
    connector = source()
    cursor = Cursor("at", "2024-01-02 00:00:00+00", type="timestamptz")
    assert [row["id"] for row in read(connector, "GetOrders(since={cursor})", cursor)[1]] == [2]
    assert "since>2024-01-02T00:00:00+00:00</" in service.asked[-1]
    assert len(read(connector, "GetOrders(since={cursor})")[1]) == 2
    assert "since" not in service.asked[-1]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("GetOrders(nothing=1)", "cannot be called with these arguments"),
        ("GetOne", "cannot be called with these arguments"),
        ("GetOrders(from=)", "arguments of GetOrders cannot be read"),
        ("GetOrders(from='x)", "arguments of GetOrders cannot be read"),
        ("GetOrders from", "arguments of GetOrders cannot be read"),
        ("GetOrders(page=1, page=2)", "arguments of GetOrders cannot be read"),
        ("GetOrders({)", "arguments of GetOrders cannot be read"),
    ],
)
def test_wrong_arguments(service, source, query, words):
    with pytest.raises(QueryFailed, match=words):
        read(source(), query)
    assert service.asked == []


def test_an_operation_that_is_not_there(source):
    with pytest.raises(ResourceMissing, match="Did you mean 'GetOrders'"):
        read(source(), "GetOrder(from=1)")


def test_discover_and_describe(source):
    connector = source()
    assert [r.name for r in connector.discover()] == ["GetOrders", "GetOne", "GetNames", "GetAny"]
    columns = {c.name: (c.type, c.nullable) for c in connector.describe("GetOrders").columns}
    assert columns["id"] == ("bigint", False) and columns["total"] == ("numeric", True)
    assert columns["tag"] == ("jsonb", True) and columns["no"] == ("bigint", True)


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("port", ["one", "two"])
def test_a_fault_is_an_error(service, source, status, port):
    service.status = status
    service.body = {
        "one": "<e:Fault><faultcode>e:Client</faultcode><faultstring>no such page</faultstring></e:Fault>",
        "two": "<e:Fault><e:Code><e:Value>e:Sender</e:Value></e:Code>"
        "<e:Reason><e:Text xml:lang='en'>no such page</e:Text></e:Reason></e:Fault>",
    }[port]
    with pytest.raises(QueryFailed, match="the service refused: no such page"):
        read(source(port=port), "GetOrders")


def test_a_password_that_ws_security_refuses(service, source):
    service.status = 500
    service.body = (
        "<e:Fault><faultcode>wsse:FailedAuthentication</faultcode><faultstring>no</faultstring></e:Fault>"
    )
    with pytest.raises(ConnectionFailed) as caught:
        read(source(username="ann", password="hunter22", security="token"), "GetOrders")
    assert caught.value.layer == "login" and "hunter22" in service.asked[-1]


def test_the_digest_of_a_password_goes_without_it(service, source):
    service.body = orders()
    read(source(username="ann", password="hunter22", security="digest"), "GetOrders")
    assert "hunter22" not in service.asked[-1] and "UsernameToken" in service.asked[-1]


def test_basic_authentication(service, source):
    service.user = ("ann", "hünter22")
    service.body = orders("<id>1</id>")
    assert len(read(source(username="ann", password="hünter22"), "GetOrders")[1]) == 1
    with pytest.raises(ConnectionFailed) as caught:
        source(username="ann", password="wrong")
    assert caught.value.layer == "login" and "wrong" not in f"{caught.value} {caught.value.why}"


def test_the_password_goes_to_the_service_alone(service, source):
    with serving() as other:
        service.user = ("ann", "secret")
        service.schema = service.schema.replace(
            "<xs:simpleType",
            f'<xs:import namespace="urn:x" schemaLocation="{other.url}/x.xsd"/><xs:simpleType',
            1,
        )
        other.user = ("ann", "secret")
        with pytest.raises(ConnectionFailed, match="does not accept"):
            source(username="ann", password="secret")


def test_a_wsdl_that_wants_a_local_file_is_refused(service, source):
    service.schema = service.schema.replace(
        "<xs:simpleType",
        '<xs:import namespace="urn:x" schemaLocation="file:///etc/hostname"/><xs:simpleType',
        1,
    )
    with pytest.raises(ConnectionFailed, match="wants the local file"):
        source()


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("head", [BOMB, '<!DOCTYPE x SYSTEM "file:///etc/passwd">'])
def test_a_document_type_is_refused_in_the_wsdl_and_in_the_answer(service, source, head):
    connector = source()
    space = "http://schemas.xmlsoap.org/soap/envelope/"
    service.raw = f'<?xml version="1.0"?>{head}<e:Envelope xmlns:e="{space}"><e:Body/></e:Envelope>'.encode()
    with pytest.raises(SourceData, match="document type or entities, which are refused"):
        read(connector, "GetOrders")
    service.head = head
    with pytest.raises(ConnectionFailed, match="document type or entities, which are refused"):
        source()


@pytest.mark.parametrize(
    ("raw", "content_type", "words"),
    [
        (b"", "text/xml", "not whole, or no XML"),
        (b"<html/>", "text/xml", "no SOAP envelope"),
        (b"<html>", "text/html", "text/html, which is not read"),
        (b"--x", 'multipart/related; type="application/xop+xml"; boundary=x', r"attachments \(MTOM\)"),
        (b'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"/>', "text/xml", "has no body"),
        (
            b'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><a>',
            "text/xml",
            "not whole",
        ),
    ],
)
def test_an_answer_that_is_no_soap(service, source, raw, content_type, words):
    service.raw, service.content_type = raw, content_type
    with pytest.raises(SourceData, match=words):
        read(source(), "GetOrders")


def test_a_cut_connection_is_an_error(service, source):
    service.body, service.cut = orders(*["<id>1</id>"] * 1000), True
    with pytest.raises(ConnectionFailed) as caught:
        read(source(), "GetOrders")
    assert caught.value.layer == "lost"


@pytest.mark.parametrize("silent", [True, False])
def test_closing_ends_a_read_under_way(service, source, silent):
    service.body = "<GetOrdersResponse><orders>" + "<order><id>1</id></order>" * 20_000
    service.stall = threading.Event()
    service.silent = service.stall if silent else None
    connector = source(batch_bytes=64 * 1024)
    failed = []

    def reading():
        try:
            read(connector, "GetOrders")
        except ConnectionFailed as error:
            failed.append(error)

    thread = threading.Thread(target=reading)
    thread.start()
    assert service.stalled.wait(30)
    connector.close()
    thread.join(30)
    service.stall.set()
    assert not thread.is_alive() and failed[0].layer == "lost"


@pytest.mark.parametrize(
    ("config", "layer", "words"),
    [
        ({"wsdl_url": "http://127.0.0.1:9/x?wsdl"}, "port", "cannot be reached"),
        ({"wsdl_url": "http://shop.invalid/x?wsdl"}, "name", "does not resolve"),
        ({"wsdl_url": "/does/not/exist.wsdl"}, "name", "cannot be read"),
        ({"service": "Shap"}, "database", "Did you mean 'Shop'"),
        ({"port": "three"}, "database", "no port 'three'"),
    ],
)
def test_what_cannot_be_connected_names_its_layer(source, config, layer, words):
    with pytest.raises(ConnectionFailed, match=words) as caught:
        source(**config)
    assert caught.value.layer == layer


def test_a_wsdl_that_is_none(service, source, tmp_path):
    with pytest.raises(ConnectionFailed, match="is not there"):
        source(wsdl_url=f"{service.url}/other")
    path = tmp_path / "x.wsdl"
    path.write_text("<html></html>")
    with pytest.raises(ConnectionFailed) as caught:
        source(wsdl_url=str(path))
    assert caught.value.layer == "database"


def test_a_server_that_fails(service, source):
    service.status, service.raw, service.content_type = 503, b"later", "text/plain"
    with pytest.raises(ConnectionFailed, match="answered with HTTP 503"):
        read(source(), "GetOrders")


# -- size ------------------------------------------------------------------------------------------------


def test_batches_stay_near_their_size(service, source):
    service.body = orders(*[f"<id>{n}</id><name>{'x' * 50}</name>" for n in range(10_000)])
    items, rows = read(source(batch_bytes=64 * 1024), "GetOrders")
    assert [row["id"] for row in rows] == list(range(10_000))
    assert len(items) > 5 and max(item.payload.estimated_size() for item in items) < 2 * 64 * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_memory_does_not_follow_the_size_of_the_answer(service):
    def pieces():
        yield "<GetOrdersResponse><orders>"
        for start in range(0, 100_000, 1000):
            yield "".join(
                f"<order><id>{n}</id><name>customer {n}</name><total>{n}.50</total>"
                f"<at>2024-01-01T00:00:00Z</at></order>"
                for n in range(start, start + 1000)
            )
        yield "</orders></GetOrdersResponse>"

    service.body = pieces
    code = (
        "import pathlib; from dwcli.connectors import create_connector\n"
        f"c = create_connector({{'protocol': 'soap', 'wsdl_url': {service.url + '/shop?wsdl'!r}}})\n"
        "c.connect()\n"
        "assert sum(i.payload.height for i in c.fetch_data('GetOrders').items) == 100_000\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) < 300_000  # KB


# -- into the warehouse ----------------------------------------------------------------------------------


def test_an_operation_in_the_warehouse(service, tmp_path, warehouse_url, warehouse):
    (tmp_path / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "sources").mkdir()
    pipeline = {"query": "GetOrders(since={cursor})", "write": "merge", "key": ["id"], "cursor": "at"}
    source = {
        "protocol": "soap",
        "wsdl_url": f"{service.url}/shop?wsdl",
        "pipelines": {"orders": pipeline},
    }
    (tmp_path / "sources" / "shop.json").write_text(json.dumps(source))
    project = load_project(tmp_path)

    def load():
        (result,) = run_project(
            project, select(project, ["orders"]), warehouse_url, RunOptions(), lambda event: None
        )
        assert result["status"] == "success"

    service.body = orders(
        "<id>1</id><total>0.10</total><lasts>PT36H</lasts><at>2024-01-01T00:00:00Z</at>",
        "<id>2</id><seal>AAH/</seal><tag>x</tag><at>2024-01-02T00:00:00Z</at>",
    )
    load()
    service.body = orders("<id>2</id><total>5</total><at>2024-01-02T00:00:00Z</at>")
    load()
    assert "since>2024-01-02T00:00:00+00:00</" in service.asked[-1]
    assert rows_of(warehouse, "select id, total, lasts::text, seal, tag from orders order by id") == [
        (1, Decimal("0.10"), "36:00:00", None, None),
        (2, Decimal(5), None, None, None),
    ]

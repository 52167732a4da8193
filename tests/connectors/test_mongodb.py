"""The MongoDB connector, on a server that speaks MongoDB's protocol."""

from __future__ import annotations

import datetime
import json
import random
import re
from collections import Counter
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import bson
import polars as pl
import pymongo
import pytest
from bson import (
    Binary,
    Code,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    json_util,
)
from bson.datetime_ms import DatetimeMS

from dwcli.connectors import create_connector, mongodb
from dwcli.connectors._documents import document_items
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from tests.connectors.servers_documents import (  # noqa: F401
    MONGO_ROOT,
    free_port,
    module,
    mongo,
    mongo_command,
    mongo_port,
    relay,
    running,
)
from tests.pipeline import runs

UTC = datetime.UTC


@pytest.fixture
def source(mongo, mongo_port):  # noqa: F811
    """Opens a connector on the test's database."""
    opened = []

    def connect(**more):
        config = {"protocol": "mongodb", "host": "127.0.0.1", "port": mongo_port, "database": mongo.name}
        connector = create_connector(config | MONGO_ROOT | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    """All rows as one frame, the types of the last batch, and the items."""
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([i.payload for i in items], how="diagonal_relaxed"), dict(items[-1].types), items


def test_every_type_arrives_exactly(mongo, source):  # noqa: F811
    ident = ObjectId("65f0c0ffee65f0c0ffee65f0")
    uuid = UUID("550e8400-e29b-11d4-a716-446655440000")
    mongo.t.insert_one(
        {
            "_id": ident,
            "i": 7,
            "l": Int64(-(2**63)),
            "d": 0.1,
            "n": Decimal128("1234567890123456789012345678.123456"),
            "s": "é 🦆 \u2028 \\u0000 \t",
            "b": True,
            "at": datetime.datetime(1969, 12, 31, 23, 59, 59, 999000, UTC),
            "u": uuid,
            "raw": bytes(range(256)),
            "md5": Binary(b"\x00\xff", 5),
            "doc": {"b": [1, Decimal128("1.10"), Int64(2**63 - 1), None], "a.b": {"$x": ident}},
            "list": [],
            "none": None,
        }
    )
    frame, types, _ = read(source(), "t")
    got = dict(zip(frame.columns, frame.rows()[0], strict=True))

    assert got["_id"] == str(ident) and types["_id"] == "text"
    assert (got["i"], got["l"]) == (7, -(2**63)) and types["i"] == types["l"] == "bigint"
    assert got["d"] == 0.1 and types["d"] == "double precision"
    assert got["n"] == "1234567890123456789012345678.123456" and types["n"] == "numeric"
    assert got["s"] == "é 🦆 \u2028 \\u0000 \t" and got["b"] is True and types["b"] == "boolean"
    assert got["at"] == datetime.datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)
    assert types["at"] == "timestamptz"
    assert got["u"] == str(uuid) and types["u"] == "uuid"
    assert got["raw"] == bytes(range(256)) and got["md5"] == b"\x00\xff" and types["raw"] == "bytea"
    assert got["doc"] == ('{"b":[1,1.10,9223372036854775807,null],"a.b":{"$x":"65f0c0ffee65f0c0ffee65f0"}}')
    assert types["doc"] == types["list"] == "jsonb" and got["list"] == "[]"
    assert got["none"] is None and "none" not in types


def test_numbers_that_are_none_are_told(mongo, source):  # noqa: F811
    texts = ["NaN", "sNaN", "Infinity", "-Infinity", "-0.00", "1E+6144", "1E-6176"]
    mongo.t.insert_many([{"_id": n, "v": Decimal128(t)} for n, t in enumerate(texts)])
    mongo.f.insert_one({"d": float("nan"), "j": [float("-inf"), None, Decimal128("NaN"), 1.5]})
    frame, types, _ = read(source(), "t")
    values = frame.sort("_id")["v"].to_list()
    assert types["v"] == "numeric"
    assert values[:5] == ["NaN", "NaN", "Infinity", "-Infinity", "-0.00"]
    assert [Decimal(v) for v in values[5:]] == [Decimal("1E+6144"), Decimal("1E-6176")]
    frame, _, (item,) = read(source(), "f")
    assert frame["d"].is_nan().all() and json.loads(frame["j"][0]) == ["-Infinity", None, "NaN", 1.5]
    assert item.metadata["changed"] == {"j: NaN or Infinity in JSON → string": 2}


def test_decimals_are_decoded_as_the_driver_does():
    generator = random.Random(1)
    texts = [f"{generator.randrange(10**34)}E{generator.randint(-6176, 6111)}" for _ in range(500)]
    for text in [*texts, "-0", "0E-6176", "-1", "9999999999999999999999999999999999E+6111"]:
        value = Decimal128(text)
        assert mongodb._decimal(value).as_tuple() == value.to_decimal().as_tuple()


def test_dates_beyond_python_arrive_as_postgresql_writes_them():
    instants = [0, -62135596800001, 253402300800000, 8_640_000_000_000_000, 2**63 - 1, -(2**63)]
    # Encoded here: the server of these tests takes no such dates.
    reply = b"".join(bson.encode({"at": DatetimeMS(v), "in": {"at": DatetimeMS(v)}}) for v in instants)
    config = mongodb.Config(database="x")
    chunks = mongodb._decoded([reply], config, Counter())
    (item,) = document_items(chunks, mongodb._forms(config), 1_000_000)
    assert item.types["at"] == "timestamptz"
    assert item.payload["at"].to_list() == [
        "1970-01-01 00:00:00+00:00",
        "0001-12-31 23:59:59.999+00 BC",
        "10000-01-01 00:00:00.000+00",
        "275760-09-13 00:00:00.000+00",
        "infinity",
        "-infinity",
    ]
    assert item.payload["in"][0] == '{"at":"1970-01-01T00:00:00Z"}'
    assert item.payload["in"][3] == '{"at":"275760-09-13 00:00:00.000+00"}'
    assert item.metadata["changed"] == {"at: instant outside PostgreSQL's range → infinity": 2}


def test_what_only_mongodb_has_is_extended_json(mongo, source):  # noqa: F811
    mongo.t.insert_one(
        {
            "re": Regex("^a.*", re.IGNORECASE | re.MULTILINE),
            "ts": Timestamp(5, 1),
            "min": MinKey(),
            "max": [MaxKey()],
            "js": Code("x()", {"y": 1}),
            "ref": bson.DBRef("other", 1),
            "bin": [b"\x00\xff"],
        }
    )
    frame, types, _ = read(source(), "t")
    got = {name: json.loads(frame[name][0]) for name in frame.columns if name != "_id"}
    assert got == {
        "re": {"$regularExpression": {"pattern": "^a.*", "options": "im"}},
        "ts": {"$timestamp": {"t": 5, "i": 1}},
        "min": {"$minKey": 1},
        "max": [{"$maxKey": 1}],
        "js": {"$code": "x()", "$scope": {"y": 1}},
        "ref": {"$ref": "other", "$id": 1},
        "bin": ["AP8="],
    }
    assert {types[name] for name in got} == {"jsonb"}


def test_fields_that_come_late_and_change_their_type(mongo, source):  # noqa: F811
    rows = [{"_id": n, "v": n} for n in range(3000)]
    rows += [{"_id": n, "v": n + 0.5, "late": "x"} for n in range(3000, 6000)]
    rows += [{"_id": 6000, "v": "text", "late": {"a": 1}}, {"_id": 6001, "v": [1], "late": None}]
    mongo.t.insert_many(rows)
    frame, types, items = read(source(batch_bytes=64 * 1024), "t")
    assert frame.height == 6002 and types == {"_id": "bigint", "v": "text", "late": "text"}
    kinds = [item.types["v"] for item in items]
    assert list(dict.fromkeys(kinds)) == ["bigint", "numeric", "text"]
    last = items[-1].payload.rows()[-2:]
    assert last == [(6000, "text", '{"a":1}'), (6001, "[1]", None)]
    assert frame["late"].null_count() == 3001


def test_names_of_any_kind_are_columns(mongo, source):  # noqa: F811
    names = ["a.b", "$x", "ключ", "with space", "", 'quo"te', "Ünï", "_id2"]
    mongo["my coll.é"].insert_one({"_id": 1} | {name: n for n, name in enumerate(names)})
    connector = source()
    assert [resource.name for resource in connector.discover()] == ["my coll.é"]
    frame, _, _ = read(connector, "my coll.é")
    assert frame.rows() == [(1, *range(len(names)))] and frame.columns == ["_id", *names]
    with pytest.raises(QueryFailed, match="path"):
        read(connector, "my coll.é", Cursor("a.b", "1", None, "bigint"))


def test_a_query_may_hold_a_filter_in_extended_json(mongo, source):  # noqa: F811
    at = datetime.datetime(2024, 5, 1, tzinfo=UTC)
    mongo.orders.insert_many(
        [{"_id": ObjectId(), "status": s, "n": n, "at": at} for n, s in enumerate(["paid", "open", "paid"])]
    )
    first = mongo.orders.find_one({"n": 0})["_id"]
    connector = source()
    assert read(connector, 'orders {"status": "paid"}')[0]["n"].to_list() == [0, 2]
    assert read(connector, f'orders{{"_id": {json_util.dumps(first)}}}')[0]["n"].to_list() == [0]
    dated = 'orders {"at": {"$gte": {"$date": "2024-05-01T00:00:00Z"}}, "n": {"$gt": 0}}'
    assert read(connector, dated)[0]["n"].to_list() == [1, 2]
    assert read(connector, dated, Cursor("n", "2", None, "bigint"))[0]["n"].to_list() == [2]
    described = connector.describe('orders {"status": "paid"}')
    assert (described.kind, described.primary_key, described.row_estimate) == ("query", ("_id",), None)
    with pytest.raises(QueryFailed, match="not JSON"):
        read(connector, "orders {status: 'paid'}")
    with pytest.raises(QueryFailed, match="extended JSON"):
        read(connector, 'orders {"_id": {"$oid": "short"}}')
    with pytest.raises(QueryFailed) as caught:
        read(connector, 'orders {"n": {"$nonsense": 1}}')
    assert "nonsense" in caught.value.why


def test_an_empty_collection_is_one_empty_batch(mongo, source):  # noqa: F811
    mongo.create_collection("empty")
    frame, _, items = read(source(), "empty")
    assert frame.height == 0 and frame.columns == ["_id"] and len(items) == 1
    frame, _, _ = read(source(expand=False), "empty")
    assert frame.columns == ["_id", "document"]


@pytest.fixture
def timeline(mongo):  # noqa: F811
    def at(second, milli=0):
        return datetime.datetime(2024, 1, 1, 0, 0, second, milli * 1000, UTC)

    mongo.c.insert_many(
        [
            {"_id": ObjectId("65f000000000000000000001"), "k": 1, "at": at(1), "n": 1, "s": "a"},
            {"_id": ObjectId("65f000000000000000000002"), "k": 2, "at": at(2), "n": 0.3, "s": "b"},
            {
                "_id": ObjectId("65f000000000000000000003"),
                "k": 3,
                "at": at(2),
                "n": Decimal128("0.3"),
                "s": "b",
            },
            {"_id": ObjectId("65f000000000000000000004"), "k": 4, "at": None, "n": None},
            {"_id": ObjectId("65f000000000000000000005"), "k": 5, "at": at(2, 1), "n": 2**53 + 1, "s": "é"},
        ]
    )
    return mongo


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(timeline, source):
    connector = source()

    def ks(column, start, end=None, type="timestamptz"):
        return sorted(read(connector, "c", Cursor(column, start, end, type))[0]["k"].to_list())

    assert ks("at", "2024-01-01 00:00:02+00") == [2, 3, 4, 5]
    assert ks("at", "2024-01-01 01:00:02.000+01") == [2, 3, 4, 5]
    assert ks("at", "2024-01-01 00:00:02.0005+00") == [2, 3, 4, 5]
    assert ks("at", "2024-01-01 00:00:02+00", "2024-01-01 00:00:02.001+00") == [2, 3, 4]
    assert ks("at", "2024-01-01 00:00:02+00", "2024-01-01 00:00:02.0005+00") == [2, 3, 4]
    assert ks("at", None, "2024-01-01 00:00:02+00") == [1, 4]
    assert ks("at", "2024-01-01 00:00:02.001+00", type="") == [4, 5]
    assert ks("n", "0.3", type="numeric") == [1, 2, 3, 4, 5]
    assert ks("n", "1", type="bigint") == [1, 4, 5]
    assert ks("n", "9007199254740993", type="numeric") == [4, 5]
    assert ks("s", "b", type="text") == [2, 3, 4, 5]
    assert ks("s", "c", type="") == [4, 5]
    assert ks("_id", "65f000000000000000000003", type="text") == [3, 4, 5]
    assert ks("_id", "65f000000000000000000002", "65f000000000000000000004", type="text") == [2, 3]
    with pytest.raises(ConfigError, match="stands at"):
        ks("n", "x", type="bigint")


def test_a_cursor_field_of_several_types_is_refused(timeline, source):
    timeline.c.insert_one({"k": 6, "at": "2024-01-01"})
    connector = source()
    for cursor in (Cursor("at"), Cursor("at", "2024-06-01 00:00:00+00", None, "timestamptz")):
        with pytest.raises(SourceData, match="date and string"):
            read(connector, "c", cursor)


def test_legacy_uuids_are_read_as_they_were_written(mongo, source):  # noqa: F811
    uuid = UUID("00112233-4455-6677-8899-aabbccddeeff")
    mongo.t.insert_one({"_id": 1, "u": Binary.from_uuid(uuid, bson.binary.UuidRepresentation.JAVA_LEGACY)})
    frame, types, _ = read(source(uuid_representation="javaLegacy"), "t")
    assert frame["u"].to_list() == [str(uuid)] and types["u"] == "uuid"
    assert read(source(), "t")[1]["u"] == "bytea"


def test_each_document_is_one_jsonb_when_asked(mongo, source):  # noqa: F811
    mongo.t.insert_many([{"_id": 1, "a": {"b": 1}, "at": 5}, {"_id": 2, "c": None, "at": 6}])
    frame, types, _ = read(source(expand=False), "t")
    assert frame.rows() == [(1, '{"_id":1,"a":{"b":1},"at":5}'), (2, '{"_id":2,"c":null,"at":6}')]
    assert types == {"_id": "bigint", "document": "jsonb"}
    frame, _, _ = read(source(expand=False), "t", Cursor("at", "6", None, "bigint"))
    assert frame.columns == ["_id", "document", "at"] and frame.height == 1


def test_more_fields_than_a_table_has_columns(mongo, source):  # noqa: F811
    mongo.t.insert_many([{f"f{n}": 1} for n in range(1600)])
    with pytest.raises(SourceData, match="different fields") as caught:
        read(source(), "t")
    assert "expand: false" in caught.value.hint
    assert read(source(expand=False), "t")[0].height == 1600


def test_text_that_is_no_utf8_is_mended_and_counted():
    good = bson.encode({"_id": 1, "s": "good"})
    bad = bson.encode({"_id": 2, "s": "oops"}).replace(b"oops", b"o\xff\xfes")
    changed = Counter()
    config = mongodb.Config(database="x")
    (documents,) = mongodb._decoded([good + bad], config, changed)
    assert [d["s"] for d in documents] == ["good", "o\ufffd\ufffds"]
    assert changed == {"document: text that is no UTF-8 → U+FFFD": 1}


def test_batches_are_bounded_by_bytes(mongo, source):  # noqa: F811
    mongo.wide.insert_many([{"_id": n, "t": "x" * (20_000 if n > 300 else 10)} for n in range(600)])
    items = read(source(batch_bytes=200_000), "wide")[2]
    sizes = [item.payload.estimated_size() for item in items]
    assert sum(item.payload.height for item in items) == 600
    assert len(items) > 15 and max(sizes) <= 2 * 200_000


def test_keys_alone_are_read(mongo, source):  # noqa: F811
    mongo.t.insert_many([{"_id": n, "k": {"a": n}, "a.b": n, "big": "x" * 100} for n in range(3)])
    connector = source()

    def keys(*names):
        return pl.concat([item.payload for item in connector.keys("t", names)])

    assert keys("_id").rows() == [(0,), (1,), (2,)]
    assert keys("k").rows() == [('{"a":0}',), ('{"a":1}',), ('{"a":2}',)]
    assert keys("a.b", "_id").rows() == [(0, 0), (1, 1), (2, 2)]


def test_discover_tells_keys_cursors_and_estimates(mongo, source):  # noqa: F811
    now = datetime.datetime.now(UTC)
    mongo.a.insert_many([{"updated_at": now, "n": n, "doc": {}} for n in range(5)])
    mongo.a.create_index("updated_at")
    mongo.b.insert_one({"_id": "x"})
    a, b = source().discover()
    assert (a.name, a.primary_key, a.key_reason) == ("a", ("_id",), "unique in MongoDB")
    assert [(c.name, c.type) for c in a.columns] == [
        ("_id", "text"), ("updated_at", "timestamptz"), ("n", "bigint"), ("doc", "jsonb"),
    ]  # fmt: skip
    assert a.row_estimate == 5 and a.bytes_estimate > 0
    assert [c.column for c in a.cursors] == ["updated_at", "_id"] and a.cursors[1].append_only
    assert "indexed" in a.cursors[0].reason
    assert b.cursors == () and source().describe("b").name == "b"


def test_what_is_not_there_is_named_with_its_neighbour(mongo, source):  # noqa: F811
    mongo.orders.insert_one({})
    with pytest.raises(ResourceMissing, match=r"no collection 'order'. Did you mean 'orders'"):
        read(source(), "order")
    with pytest.raises(ResourceMissing, match="no collection 'x'"):
        read(source(), 'x {"a": 1}')


@pytest.fixture
def big(mongo):  # noqa: F811
    mongo.big.insert_many([{"_id": n, "t": "x" * 1000} for n in range(5000)])
    return mongo


def test_a_connection_cut_while_reading_is_said_to_be_lost(big, mongo_port, source):  # noqa: F811
    with relay(mongo_port) as between:
        uri = f"mongodb://root:root-word@127.0.0.1:{between.port}/?directConnection=true"
        connector = source(uri=uri, username="", batch_bytes=64 * 1024)
        items = connector.fetch_data("big").items
        next(items)
        between.cut()
        with pytest.raises(ConnectionFailed) as caught:
            list(items)
    assert caught.value.layer == "lost" and "root-word" not in f"{caught.value} {caught.value.why}"


def test_a_cursor_that_the_server_closed_is_an_error(big, source, monkeypatch):
    opened, found = [], mongodb._found
    monkeypatch.setattr(mongodb, "_found", lambda *given: opened.append(found(*given)) or opened[-1])
    items = source(batch_bytes=64 * 1024).fetch_data("big").items
    next(items)
    # What the server does with a cursor that was idle for ten minutes.
    big.command("killCursors", "big", cursors=[opened[0].cursor_id])
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost" and "cursor" in caught.value.why


def test_closing_the_connector_ends_a_read(big, source):
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("big").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed):
        list(items)


def test_each_layer_of_a_failed_connection_is_named(mongo, mongo_port, source):  # noqa: F811
    mongo.t.insert_one({})
    other = {"username": "reader", "password": "right-word"}
    mongo.client.admin.command(
        "createUser", "reader", pwd="right-word", roles=[{"role": "read", "db": "elsewhere"}]
    )

    def failed(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        told = f"{caught.value} {caught.value.why} {caught.value.hint}"
        assert caught.value.hint and "secret-word" not in told and "right-word" not in told
        return caught.value.layer

    try:
        assert failed(host="no-such-host.invalid") == "name"
        assert failed(port=free_port()) == "port"
        assert failed(password="secret-word") == "login"
        assert failed(uri=f"mongodb://root:secret-word@127.0.0.1:{mongo_port}/", username="") == "login"
        assert failed(username="", password="") == "login"
        assert failed(database="no_such_database") == "database"
        assert failed(**other) in ("permission", "database")
    finally:
        mongo.client.admin.command("dropUser", "reader")
    with pytest.raises(ConfigError) as refused:
        source(uri="mongodb://root:secret@word@127.0.0.1/", username="")
    assert "secret" not in f"{refused.value} {refused.value.why} {refused.value.hint}"


def test_tls_is_checked_against_the_given_authority(tmp_path, monkeypatch):
    monkeypatch.setattr(mongodb, "TIMEOUT_SECONDS", 1.5)
    authority = module("trustme", "trustme").CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    files = ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")]
    command = mongo_command(port, tmp_path / "data", *files)
    config = {"protocol": "mongodb", "host": "127.0.0.1", "port": port, "database": "x"}

    def connected(**more):
        connector = create_connector(config | more)
        connector.connect()
        return connector

    with running(command, port, tmp_path / "log", cwd=tmp_path):
        with pymongo.MongoClient("127.0.0.1", port, tlsCAFile=str(tmp_path / "ca.pem"), tls=True) as client:
            client.x.t.insert_one({"_id": 1})
        connector = connected(tls_ca=str(tmp_path / "ca.pem"))
        assert read(connector, "t")[0].rows() == [(1,)]
        connector.close()
        with pytest.raises(ConnectionFailed) as caught:
            connected(tls=True)
        assert caught.value.layer == "tls" and "tls_ca" in caught.value.hint


def test_runs_into_postgresql_and_again(mongo, mongo_port, warehouse_url, warehouse, tmp_path):  # noqa: F811
    at = datetime.datetime(2024, 1, 1, tzinfo=UTC)
    later = at + datetime.timedelta(seconds=1)
    doc = {"n": Decimal128("1.10"), "nul": "a\0b", "kept": "\\u0000", "big": 2**63 - 1}
    mongo.o.insert_many([{"_id": 1, "at": at, "doc": doc}, {"_id": 2, "at": later, "v": 1, "a.b": "x"}])
    config = {"protocol": "mongo", "host": "127.0.0.1", "port": mongo_port, "database": mongo.name}
    connector = SimpleNamespace(connector=lambda: create_connector(config | MONGO_ROOT))

    def run():
        outcome = runs.run(
            warehouse_url, tmp_path, connector, query="o", write="merge", key=("_id",), cursor="at"
        )
        assert outcome.error is None
        return outcome.result

    assert run()["rows_inserted"] == 2
    mongo.o.insert_one({"_id": 3, "at": later, "v": "text", "late": [1]})
    mongo.o.update_one({"_id": 2}, {"$set": {"v": 2.5}})
    result = run()
    assert (result["rows_read"], result["rows_inserted"], result["rows_updated"]) == (2, 1, 1)
    rows = runs.rows_of(warehouse, "select _id, at, doc::text, v, a_b, late::text from t order by _id")
    assert rows == [
        (
            1,
            at,
            '{"n": 1.10, "big": 9223372036854775807, "nul": "ab", "kept": "\\\\u0000"}',
            None,
            None,
            None,
        ),
        (2, later, None, "2.5", "x", None),
        (3, later, None, "text", None, "[1]"),
    ]


def test_a_run_is_told_how_many_documents_there_are_where_that_is_told_at_once(mongo, source, monkeypatch):  # noqa: F811
    mongo.counted.insert_many([{"n": number} for number in range(7)])
    found = source()
    assert found.estimate("counted") == (7, None)
    assert found.estimate('counted {"n": 1}') == (None, None)
    with pytest.raises(ResourceMissing):
        found.estimate("nowhere")
    monkeypatch.setattr("dwcli.connectors.mongodb.COUNT_MS", 1)
    mongo.counted.insert_many([{"n": number} for number in range(30_000)])  # the stand-in counts them
    assert found.estimate("counted") == (None, None)

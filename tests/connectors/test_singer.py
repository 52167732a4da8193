"""The Singer connector: a small tap for every odd case, and a real one in an environment of its own."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from dwcli.connectors import _singertap, create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.pipeline.runs import rows_of

ORDERS = {
    "type": "object",
    "properties": {
        "id": {"type": ["integer"]},
        "name": {"type": ["null", "string"]},
        "total": {"type": ["null", "number"]},
        "at": {"type": ["null", "string"], "format": "date-time"},
    },
}
STREAMS = {"orders": {"schema": ORDERS, "key": ["id"], "bookmark": "at"}, "other": {"schema": ORDERS}}
SCHEMA = {"type": "SCHEMA", "stream": "orders", "schema": ORDERS, "key_properties": ["id"]}


def record(**values):
    return {"type": "RECORD", "stream": "orders", "record": values}


def state(value):
    return {"type": "STATE", "value": value}


@pytest.fixture
def program(tmp_path):
    """The small tap as a program."""
    path = tmp_path / "tap-fake"
    path.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "_tap_fake.py").read_text("utf-8"))
    path.chmod(0o755)
    return path


@pytest.fixture
def tap(program):
    """Connectors to the small tap, which says what it is told to."""
    opened = []

    def connect(*lines, streams=STREAMS, batch_bytes=None, **config):
        given = {"streams": streams, "lines": list(lines), **config}
        more = {"batch_bytes": batch_bytes} if batch_bytes else {}
        connector = create_connector({"protocol": "singer", "tap": str(program), "tap_config": given, **more})
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the test's own: nothing may be left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.glob("dw-tap-*")) == []


def read(connector, query="orders", cursor=None):
    return list(connector.fetch_data(query, cursor).items)


def rows(items):
    return [row for item in items for row in item.payload.rows()]


# -- types -----------------------------------------------------------------------------------------------


def typed(tap, spec, *values):
    """One column of these values, written as JSON, and its type."""
    schema = {"properties": {"c": spec}}
    lines = [{"type": "SCHEMA", "stream": "t", "schema": schema, "key_properties": []}]
    texts = [f'{{"type": "RECORD", "stream": "t", "record": {{"c": {value}}}}}' for value in values]
    items = read(tap(*lines, *texts, streams={"t": {"schema": schema}}), "t")
    return items[-1].types.get("c"), [row[0] for row in rows(items)]


UTC = datetime.UTC


@pytest.mark.parametrize(
    ("spec", "values", "type", "expected"),
    [
        ({"type": ["null", "integer"]}, ["1", "null", "-9223372036854775808"], "bigint", [1, None, -(2**63)]),
        ({"type": "integer"}, ["9223372036854775808"], "numeric", [Decimal(2**63)]),
        ({"type": "integer", "maximum": 2**64}, ["1"], "numeric", [Decimal(1)]),
        ({"type": "integer"}, ["1", "1.5"], "numeric", [Decimal("1.0"), Decimal("1.5")]),
        ({"type": "integer"}, ["1", '"x"'], "text", ["1", "x"]),
        ({"type": "number"}, ["0.1", "50000.0000000000000001"], "numeric",
         [Decimal("0.1"), Decimal("50000.0000000000000001")]),
        ({"type": "number"}, ["1e-3", "2"], "numeric", [Decimal("0.001"), Decimal(2)]),
        ({"type": "number"}, ["NaN", "1.5", "-Infinity"], "numeric", ["NaN", "1.5", "-Infinity"]),
        ({"type": "number"}, ['"12"'], "text", ["12"]),
        ({"type": "string", "format": "singer.decimal"}, ['"12.50"'], "numeric", [Decimal("12.50")]),
        ({"type": ["null", "boolean"]}, ["true", "null", "false"], "boolean", [True, None, False]),
        ({"type": "boolean"}, ["true", "1"], "text", ["true", "1"]),
        ({"type": "string"}, ['"Zoë 🦆\\n"', '""'], "text", ["Zoë 🦆\n", ""]),
        ({"type": "string"}, ['"a"', "1"], "text", ["a", "1"]),
        ({"type": "string"}, ['"\\ud800x"'], "text", ["\\ud800x"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], "date", [datetime.date(2024, 2, 29)]),
        ({"type": "string", "format": "date"}, ['"2024-02-29T00:00:00Z"'], "date",
         [datetime.date(2024, 2, 29)]),
        ({"type": "string", "format": "date"}, ['"2024-02-29T01:00:00Z"'], "text", ["2024-02-29T01:00:00Z"]),
        ({"type": "string", "format": "date-time"}, ['"2024-01-01T12:00:00+02:00"', "null"], "timestamptz",
         [datetime.datetime(2024, 1, 1, 10, tzinfo=UTC), None]),
        ({"type": "string", "format": "date-time"},
         ['"2024-01-01T12:00:00.5"', '"2024-01-01"', '"2024-01-01T12:00:00Z"'], "timestamptz",
         [datetime.datetime(2024, 1, 1, 12, 0, 0, 500000, UTC), datetime.datetime(2024, 1, 1, tzinfo=UTC),
          datetime.datetime(2024, 1, 1, 12, tzinfo=UTC)]),
        ({"type": "string", "format": "date-time"}, ['"soon"', '"2024-01-01"'], "text",
         ["soon", "2024-01-01"]),
        ({"type": "string", "format": "time"}, ['"12:00:00.5"'], "time", ["12:00:00.5"]),
        ({"type": "string", "format": "time"}, ['"noon"'], "text", ["noon"]),
        ({"type": "string", "format": "uuid"}, ['"6f1c0b2e-0000-4000-8000-000000000001"'], "uuid",
         ["6f1c0b2e-0000-4000-8000-000000000001"]),
        ({"type": "object"}, ['{"a": [1, 1.10]}', "null"], "jsonb", ['{"a":[1,1.10]}', None]),
        ({"type": ["array", "string"]}, ['"x"', "[1]"], "jsonb", ['"x"', "[1]"]),
        ({"type": ["string", "integer"]}, ['"x"', "1"], "text", ["x", "1"]),
        ({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}, ['"2024-01-01T00:00:00Z"'],
         "timestamptz", [datetime.datetime(2024, 1, 1, tzinfo=UTC)]),
        ({}, ["1", "2"], "bigint", [1, 2]),
        ({"type": "null"}, ["null"], None, [None]),
    ],
)  # fmt: skip
def test_the_schema_decides_the_type_and_no_value_is_changed(tap, spec, values, type, expected):
    assert typed(tap, spec, *values) == (type, expected)


def test_a_column_that_was_widened_stays_wide(tap):
    lines = [record(id=1, name="a"), record(id="x", name="b"), SCHEMA, record(id=2, name="c")]
    items = read(tap(SCHEMA, record(id=0, name="0"), SCHEMA, *lines))
    assert [item.types["id"] for item in items] == ["bigint", "text", "text"]
    assert [row[0] for row in rows(items)] == [0, "1", "x", "2"]


def test_fields_beyond_the_schema_and_new_ones_in_a_later_schema_are_columns(tap):
    more = {"properties": {**ORDERS["properties"], "größe": {"type": "integer"}}}
    later = {"type": "SCHEMA", "stream": "orders", "schema": more, "key_properties": ["id"]}
    items = read(tap(SCHEMA, record(id=1, extra=1.50), later, record(id=2, größe=7)))
    assert items[0].payload.to_dicts()[0] == {
        "id": 1, "name": None, "total": None, "at": None, "extra": Decimal("1.5")
    }  # fmt: skip
    assert items[1].payload.to_dicts()[0]["größe"] == 7


def test_an_empty_stream_is_an_empty_batch_with_its_columns(tap):
    (item,) = read(tap(SCHEMA))
    assert item.payload.height == 0
    assert dict(item.types) == {"id": "bigint", "name": "text", "total": "numeric", "at": "timestamptz"}
    assert item.position is None


def test_a_reference_in_the_schema_is_followed(tap):
    schema = {
        "properties": {"c": {"$ref": "#/definitions/money"}},
        "definitions": {"money": {"type": "number"}},
    }
    (item,) = read(tap(streams={"t": {"schema": schema}}), "t")
    assert item.types["c"] == "numeric"


# -- messages --------------------------------------------------------------------------------------------


def test_the_state_goes_with_the_rows_before_it(tap):
    connector = tap(SCHEMA, record(id=1), state({"a": 1}), record(id=2), state({"a": 2}), record(id=3))
    (item,) = read(connector)
    assert item.position == {"state": {"a": 2}} and item.payload.height == 3


def test_a_state_without_rows_is_kept_too(tap):
    (item,) = read(tap(SCHEMA, state({"bookmarks": {"orders": {"at": "2024"}}})))
    assert item.payload.height == 0 and item.position == {"state": {"bookmarks": {"orders": {"at": "2024"}}}}


def test_the_tap_is_given_its_state_its_config_and_the_one_stream(tap, tmp_path):
    echo = tmp_path / "echo.json"
    connector = tap(SCHEMA, echo=str(echo))
    read(connector, "orders", Cursor(position={"state": {"at": 1}}))
    seen = json.loads(echo.read_text())
    assert seen["state"] == {"at": 1}
    assert seen["config"]["streams"] == STREAMS
    assert seen["mode"] == "0o600" and not Path(seen["config_path"]).exists()
    chosen = {s["tap_stream_id"]: s["metadata"][0]["metadata"] for s in seen["catalog"]["streams"]}
    assert chosen["orders"]["selected"] is True and chosen["other"]["selected"] is False
    assert chosen["orders"]["replication-method"] == "INCREMENTAL"
    read(connector)
    assert "state" not in json.loads(echo.read_text())


def test_lines_that_are_no_messages_go_to_the_log(tap, caplog):
    with caplog.at_level("INFO", logger="dwcli"):
        items = read(tap("Hello from the tap", SCHEMA, "", '{"level": "info"}', record(id=1), "[1]"))
    assert rows(items) == [(1, None, None, None)]
    assert "Hello from the tap" in caplog.text


def test_other_streams_and_versions_are_passed_over(tap):
    other = {"type": "RECORD", "stream": "other", "record": {"id": "not mine"}}
    version = {"type": "ACTIVATE_VERSION", "stream": "orders", "version": 1}
    unknown = {"type": "METRIC", "value": 1}
    assert rows(read(tap(SCHEMA, other, version, record(id=1), unknown))) == [(1, None, None, None)]


@pytest.mark.parametrize("line", ['{"type": "RECORD", "stream": "orders", "rec', '{"type": "RECORD" {}}'])
def test_a_damaged_message_is_an_error(tap, line):
    with pytest.raises(SourceData, match="a message that is not valid JSON"):
        read(tap(SCHEMA, record(id=1), line, record(id=2)))


@pytest.mark.parametrize("line", ['{"type": "RECORD", "stream": "orders"}', {**record(), "record": [1]}])
def test_a_record_that_is_none_is_an_error(tap, line):
    with pytest.raises(SourceData, match="tap-fake wrote a"):
        read(tap(SCHEMA, record(id=1), line))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_text_that_is_not_utf8_is_an_error(tap, end):
    line = b'{"type": "RECORD", "stream": "orders", "record": {"id": 1, "name": "\xff"}}' + end
    with pytest.raises(SourceData, match="tap-fake wrote"):
        read(tap(SCHEMA, bytes=line.hex()))


def test_a_last_line_without_an_end_counts_and_one_that_is_cut_off_is_an_error(tap):
    line = json.dumps(record(id=1)).encode()
    assert len(rows(read(tap(SCHEMA, bytes=line.hex())))) == 1
    with pytest.raises(SourceData, match="not valid JSON"):
        read(tap(SCHEMA, bytes=line[:-3].hex()))


@pytest.mark.parametrize("spec", [{"type": "object"}, {"type": "string"}])
def test_a_value_that_is_nested_without_end_is_an_error(tap, spec):
    with pytest.raises(SourceData, match="nested too deep"):
        typed(tap, spec, "[" * 100_000 + "]" * 100_000)


def test_nul_in_a_text(tap):
    assert rows(read(tap(SCHEMA, record(id=1, name="a\0b"))))[0][1] == "a\0b"


@pytest.mark.parametrize(
    "line", [{"type": "STATE"}, {"type": "SCHEMA", "stream": "orders"}, {**SCHEMA, "schema": [1]}]
)
def test_a_message_that_says_nothing_is_an_error(tap, line):
    with pytest.raises(SourceData, match="tap-fake wrote a"):
        read(tap(SCHEMA, record(id=1), line))


def test_a_state_of_null_is_none(tap, tmp_path):
    echo = tmp_path / "echo.json"
    read(tap(SCHEMA, echo=str(echo)), "orders", Cursor(position={"state": None}))
    assert "state" not in json.loads(echo.read_text())


def test_odd_names_of_fields(tap):
    names = ["", "a b", "class", "f0", "ÄÖ", "id\n"]
    schema = {"properties": {name: {"type": "integer"} for name in names}}
    line = {"type": "RECORD", "stream": "t", "record": {name: n for n, name in enumerate(names)}}
    (item,) = read(tap(line, streams={"t": {"schema": schema}}), "t")
    assert item.payload.to_dicts() == [{name: n for n, name in enumerate(names)}]


@pytest.mark.parametrize("packing", ["none", "gzip"])
def test_a_batch_message_brings_the_rows_of_its_files(tap, tmp_path, packing):
    path = tmp_path / "rows é.jsonl"
    text = b"".join(b'{"id": %d, "total": 0.10}\n' % number for number in range(5000))
    path.write_bytes(gzip.compress(text) if packing == "gzip" else text)
    encoding = {"format": "jsonl", "compression": packing}
    batch = {"type": "BATCH", "stream": "orders", "encoding": encoding, "manifest": [path.as_uri()]}
    items = read(tap(SCHEMA, record(id=-1), batch, state(5)))
    assert [row[0] for row in rows(items)] == [-1, *range(5000)]
    assert items[-1].position == {"state": 5}


@pytest.mark.parametrize(
    ("encoding", "manifest"),
    [
        ({"format": "parquet"}, ["file:///x"]),
        ({"format": "jsonl"}, ["s3://bucket/x"]),
        ({"format": "jsonl"}, ["file:///does/not/exist"]),
    ],
)
def test_a_batch_that_cannot_be_read_is_an_error(tap, encoding, manifest):
    batch = {"type": "BATCH", "stream": "orders", "encoding": encoding, "manifest": manifest}
    with pytest.raises(SourceData):
        read(tap(SCHEMA, batch))


# -- the end of a tap ------------------------------------------------------------------------------------


def test_a_tap_that_fails_is_an_error_with_its_last_words(tap):
    connector = tap(
        SCHEMA, record(id=1), exit=3, stderr="first\nthe API said no to hunter22\n", password="hunter22"
    )
    with pytest.raises(QueryFailed, match="tap-fake failed with exit code 3") as caught:
        read(connector)
    assert "the API said no to ***" in caught.value.why


def test_a_tap_that_is_killed_is_an_error(tap):
    with pytest.raises(QueryFailed, match="was ended by SIGKILL"):
        read(tap(SCHEMA, record(id=1), state(1), signal="SIGKILL"))


def test_a_read_that_is_left_ends_the_tap(tap):
    connector = tap(SCHEMA, rows=200_000, wait=True, batch_bytes=64 * 1024)
    items = iter(connector.fetch_data("orders").items)
    next(items)
    (running,) = connector.client.running
    items.close()
    assert running.process.poll() is not None and not connector.client.running


def test_closing_ends_a_read_under_way(tap):
    connector = tap(SCHEMA, rows=200_000, wait=True, batch_bytes=64 * 1024)
    client = connector.client
    items = iter(connector.fetch_data("orders").items)
    next(items)
    connector.close()
    with pytest.raises(ConnectionFailed, match="the read was stopped"):
        list(items)
    assert not client.running


def test_what_a_killed_run_left_is_swept(temporary, tap):
    code = (
        "import os, signal\nfrom dwcli.connectors._singertap import papers\n"
        "with papers({'config': {'password': 'secret'}}, []):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = temporary.glob("dw-tap-*")
    assert left.stat().st_mode & 0o777 == 0o700
    with _singertap.papers({"config": {}}, []) as held:
        assert not left.exists()
        assert _singertap.sweep() == 0 and Path(held["config"]).exists()


# -- the catalogue ---------------------------------------------------------------------------------------


def test_discover_tells_columns_key_and_bookmark(tap):
    orders, other = tap().discover()
    assert (orders.name, orders.primary_key, orders.kind) == ("orders", ("id",), "stream")
    assert [(c.name, c.type, c.nullable) for c in orders.columns] == [
        ("id", "bigint", False), ("name", "text", True), ("total", "numeric", True),
        ("at", "timestamptz", True),
    ]  # fmt: skip
    assert [(c.column, c.sure, c.append_only) for c in orders.cursors] == [("at", True, False)]
    assert (other.name, other.primary_key, other.kind, other.cursors) == ("other", (), "table", ())


def test_a_stream_that_is_not_there_is_told_with_the_nearest_name(tap):
    with pytest.raises(ResourceMissing, match="Did you mean 'orders'"):
        read(tap(), "order")


def test_a_tap_that_cannot_discover_is_an_error(tap):
    with pytest.raises(QueryFailed, match="exit code 1") as caught:
        list(tap(no_discover=True).discover())
    assert "knows no --discover" in caught.value.why


def test_a_catalogue_from_a_file(program, tmp_path):
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"streams": [{"tap_stream_id": "mine", "schema": ORDERS}]}))
    config = {"no_discover": True, "streams": {}, "lines": [{**record(id=5), "stream": "mine"}]}
    base = {"protocol": "singer", "tap": str(program), "tap_config": config}
    connector = create_connector({**base, "catalog": str(path)})
    connector.connect()
    assert rows(read(connector, "mine"))[0][0] == 5
    path.write_text("[]")
    connector.connect()
    with pytest.raises(QueryFailed, match="gives no catalogue"):
        read(connector, "mine")


def test_a_tap_that_is_not_there_or_no_program(tmp_path):
    def connect(tap):
        create_connector({"protocol": "singer", "tap": str(tap), "tap_config": {}}).connect()

    with pytest.raises(ConnectionFailed, match="there is no tap at"):
        connect(tmp_path / "tap-none")
    plain = tmp_path / "tap-plain"
    plain.write_text("x")
    with pytest.raises(ConnectionFailed, match="is no program"):
        connect(plain)
    with pytest.raises(ConfigError, match="neither a path nor a package"):
        connect("--index-url x")


# -- size ------------------------------------------------------------------------------------------------


def test_batches_stay_near_their_size_and_lose_nothing(tap):
    items = read(tap(SCHEMA, rows=50_000, batch_bytes=256 * 1024))
    assert [row[0] for row in rows(items)] == list(range(50_000))
    assert len(items) > 5 and max(item.payload.estimated_size() for item in items) < 512 * 1024


def test_the_cursor_bounds_what_is_appended(tap):
    connector = tap(SCHEMA, *[record(id=n, at=f"2024-01-0{n}T00:00:00Z") for n in range(1, 6)], record(id=6))
    items = read(connector, "orders", Cursor("at", "2024-01-02 00:00:00+00", "2024-01-04 00:00:00+00"))
    assert [row[0] for row in rows(items)] == [2, 3, 6]
    again = read(connector, "orders", Cursor("at", "2024-01-05 00:00:00+00", again=True))
    assert len(rows(again)) == 6


# -- into the warehouse ----------------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path, program, warehouse_url):
    """Runs a project whose source is the small tap."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "shop" / "sources").mkdir()

    def run(*lines, write="merge", **config):
        source = {
            "protocol": "singer",
            "tap": str(program),
            "tap_config": {"streams": STREAMS, "lines": list(lines), **config},
            "pipelines": {"orders": {"query": "orders", "write": write, "key": ["id"]}},
        }
        (tmp_path / "shop" / "sources" / "tap.json").write_text(json.dumps(source))
        project = load_project(tmp_path / "shop")
        (result,) = run_project(
            project, select(project, ["orders"]), warehouse_url, RunOptions(), lambda event: None
        )
        return result

    return run


def test_the_state_is_committed_with_the_rows_or_not_at_all(load, warehouse, tmp_path):
    echo = tmp_path / "echo.json"
    first = load(SCHEMA, record(id=1, total=0.1, name="a"), state({"seen": 1}))
    assert first["status"] == "success"
    failed = load(SCHEMA, record(id=2), state({"seen": 2}), exit=1)
    assert failed["status"] == "failure"
    assert rows_of(warehouse, "select id, total::text, name from orders") == [(1, "0.1", "a")]
    assert load(SCHEMA, record(id=1, name="b"), record(id=3), echo=str(echo))["status"] == "success"
    assert json.loads(echo.read_text())["state"] == {"seen": 1}
    assert rows_of(warehouse, "select id, name from orders order by id") == [(1, "b"), (3, None)]


def test_a_run_that_is_ended_takes_the_tap_and_its_papers_along(load, tmp_path, temporary, warehouse_url):
    load(SCHEMA)
    echo = tmp_path / "echo.json"
    source = tmp_path / "shop" / "sources" / "tap.json"
    document = json.loads(source.read_text())
    document["tap_config"] |= {"rows": 100_000, "wait": True, "echo": str(echo)}
    source.write_text(json.dumps(document))
    environment = os.environ | {"DW_URL": warehouse_url, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(
        [sys.executable, "-m", "dwcli", "-C", str(tmp_path / "shop"), "run", "orders", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not (echo.exists() and '"catalog"' in echo.read_text()):  # the tap reads its catalogue
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(0.05)
                pytest.fail(running.stdout.read())
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.stdout.close()
    assert running.returncode == 143, said
    assert list(temporary.glob("dw-tap-*")) == []
    pid = json.loads(echo.read_text())["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- a real tap ------------------------------------------------------------------------------------------

TAP = "tap-jsonl==0.3.1"


@pytest.fixture(scope="session")
def taps_folder():
    """Where the real tap is installed, once for all runs of the tests."""
    folder = Path(os.environ.get("DW_TEST_TAPS") or Path.home() / ".cache" / "dwcli-tests" / "taps")
    try:
        _singertap.locate(TAP, "", folder)
    except ConnectionFailed as error:
        reason = f"{error.message}: {error.why}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder


def test_a_real_tap_is_installed_once_and_read(taps_folder, tmp_path, caplog):
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": 1, "total": 12.5, "name": "Zoë"}\n{"id": 2, "total": 0.1, "name": null}\n')
    config = {"path": str(path), "stream_name": "orders", "primary_keys": ["id"]}
    connector = create_connector(
        {"protocol": "singer", "tap": TAP, "tap_config": config, "taps_folder": str(taps_folder)}
    )
    connector.connect()
    (resource,) = connector.discover()
    assert (resource.name, resource.primary_key) == ("orders", ("id",))
    assert {"id": "bigint", "total": "numeric", "name": "text"}.items() <= {
        c.name: c.type for c in resource.columns
    }.items()
    items = read(connector, "orders")
    frame = pl.concat([item.payload for item in items])
    assert frame.select("id", "total", "name").rows() == [
        (1, Decimal("12.5"), "Zoë"),
        (2, Decimal("0.1"), None),
    ]
    with path.open("a") as file:
        file.write('{"id": 3}\n')
    assert "orders" in items[-1].position["state"]["bookmarks"]
    with caplog.at_level("INFO", logger="dwcli"):
        later = read(connector, "orders", Cursor(position=items[-1].position))
    # the tap reads a file whole when its time has changed
    assert [row[0] for item in later for row in item.payload.select("id").rows()] == [1, 2, 3]
    assert "Starting incremental sync with bookmark value" in caplog.text

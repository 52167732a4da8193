"""The Neo4j connector, on a server that speaks Bolt; types that it lacks, on the driver's own values."""

from __future__ import annotations

import datetime
import json
from types import SimpleNamespace

import neo4j
import polars as pl
import pytest
import pytz
from neo4j.graph import Graph, Node, Path, Relationship
from neo4j.spatial import CartesianPoint, WGS84Point
from neo4j.time import Date, DateTime, Duration, Time

from dwcli.connectors import create_connector
from dwcli.connectors import neo4j as connector_module
from dwcli.connectors._documents import document_items
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from tests.connectors.servers_documents import bolt_port, free_port, relay  # noqa: F401
from tests.pipeline import runs


@pytest.fixture
def run(bolt_port):  # noqa: F811
    """Runs Cypher on the test's server, which takes a session's access mode for the name of a graph."""
    with (
        neo4j.GraphDatabase.driver(f"bolt://127.0.0.1:{bolt_port}") as driver,
        driver.session(default_access_mode="READ") as session,
    ):
        yield lambda cypher, **given: session.run(cypher, given).consume()


@pytest.fixture
def source(bolt_port):  # noqa: F811
    opened = []

    def connect(**more):
        config = {"protocol": "neo4j", "uri": f"bolt://127.0.0.1:{bolt_port}", "username": ""}
        connector = create_connector(config | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([i.payload for i in items], how="diagonal_relaxed"), dict(items[-1].types), items


def test_nodes_of_a_label_are_rows_with_their_properties(run, source):
    run("CREATE (:Person:`a b` {name: 'é 🦆', n: 9007199254740993, f: 0.1, b: true, l: [1, 'a', 2.5]})")
    run("CREATE (:Person {late: 'x', n: 2.5, `we ird.$`: 1})")
    frame, types, _ = read(source(), "Person")
    assert frame.columns == ["_id", "_labels", "name", "n", "f", "b", "l", "late", "we ird.$"]
    assert frame["name"].to_list() == ["é 🦆", None] and frame["n"].to_list() == ["9007199254740993", "2.5"]
    assert frame["l"].to_list() == ['[1,"a",2.5]', None] and frame["f"].to_list() == [0.1, None]
    assert types == {
        "_id": "text", "_labels": "jsonb", "name": "text", "n": "numeric", "f": "double precision",
        "b": "boolean", "l": "jsonb", "late": "text", "we ird.$": "bigint",
    }  # fmt: skip
    assert frame["_id"].n_unique() == 2


def test_relationships_of_a_type_have_both_ends(run, source):
    run("CREATE (:A {n: 1})-[:`KN OWS` {since: 2020}]->(:B {n: 2})")
    connector = source()
    for query in ("KN OWS", ":KN OWS", "[:`KN OWS`]"):
        frame, _, _ = read(connector, query)
        assert frame.columns == ["_id", "_start", "_end", "since"] and frame["since"].to_list() == [2020]
        assert None not in frame.rows()[0]


def test_what_a_query_returns_is_a_column_each(run, source):
    run("CREATE (:A {n: 1, o: {}.x})-[:R {w: 0.5}]->(:B)")
    cypher = "MATCH (a:A)-[r:R]->(b) RETURN a, r, a.n AS n, {k: [1, null]} AS m, 0.0/0.0 AS nan"
    frame, types, _ = read(source(), cypher)
    assert types == {"a": "jsonb", "r": "jsonb", "n": "bigint", "m": "jsonb", "nan": "double precision"}
    row = dict(zip(frame.columns, frame.rows()[0], strict=True))
    assert json.loads(row["a"])["properties"] == {"n": 1} and json.loads(row["a"])["labels"] == ["A"]
    assert json.loads(row["r"])["type"] == "R" and json.loads(row["m"]) == {"k": [1, None]}
    assert read(source(), " // all\n match (a:A) return a.n as n")[0].rows() == [(1,)]


def test_an_empty_answer_still_tells_its_columns(run, source):
    run("CREATE (:A)")
    frame, _, items = read(source(), "MATCH (a:A) WHERE false RETURN a.n AS n, a")
    assert frame.columns == ["n", "a"] and frame.height == 0 and len(items) == 1
    frame, _, _ = read(source(), "A", Cursor("n", "5", None, "bigint"))
    assert frame.height == 1  # its n is null
    run("MATCH (a:A) DELETE a")
    assert read(source(), "A")[0].columns == ["_id", "_labels"]


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(run, source):
    run("UNWIND [1, 2, 2, 3, 4] AS n CREATE (:E {n: n, s: 'k' + toString(n)})")
    run("CREATE (:E {k: 'none'})")
    connector = source()

    def ns(query, column, start, end=None, type="bigint"):
        frame = read(connector, query, Cursor(column, start, end, type))[0]
        return sorted(-1 if n is None else n for n in frame["n"])

    cypher = "MATCH (e:E) RETURN e.n AS n, e.s AS s"
    for query in ("E", cypher):
        assert ns(query, "n", "2") == [-1, 2, 2, 3, 4]
        assert ns(query, "n", "2", "3") == [-1, 2, 2]
        assert ns(query, "n", None, "2") == [-1, 1]
        assert ns(query, "n", "2.5", None, "numeric") == [-1, 3, 4]
        assert ns(query, "s", "k3", None, "text") == [-1, 3, 4]
    assert ns("MATCH (e:E) WHERE e.n > $start RETURN e.n AS n", "n", "2") == [3, 4]
    with pytest.raises(ResourceMissing, match="no cursor column 'm'"):
        ns(cypher, "m", "2")


def test_a_cursor_of_several_types_is_refused(run, source):
    run("CREATE (:E {at: 1}), (:E {at: 'one'})")
    for cursor in (Cursor("at"), Cursor("at", "5", None, "bigint")):
        for query in ("E", "MATCH (e:E) RETURN e.at AS at"):
            with pytest.raises(SourceData, match="number and text"):
                read(source(), query, cursor)


def rows_of(rows, zone="UTC"):
    config = connector_module.Config(uri="bolt://x", timezone=zone)
    rows = [connector_module._row(row) for row in rows]
    (item,) = document_items([rows], connector_module._forms(config), 1_000_000)
    return item


def test_temporal_values_and_points_of_the_driver():
    # As the driver makes them: zones of pytz.
    moment = pytz.timezone("Europe/Berlin").localize(DateTime(2024, 7, 1, 12, 0, 0, 123456789))
    item = rows_of(
        [
            {
                "at": moment,
                "local": DateTime(1969, 12, 31, 23, 59, 59, 5000),
                "day": Date(9999, 12, 31),
                "t": Time(1, 2, 3, 4000),
                "tz": Time(1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
                "d": Duration(months=14, days=-3, seconds=-1, nanoseconds=-500_000_000),
                "p": WGS84Point((2.0, 1.0)),
                "ps": [CartesianPoint((1, 2, 3)), {"in": [Date(2024, 1, 1), moment, Duration(days=1)]}],
                "raw": bytearray(b"\x00\xff"),
            }
        ],
        "Europe/Berlin",
    )
    got = dict(zip(item.payload.columns, item.payload.rows()[0], strict=True))
    assert got["at"] == datetime.datetime(2024, 7, 1, 10, 0, 0, 123456, datetime.UTC)
    assert got["local"] == datetime.datetime(1969, 12, 31, 22, 59, 59, 5, datetime.UTC)
    assert got["day"] == datetime.date(9999, 12, 31)
    assert (got["t"], item.types["t"]) == ("01:02:03.000004", "time")
    assert (got["tz"][:8], got["tz"][-6:], item.types["tz"]) == ("01:02:03", "+02:00", "timetz")
    assert (got["d"], item.types["d"]) == ("14 mons -3 days -1.500000 secs", "interval")
    assert json.loads(got["p"]) == {"srid": 4326, "x": 2.0, "y": 1.0} and item.types["p"] == "jsonb"
    points, inner = json.loads(got["ps"])
    assert points == {"srid": 9157, "x": 1, "y": 2, "z": 3}
    assert inner["in"][0] == "2024-01-01" and inner["in"][2] == "P1D"
    assert got["raw"] == b"\x00\xff"
    assert item.metadata["changed"] == {"at: nanoseconds cut": 1}


def test_a_path_is_its_nodes_and_relationships():
    graph = Graph()
    a, b = (Node(graph, f"n{n}", n, ["L"], {"n": n, "p": WGS84Point((1, 2))}) for n in (1, 2))
    relationship = graph.relationship_type("R")(graph, "r1", 1, {"w": 1})
    relationship._start_node, relationship._end_node = a, b
    assert isinstance(relationship, Relationship)
    item = rows_of([{"path": Path(a, relationship)}])
    path = json.loads(item.payload["path"][0])
    assert [n["id"] for n in path["nodes"]] == ["n1", "n2"]
    assert path["nodes"][0]["properties"] == {"n": 1, "p": {"srid": 4326, "x": 1, "y": 2}}
    assert path["relationships"] == [
        {"id": "r1", "type": "R", "start": "n1", "end": "n2", "properties": {"w": 1}}
    ]


def test_instants_are_asked_for_with_and_without_a_zone():
    config = connector_module.Config(uri="bolt://x", timezone="Europe/Berlin")
    cursor = Cursor("at", "2024-07-01 10:00:00+00", None, "timestamptz")
    bounds = connector_module._bounds(cursor, config)
    local = datetime.datetime(2024, 7, 1, 12)
    assert connector_module._parameters(bounds)["local_start"] == local
    text = connector_module._text(connector_module._label("L"), cursor, bounds)
    assert text == (
        "MATCH (x:`L`) WHERE (x.`at` >= $start) OR (x.`at` >= $local_start)"
        " OR ((x.`at` >= $start) IS NULL AND (x.`at` >= $local_start) IS NULL) RETURN x"
    )
    within = connector_module._is_within
    assert within(DateTime(2024, 7, 1, 12), bounds) and not within(DateTime(2024, 7, 1, 11, 59), bounds)
    utc = DateTime(2024, 7, 1, 9, 59, 59, tzinfo=datetime.UTC)
    assert not within(utc, bounds) and within(None, bounds) and within("x", bounds)


def test_batches_are_bounded_by_bytes(run, source):
    # Made on the server, which takes no long texts.
    run("UNWIND range(1, 300) AS n CREATE (:W {n: n, t: 'x'})")
    long = "reduce(s = '', i IN range(1, 400) | s + '" + "x" * 50 + "')"
    run(f"UNWIND range(301, 600) AS n CREATE (:W {{n: n, t: {long}}})")
    items = read(source(batch_bytes=200_000, fetch_size=50), "W")[2]
    sizes = [item.payload.estimated_size() for item in items]
    assert sum(item.payload.height for item in items) == 600
    assert len(items) > 15 and max(sizes) <= 2 * 200_000


def test_discover_tells_labels_types_and_counts(run, source):
    run("CREATE (:A {updated_at: 'x', n: 1})-[:R {w: 1.5}]->(:B), (:A {n: 2})")
    a, b, r = source().discover()
    assert [(x.name, x.kind, x.row_estimate) for x in (a, b, r)] == [
        ("A", "nodes", 2), ("B", "nodes", 1), ("R", "relationships", 1),
    ]  # fmt: skip
    assert [(c.name, c.type) for c in a.columns] == [
        ("_id", "text"), ("_labels", "jsonb"), ("updated_at", "text"), ("n", "bigint"),
    ]  # fmt: skip
    assert a.primary_key == ("_id",) and r.columns[-1].type == "double precision"
    described = source().describe("MATCH (a:A) RETURN a.n AS n, a")
    assert [c.name for c in described.columns] == ["n", "a"] and described.kind == "query"


def test_what_is_not_there_or_wrong_is_named(run, source):
    run("CREATE (:Person)")
    connector = source()
    with pytest.raises(ResourceMissing, match="Did you mean 'Person'"):
        read(connector, "Persn")
    with pytest.raises(QueryFailed):
        read(connector, "MATCH (n RETURN n")


def test_a_connection_cut_while_reading_is_said_to_be_lost(run, source, bolt_port):  # noqa: F811
    run("UNWIND range(1, 5000) AS n CREATE (:Big {n: n, t: $t})", t="x" * 500)
    with relay(bolt_port, limit=1_000_000) as between:
        connector = source(uri=f"bolt://127.0.0.1:{between.port}", batch_bytes=64 * 1024, fetch_size=100)
        rows = 0
        with pytest.raises(ConnectionFailed) as caught:
            for item in connector.fetch_data("Big").items:
                rows += item.payload.height
    assert 0 < rows < 5000
    assert caught.value.layer == "lost"


def test_closing_the_connector_ends_a_read(run, source):
    run("UNWIND range(1, 5000) AS n CREATE (:Big {n: n, t: $t})", t="x" * 500)
    connector = source(batch_bytes=64 * 1024, fetch_size=100)
    items = connector.fetch_data("Big").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_each_layer_of_a_failed_connection_is_named(bolt_port, source):  # noqa: F811
    def failed(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    assert failed(uri="bolt://no-such-host.invalid") == "name"
    assert failed(uri=f"bolt://127.0.0.1:{free_port()}") == "port"
    assert failed(username="neo4j", password="secret-word") == "login"
    assert failed(uri=f"bolt+s://127.0.0.1:{bolt_port}") == "tls"
    for uri in ("http://x", "bolt://", "bolt://user:secret-word@x"):
        with pytest.raises(ConfigError) as refused:
            source(uri=uri)
        assert "uri" in str(refused.value)


def test_runs_into_postgresql_and_again(run, bolt_port, warehouse_url, warehouse, tmp_path):  # noqa: F811
    run("UNWIND [1, 2] AS n CREATE (:P {id: n, n: n, tags: ['a', 'b']})")
    config = {"protocol": "bolt", "uri": f"bolt://127.0.0.1:{bolt_port}", "username": ""}
    connector = SimpleNamespace(connector=lambda: create_connector(config))

    def load():
        more = {"query": "P", "write": "merge", "key": ("id",), "cursor": "n"}
        outcome = runs.run(warehouse_url, tmp_path, connector, **more)
        assert outcome.error is None
        return outcome.result

    assert load()["rows_inserted"] == 2
    run("CREATE (:P {id: 3, n: 2, late: 'x'})")
    assert (load()["rows_read"], runs.rows_of(warehouse, "select id, tags->>1, late from t order by id")) == (
        2,
        [(1, "b", None), (2, "b", None), (3, None, "x")],
    )

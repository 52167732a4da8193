"""`dw trace`: where a row came from."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from io import StringIO

import pytest

from dwcli.render.words import width
from tests.cli.test_look_commands import on_screen


def source(shop, statements):
    with closing(sqlite3.connect(shop / "shop.db")) as connection, connection:
        connection.executescript(statements)


def run(dw, shop, name="orders"):
    done = dw("run", name, "--json", cwd=shop)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["run_id"]


def traced(dw, shop, *words):
    done = dw("trace", *words, "--json", cwd=shop)
    return json.loads(done.stdout)


@pytest.fixture
def twice(dw, shop):
    """Two runs of orders: the second brings another total of order 42. Their ids."""
    first = run(dw, shop)
    source(shop, "UPDATE orders SET total = 99.5, updated_at = '2026-02-01 00:00:00' WHERE id = 42")
    return first, run(dw, shop)


def test_a_value_is_followed_to_the_run_that_brought_it(dw, shop, twice):
    first, second = twice
    found = traced(dw, shop, "orders", "--key", "42")
    assert (found["table"], found["key"]) == ("public.orders", {"id": "42"})
    (row,) = found["warehouse"]
    assert (row["values"]["total"], row["values"]["_run_id"], row["run"]["run_id"]) == (
        "99.5",
        second,
        second,
    )
    assert row["since"] == {"id": first, "note": first, "total": second, "updated_at": second}
    newest, oldest = found["lake"]
    assert (newest["run_id"], newest["row"], newest["loaded"]) == (second, 1, True)
    assert newest["changed"]["total"] == {"from": "10.5", "to": "99.5"}
    assert (oldest["run_id"], oldest["row"], oldest["changed"]) == (first, 42, None)
    assert (shop / "lake" / oldest["file"]).is_file()


@pytest.mark.parametrize("table", ["orders", "public.orders", "shop.orders"])
@pytest.mark.parametrize("key", ["42", "id=42", " 42 "])
def test_tables_and_keys_have_several_names(dw, shop, twice, table, key):
    assert len(traced(dw, shop, table, "--key", key)["lake"]) == 2


def test_another_column_than_the_key(dw, shop, twice):
    found = traced(dw, shop, "orders", "--key", "total=99.50")
    assert [entry["values"]["id"] for entry in found["warehouse"]] == [42]
    assert [entry["values"]["total"] for entry in found["lake"]] == ["99.5"]
    several = traced(dw, shop, "orders", "--key", "note=größe 日本語")
    assert len(several["warehouse"]) == 20
    # rows of other keys are no versions; the newest row stands in both snapshots
    assert all(not entry["changed"] for entry in several["lake"])


def test_older_snapshots_can_be_left_out(dw, shop, twice):
    done = dw("trace", "orders", "--key", "42", "--last", "1", cwd=shop)
    assert done.stderr.splitlines()[-1] == "1 older snapshot not searched: --last 2"
    assert done.stdout.count("\nlake\t") == 1


def test_a_pipe_gets_one_line_for_each_version(dw, shop, twice):
    rows = list(
        csv.DictReader(
            StringIO(dw("trace", "orders", "--key", "42", cwd=shop).stdout),
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
        )
    )
    assert [(row["WHERE"], row["RUN"], row["ROW"]) for row in rows] == [
        ("warehouse", twice[1], ""),
        ("lake", twice[1], "1"),
        ("lake", twice[0], "42"),
    ]


def test_a_row_that_is_gone_is_found_in_the_lake_alone(dw, shop):
    path = shop / "sources" / "shop.yaml"
    path.write_text(path.read_text("utf-8").replace("every: 1h", "every: 1h, deletes: hard"), "utf-8")
    first = run(dw, shop)
    source(shop, "DELETE FROM orders WHERE id = 42")
    second = run(dw, shop)
    found = traced(dw, shop, "orders", "--key", "42")
    assert found["warehouse"] == []
    assert [(entry["run_id"], entry["gone"]) for entry in found["lake"]] == [(second, True), (first, False)]


def test_every_version_of_a_history(dw, shop):
    path = shop / "sources" / "shop.yaml"
    path.write_text(path.read_text("utf-8").replace("write: merge", "write: scd2"), "utf-8")
    first = run(dw, shop)
    source(shop, "UPDATE orders SET total = 1, updated_at = '2026-02-01 00:00:00' WHERE id = 42")
    second = run(dw, shop)
    found = traced(dw, shop, "orders", "--key", "42")
    assert [row["values"]["_run_id"] for row in found["warehouse"]] == [second, first]
    assert [row["since"]["total"] for row in found["warehouse"]] == [second, first]


def test_keys_of_many_types_are_found(dw, shop):
    source(
        shop,
        "CREATE TABLE kinds (day DATE NOT NULL, amount NUMERIC(20,3) NOT NULL, code TEXT NOT NULL,"
        " at DATETIME NOT NULL, yes BOOLEAN, PRIMARY KEY (day, amount, code, at));"
        "INSERT INTO kinds VALUES ('2026-01-02', 1.250, '007', '2026-01-02 03:04:05', 1),"
        " ('2026-01-02', 1.250, '7', '2026-01-02 03:04:05', 0);",
    )
    path = shop / "sources" / "shop.yaml"
    path.write_text(
        path.read_text("utf-8") + "  kinds: {write: merge, key: [day, amount, code, at]}\n", "utf-8"
    )
    run(dw, shop, "kinds")
    values = ("2026-01-02", "1.25", "007", "2026-01-02T03:04:05Z")
    found = traced(dw, shop, "kinds", *(word for value in values for word in ("--key", value)))
    assert len(found["warehouse"]) == len(found["lake"]) == 1
    wrong = dw("trace", "kinds", "--key", "2026-01-02,1.25", cwd=shop)
    assert "fix: --key day=… --key amount=… --key code=… --key at=…" in wrong.stderr
    part = traced(dw, shop, "kinds", "--key", "code=7")
    assert [entry["values"]["code"] for entry in part["lake"]] == ["7"]


def test_columns_are_known_by_the_names_of_the_source_and_of_the_table(dw, shop):
    source(
        shop,
        'CREATE TABLE odd ("Order ID" INTEGER PRIMARY KEY NOT NULL, "select" TEXT, "Größe (cm)" REAL);'
        """INSERT INTO odd VALUES (1, 'x''y"z', 1.5), (2, NULL, 2.5);""",
    )
    path = shop / "sources" / "shop.yaml"
    path.write_text(path.read_text("utf-8") + "  odd: {write: merge, key: [Order ID]}\n", "utf-8")
    run(dw, shop, "odd")
    for key in ("1", "Order ID=1", "order_id=1", """select=x'y"z""", "Größe (cm)=1.50", "größe_cm_=1.5"):
        found = traced(dw, shop, "odd", "--key", key)
        assert [entry["values"]["order_id"] for entry in found["warehouse"]] == [1], key
        assert [entry["values"]["order_id"] for entry in found["lake"]] == [1], key


def test_without_a_key_the_unique_index_says_it(dw, shop, warehouse):
    run(dw, shop, "customers")
    nameless = dw("trace", "customers", "--key", "1", cwd=shop)
    assert nameless.returncode == 2
    assert "fix: --key id=1" in nameless.stderr
    warehouse.execute("create unique index on customers (id)")
    assert traced(dw, shop, "customers", "--key", "1")["lake"][0]["values"]["name"] == "Ada"


def test_what_is_read_again_and_again_is_told_once(dw, shop, terminal):
    for _ in range(3):
        run(dw, shop, "customers")
    lines = on_screen(terminal("trace", "customers", "--key", "id=1", "--no-color"))
    assert sum("row 1 of" in line for line in lines) == 1
    assert any("read again by 2 later runs" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ordres", "--key", "1"), "Did you mean 'orders'?"),
        (("orders",), "--key id=…"),
        (("orders", "--key", "forty-two"), "'forty-two' is no bigint"),
        (("orders", "--key", "nosuch=1"), "no column 'nosuch'"),
        (("orders", "--key", "1", "--key", "2"), "which column"),
        (("missing", "--key", "id=1"), "dw run broken.missing"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(dw, shop, twice, words, said):
    done = dw("trace", *words, cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_values_are_never_sql(dw, shop, twice, warehouse):
    for value in ("note='; drop table orders; --", 'note="x" or true', "note=%s %(v)s {}"):
        done = dw("trace", "orders", "--key", value, cwd=shop)
        assert done.returncode == 1, done.stderr
        assert "No row with note" in done.stderr
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


def test_a_damaged_file_is_told_and_the_others_are_read(dw, shop, twice):
    found = traced(dw, shop, "orders", "--key", "42")
    (shop / "lake" / found["lake"][0]["file"]).write_bytes(b"nothing of the kind")
    done = dw("trace", "orders", "--key", "42", "--json", cwd=shop)
    assert done.returncode == 0
    assert [entry["run_id"] for entry in json.loads(done.stdout)["lake"]] == [twice[0]]
    assert "cannot be read" in done.stderr


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_it_fits_the_screen_and_is_safe(terminal, dw, shop, columns):
    run(dw, shop)
    lines = on_screen(terminal("trace", "orders", "--key", "2", "--no-color", width=columns))
    assert max(width(line) for line in lines) <= columns
    assert any(r"tab\there\nnew \x1b" in line for line in lines)
    assert lines[0] == "public.orders  id = 2"

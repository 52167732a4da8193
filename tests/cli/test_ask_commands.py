"""`dw query`, `dw preview` and `dw test-connection`: asking the warehouse and the sources."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import closing
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from dwcli.cli.query import quoted
from dwcli.render.words import width
from tests.cli.test_look_commands import on_screen, rows_of
from tests.connectors.places import ftp_place

HARD = (
    "select 9007199254740993 as big, 1.10::numeric(12,2) as exact, 'tab\t[red]\x1b[31m' as text,"
    " null as nothing, '' as empty, array[1.50, null] as list, 'größe 日本語' as größe"
)


# -- query ---------------------------------------------------------------------------------------------


def test_an_answer_into_a_pipe_is_exact_tsv(dw, shop):
    done = dw("query", HARD, cwd=shop)
    assert done.stdout.splitlines()[1] == (
        "9007199254740993\t1.10\ttab\\t[red]\x1b[31m\t\\N\t\t{1.50,NULL}\tgröße 日本語"
    )
    assert re.fullmatch(r"1 row, .*s\n", done.stderr)


def test_an_answer_as_json_keeps_every_digit(dw, shop):
    [row] = json.loads(dw("query", HARD, "--json", cwd=shop).stdout, parse_float=Decimal)
    assert (row["big"], row["exact"], row["list"]) == (
        9007199254740993,
        Decimal("1.10"),
        [Decimal("1.50"), None],
    )
    assert (row["nothing"], row["empty"], row["text"]) == (None, "", "tab\t[red]\x1b[31m")


def test_formulas_are_exact_text_unless_a_spreadsheet_is_to_open_them(dw, shop):
    sql = "select '=1+2' as a, '@x' as b, -5 as c, 'a=b' as d, null as e"
    assert dw("query", sql, "--format", "csv", cwd=shop).stdout == "a,b,c,d,e\n=1+2,@x,-5,a=b,\n"
    done = dw("query", sql, "--format", "csv", "--spreadsheet", cwd=shop)
    assert done.stdout == "a,b,c,d,e\n'=1+2,'@x,-5,a=b,\n"
    refused = dw("query", sql, "--json", "--spreadsheet", cwd=shop)
    assert refused.returncode == 2 and "add --format csv" in refused.stderr


def test_csv_tells_null_from_empty(dw, shop):
    done = dw("query", "select null as a, '' as b", "--format", "csv", cwd=shop)
    assert done.stdout == 'a,b\n,""\n'


def test_the_suffix_of_the_output_chooses_the_format(dw, shop):
    assert dw("query", HARD, "-o", "out.parquet", cwd=shop).returncode == 0
    assert pl.read_parquet(shop / "out.parquet")["exact"].to_list() == [Decimal("1.10")]
    assert dw("query", "select 1 as a", "-o", "out.csv", cwd=shop).stdout == ""
    assert (shop / "out.csv").read_text("utf-8") == "a\n1\n"


def test_an_answer_that_fails_half_way_leaves_no_file(dw, shop):
    (shop / "out.csv").write_text("before", "utf-8")
    done = dw("query", "select 1 / (g - 5000) from generate_series(1, 9999) g", "-o", "out.csv", cwd=shop)
    assert done.returncode == 1
    assert (shop / "out.csv").read_text("utf-8") == "before"
    assert [path.name for path in shop.iterdir() if "part" in path.name] == []


def test_sql_comes_from_a_file_or_from_stdin(dw, shop):
    (shop / "q.sql").write_text("select 'file' as a;\n", "utf-8")
    assert dw("query", "-f", "q.sql", cwd=shop).stdout == "a\nfile\n"
    assert dw("query", cwd=shop, stdin="select 'stdin' as a").stdout == "a\nstdin\n"


@pytest.mark.parametrize(
    "sql",
    [
        "create table hacked (a int)",
        "commit; create table hacked (a int)",
        "select set_config('default_transaction_read_only', 'off', false); create table hacked (a int)",
    ],
)
def test_nothing_is_written_without_write(dw, shop, warehouse, sql):
    done = dw("query", sql, cwd=shop)
    assert done.returncode == 1
    assert "--write" in done.stderr
    assert warehouse.execute("select to_regclass('hacked')").fetchone() == (None,)


def test_a_table_that_is_not_there_is_answered_with_the_one_that_was_meant(dw, shop):
    assert "fix: did you mean orders?" in dw("query", "select * from public.Ordes", cwd=shop).stderr
    assert "fix: dw status lists" in dw("query", "select * from xyzzy", cwd=shop).stderr
    assert (quoted("public", "Order_Lines"), quoted("raw", "a")) == ('"Order_Lines"', "raw.a")


def test_with_write_statements_happen_together_or_not_at_all(dw, shop, warehouse):
    assert (
        dw("query", "--write", "create table t (a int); insert into t values (1)", cwd=shop).returncode == 0
    )
    assert dw("query", "--write", "insert into t values (2); select 1/0", cwd=shop).returncode == 1
    assert warehouse.execute("select array_agg(a) from t").fetchone() == ([1],)


def test_an_error_in_sql_shows_the_place(dw, shop):
    done = dw("query", "select 1,\n  nope", cwd=shop)
    what, why, caret, *_ = done.stderr.splitlines()
    assert done.returncode == 1
    assert what == 'dw: column "nope" does not exist  [DW-SQL]'
    assert why.endswith("line 2:   nope")
    assert caret.index("^") == why.index("nope")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((" ",), "no SQL"),
        (("select 1", "--format", "parquet"), "needs a file"),
        (("select 1", "-f", "q.sql"), "not both"),
        (("select 1", "--json", "--format", "csv"), "do not go together"),
        (("set timezone = 'UTC'",), "no answer to show"),
        (("select 1", "-o", "no/such/folder/a.csv"), "cannot be written"),
    ],
)
def test_query_refuses_what_makes_no_sense(dw, shop, words, said):
    done = dw("query", *words, cwd=shop)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_screen_shows_the_first_rows_and_says_that_there_are_more(terminal):
    lines = on_screen(terminal("query", "select g from generate_series(1, 100) g", "--max-rows", "5"))
    assert [line.strip() for line in lines[:6]] == ["g", "1", "2", "3", "4", "5"]
    assert lines[6].startswith("There is more: these are the first 5 rows.")


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_an_answer_fits_the_screen_and_cannot_steer_it(terminal, columns):
    lines = on_screen(terminal("query", HARD, "--no-color", width=columns))
    text = " ".join(lines)
    assert max(width(line) for line in lines) <= columns
    assert "tab\\t[red]\\x1b[31m" in text
    assert "NULL" in text
    assert "größe 日本語" in text


def test_an_answer_of_any_size_takes_little_memory(environment, shop):
    """A million rows of 200 bytes pass through; the process stays far below their size."""
    import subprocess
    import sys

    code = (
        "import pathlib, sys; from dwcli.cli.app import main;"
        "main(['query', \"select g, repeat('x', 200) from generate_series(1, 1000000) g\"]);"
        # not ru_maxrss, which begins with what the parent held when it forked
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shop,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(done.stderr.splitlines()[-1]) < 150_000  # KB; the rows alone are 200 MB


def test_the_prompt_of_psql_is_connected_without_a_password_in_sight():
    from dwcli.cli.query import shell_environment

    given = shell_environment(
        "postgresql+psycopg://reader:p%40ss@db.internal:5433/shop?sslmode=require", False
    )
    assert given == {
        "PGHOST": "db.internal",
        "PGPORT": "5433",
        "PGUSER": "reader",
        "PGPASSWORD": "p@ss",
        "PGDATABASE": "shop",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c default_transaction_read_only=on",
    }
    assert "PGOPTIONS" not in shell_environment("postgresql://reader@db/shop", True)


def test_query_alone_opens_psql_read_only(terminal):
    child = terminal("query")
    child.expect("psql, read-only")
    child.expect("=#|=>")
    child.sendline("show default_transaction_read_only;")
    child.expect("on")
    child.sendline("\\q")
    child.expect("(?s).*")


# -- preview -------------------------------------------------------------------------------------------


def test_preview_shows_values_and_types_as_they_would_be_loaded(dw, shop):
    done = dw("preview", "orders", "-n", "3", "--json", cwd=shop)
    found = json.loads(done.stdout, parse_float=Decimal)
    types = {column["name"]: column["type"] for column in found["columns"]}
    assert (types["id"], types["updated_at"]) == ("bigint", "timestamptz")
    assert [row["id"] for row in found["rows"]] == [1, 2, 3]
    assert found["rows"][0]["updated_at"] == "2026-01-01T10:00:01Z"
    assert found["rows"][2]["note"] is None
    assert not (shop / "lake").exists()


def test_preview_of_any_resource_of_a_source(dw, shop):
    found = rows_of(dw("preview", "shop", "select name from customers", cwd=shop).stdout)
    assert found == [{"name": "Ada"}, {"name": "Grace"}]


def test_preview_in_a_terminal_has_types_under_the_names(terminal):
    lines = on_screen(terminal("preview", "orders", "-n", "2", "--no-color"))
    assert lines[0].split() == ["id", "total", "note", "updated_at"]
    assert lines[1].split()[0] == "bigint"
    assert "tab\\there\\nnew \\x1b[31mline" in lines[3]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(("shop",), 2, "dw preview shop.orders"), (("nosuch",), 2, "nosuch"), (("missing",), 1, "nowhere")],
)
def test_preview_says_what_it_cannot_show(dw, shop, words, code, said):
    done = dw("preview", *words, cwd=shop)
    assert done.returncode == code
    assert said in done.stderr


# -- test-connection -----------------------------------------------------------------------------------


def test_every_connection_is_checked_layer_by_layer(dw, shop):
    done = dw("test-connection", cwd=shop)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True)
    assert [entry["name"] for entry in found["connections"]] == ["dw", "broken", "shop"]
    assert "can read 2 tables" in done.stderr


@pytest.fixture
def silent_server():
    """Address of a web server that has nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ("protocol: http\nbase_url: {base}/api", "lists no endpoints: name a path as the query"),
        ("protocol: url\nurl: {base}/", "does not tell what is in a folder: name a file as the query"),
        ("protocol: sqlite\ndatabase_path: ./empty.db", "lists nothing: it is empty, or this login may see"),
    ],
)
def test_a_source_that_lists_nothing_says_what_that_means(dw, shop, silent_server, connection, said):
    with closing(sqlite3.connect(shop / "empty.db")) as database, database:
        database.execute("create table t (id integer)")
        database.execute("drop table t")
    (shop / "sources" / "quiet.yaml").write_text(connection.format(base=silent_server) + "\n", "utf-8")
    done = dw("test-connection", "quiet", cwd=shop)
    assert done.returncode == 0, done.stderr
    check = json.loads(done.stdout)["checks"][-1]
    assert (check["layer"], check["ok"]) == ("read", True)
    assert said in check["detail"]
    assert "can read 0" not in done.stderr


def test_the_warehouse_alone_is_one_object(dw, shop):
    found = json.loads(dw("test-connection", "--source", "dw", cwd=shop).stdout)
    assert (found["name"], found["ok"]) == ("dw", True)
    assert {"login", "database", "permission"} <= {check["layer"] for check in found["checks"]}


def test_a_failed_layer_comes_with_its_fix(dw, shop):
    (shop / "sources" / "erp.yaml").write_text(
        "protocol: postgres\nhost: 127.0.0.1\nport: 1\ndatabase: erp\nusername: reader\n"
        "password: ${env:ERP_PASSWORD}\n",
        "utf-8",
    )
    unset = dw("test-connection", "erp", cwd=shop)
    assert unset.returncode == 1
    assert "${env:ERP_PASSWORD} is not set" in unset.stderr
    refused = dw("test-connection", "erp", cwd=shop, ERP_PASSWORD="hunter22")
    checks = json.loads(refused.stdout)["checks"]
    assert [(check["layer"], check["ok"]) for check in checks] == [("name", True), ("port", False)]
    assert "fix: " in refused.stderr
    assert "hunter22" not in refused.stdout + refused.stderr


def test_a_config_file_is_checked_without_a_project(dw, shop, tmp_path):
    done = dw("test-connection", "--config", str(shop / "sources" / "shop.yaml"), cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)


def test_an_unknown_source_is_named_with_the_nearest(dw, shop):
    done = dw("test-connection", "shp", cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'shop'?" in done.stderr


def test_a_password_that_crosses_the_network_readable_is_told_of(dw, shop, tmp_path):
    with ftp_place(tmp_path) as place:
        place.write("orders.csv", b"id\n1\n")
        fields = "".join(f"{name}: {value}\n" for name, value in place.config.items())
        (shop / "sources" / "drop.yaml").write_text(fields, "utf-8")
        done = dw("test-connection", "drop", cwd=shop)
        (shop / "sources" / "drop.yaml").write_text(fields.replace("s3cret", "${env:FTP_PW}"), "utf-8")
        doctor = dw("doctor", cwd=shop, FTP_PW="s3cret")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["checks"]
    assert [check["layer"] for check in found] == ["name", "port", "login", "warning", "read"]
    assert "offers no TLS: anyone on the way can read the password" in " ".join(done.stderr.split())
    assert "drop: can read 1 file" in doctor.stderr + doctor.stdout

"""Which warehouse, how it is connected to, and what is said when it cannot be."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from sqlalchemy import text

from dwcli.errors import ConfigError, ConnectionFailed, SecretMissing
from dwcli.warehouse import check, connect, make_engine, mask_url, resolve_url
from dwcli.warehouse.engine import lost_connections_named

# -- which warehouse ---------------------------------------------------------------------------------


def test_what_is_typed_wins_over_the_environment_and_that_over_the_config() -> None:
    env = {"DW_URL": "postgresql://env/x", "DW_HOST": "parts", "DW_DATABASE": "d", "DW_USERNAME": "u"}
    assert resolve_url("postgresql://typed/x", env, "embedded") == "postgresql://typed/x"
    assert resolve_url(None, env, "embedded") == "postgresql://env/x"
    assert resolve_url(None, env | {"DW_URL": ""}, "embedded") == "postgresql://u@parts:5432/d"
    assert resolve_url(None, {}, "embedded") == "embedded"


def test_parts_from_the_environment_may_hold_any_character() -> None:
    env = {"DW_HOST": "::1", "DW_PORT": "6000", "DW_DATABASE": "my db", "DW_USERNAME": "a@b",
           "DW_PASSWORD": "p:/?#@%", "DW_SSLMODE": "require"}  # fmt: skip
    url = resolve_url(None, env, None)
    assert psycopg.conninfo.conninfo_to_dict(url) == {
        "host": "::1", "port": "6000", "dbname": "my db", "user": "a@b", "password": "p:/?#@%",
        "sslmode": "require",
    }  # fmt: skip
    on_socket = psycopg.conninfo.conninfo_to_dict(resolve_url(None, env | {"DW_HOST": "/run/pg"}, None))
    assert on_socket["host"] == "/run/pg"
    assert on_socket["port"] == "6000"


@pytest.mark.parametrize(
    ("env", "missing"), [({"DW_HOST": "h"}, "DW_DATABASE and DW_USERNAME"), ({}, "no warehouse is given")]
)
def test_what_is_missing_is_named(env: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        resolve_url(None, env, None)


def test_a_password_reference_needs_no_percent_encoding(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss/w:rd%\n")
    env = {"PW": "p@ss/w:rd%", "WHOLE": "postgresql://u:p@h/db", "HOST": "h:6000"}
    for reference in ("${env:PW}", "${file:password}"):
        url = resolve_url(None, env, f"postgresql://u:{reference}@${{env:HOST}}/db", tmp_path)
        assert psycopg.conninfo.conninfo_to_dict(url)["password"] == "p@ss/w:rd%"
        assert "@h:6000/db" in url
    assert resolve_url(None, env, "${env:WHOLE}") == env["WHOLE"]
    with pytest.raises(SecretMissing, match="NOWHERE"):
        resolve_url(None, env, "postgresql://u:${env:NOWHERE}@h/db")


@pytest.mark.parametrize("url", ["mysql://h/db", "embeded", "host=localhost"])
def test_what_is_no_postgresql_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="neither 'embedded' nor a PostgreSQL URL"):
        resolve_url(url, {}, None)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://reader:s3cret@host/db", "postgresql://reader:***@host/db"),
        ("postgresql://reader@host:5432/db", "postgresql://reader@host:5432/db"),
        ("postgresql://reader:s3/cr@et@host/db", "postgresql://reader:***@host/db"),
        ("postgresql://:s3cret@host/db", "postgresql://:***@host/db"),
        (
            "postgresql:///db?host=/run&password=s3cret&port=1",
            "postgresql:///db?host=/run&password=***&port=1",
        ),
        ("postgresql://h/db?PASSWORD=s3cret#x", "postgresql://h/db?PASSWORD=***#x"),
        ("embedded", "embedded"),
    ],
)
def test_a_masked_url_has_no_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


# -- connecting --------------------------------------------------------------------------------------


def test_every_session_has_the_same_settings_whatever_the_roles_are(
    warehouse: psycopg.Connection, warehouse_url: str
) -> None:
    database = warehouse.info.dbname
    for odd in ("TimeZone = 'Asia/Tokyo'", "DateStyle = 'German'", "IntervalStyle = 'iso_8601'",
                "statement_timeout = '1s'", "bytea_output = 'escape'"):  # fmt: skip
        warehouse.execute(f"ALTER DATABASE {database} SET {odd}")
    with connect(warehouse_url, application_name="dw run shop.orders") as connection:
        assert not connection.autocommit
        expected = {"TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "postgres",
                    "statement_timeout": "0", "idle_in_transaction_session_timeout": "1d",
                    "client_connection_check_interval": "1s", "bytea_output": "hex",
                    "client_encoding": "UTF8", "application_name": "dw run shop.orders"}  # fmt: skip
        found = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in expected}
        assert found == expected
        connection.rollback()
        assert connection.execute("SHOW TimeZone").fetchone()[0] == "UTC", "a rollback does not undo them"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_all_common_forms_of_a_url_connect(warehouse_url: str, scheme: str) -> None:
    with connect(warehouse_url.replace("postgresql", scheme, 1)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_engines_connections_are_the_same(warehouse_url: str) -> None:
    engine = make_engine(warehouse_url)
    with engine.begin() as connection:
        assert connection.execute(text("SHOW TimeZone")).scalar() == "UTC"
        connection.execute(text("CREATE TABLE t (a int)"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 0
    assert (urlsplit(warehouse_url).password or "nothing") not in repr(engine)


def test_a_light_connection_does_not_import_sqlalchemy(warehouse_url: str) -> None:
    script = (
        "import sys; from dwcli.warehouse import connect, embedded; assert 'psycopg' not in sys.modules;"
        f"connect({warehouse_url!r}).close(); assert 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


# -- what is said when it fails ----------------------------------------------------------------------


def changed(url: str, user: str = "", password: str = "", database: str = "", query: str = "") -> str:
    parts = urlsplit(url)
    login = f"{user or parts.username}:{password or parts.password}"
    host = parts.netloc.rpartition("@")[2]
    path = f"/{database}" if database else parts.path
    joined = "&".join(filter(None, [parts.query, query]))
    return urlunsplit(parts._replace(netloc=f"{login}@{host}", path=path, query=joined))


def failed(url: str) -> ConnectionFailed:
    with pytest.raises(ConnectionFailed) as caught:
        connect(url)
    assert caught.value.__cause__ is None
    said = f"{caught.value} {caught.value.why} {caught.value.hint}"
    assert (urlsplit(url).password or "nothing") not in said
    assert "\n" not in said
    return caught.value


def test_a_wrong_password_is_the_layer_login(warehouse_url: str) -> None:
    if not urlsplit(warehouse_url).password:
        pytest.skip("this server asks for no password")
    error = failed(changed(warehouse_url, password="wr0ng-passw0rd"))
    assert error.layer == "login"
    assert error.code == "DW-CONN-LOGIN"
    assert error.why.startswith("password authentication failed")


def test_a_role_that_may_not_log_in_is_the_layer_login(
    warehouse: psycopg.Connection, warehouse_url: str
) -> None:
    role = f"{warehouse.info.dbname}_role"
    warehouse.execute(f"CREATE ROLE {role} NOLOGIN PASSWORD 'secret-1234'")
    try:
        assert failed(changed(warehouse_url, role, "secret-1234")).layer == "login"
        assert failed(changed(warehouse_url, "no_such_role", "secret-1234")).layer == "login"
    finally:
        warehouse.execute(f"DROP ROLE {role}")


def test_a_database_that_is_not_there_is_the_layer_database(warehouse_url: str) -> None:
    error = failed(changed(warehouse_url, database="nosuch"))
    assert error.layer == "database"
    assert "'nosuch'" in error.message


def test_a_database_that_may_not_be_used_is_the_layer_permission(
    warehouse: psycopg.Connection, warehouse_url: str
) -> None:
    database = warehouse.info.dbname
    role = f"{database}_role"
    warehouse.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-1234'")
    warehouse.execute(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    try:
        assert failed(changed(warehouse_url, role, "secret-1234")).layer == "permission"
    finally:
        warehouse.execute(f"DROP ROLE {role}")


def test_tls_that_the_server_does_not_have_is_the_layer_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_no_tls, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        assert failed(f"postgresql://u:secret-1234@127.0.0.1:{port}/db?sslmode=require").layer == "tls"
        thread.join()


def answer_no_tls(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(8)
        connection.sendall(b"N")


@pytest.mark.parametrize(
    ("place", "layer"),
    [("127.0.0.1:1", "port"), ("no-such-host.invalid:5432", "name"), ("/db?host=/nowhere", "port")],
)
def test_a_server_that_is_not_there_is_the_layer_name_or_port(place: str, layer: str) -> None:
    assert failed(f"postgresql://u:secret-1234@{place}").layer == layer


@pytest.mark.parametrize("password", ["se/cr@et", "se@cret", "se/cret", "se:cr@et", "se%cret"])
def test_a_url_that_cannot_be_read_does_not_show_its_password(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(f"postgresql://u:{password}@host.invalid/db")
    said = f"{caught.value} {caught.value.why} {caught.value.hint}"
    assert "se" not in re.sub("warehouse|user", "", said)
    assert "%40" in said


def message(kind: bytes, *fields: bytes) -> bytes:
    body = b"".join(field + b"\0" for field in fields) + b"\0"
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@pytest.fixture
def starting_up(warehouse_url: str) -> Iterator[tuple[int, list[int]]]:
    """A port whose server says three times that it is starting up, then nothing listens there."""
    said: list[int] = []

    def refuse(listener: socket.socket) -> None:
        while len(said) < 3:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                text = b"Mthe database system is starting up"
                connection.sendall(message(b"E", b"SFATAL", b"VFATAL", b"C57P03", text))
            said.append(1)
        listener.close()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=refuse, args=(listener,))
    thread.start()
    yield listener.getsockname()[1], said
    thread.join()


def test_a_server_that_is_starting_up_is_waited_for(starting_up: tuple[int, list[int]]) -> None:
    port, said = starting_up
    error = failed(f"postgresql://u@127.0.0.1:{port}/db?sslmode=disable")
    assert error.layer == "port", "the fourth attempt found nobody, so the three before were not the end"
    assert len(said) == 3


def test_a_connection_that_breaks_is_the_layer_lost(
    warehouse: psycopg.Connection, warehouse_url: str
) -> None:
    connection = connect(warehouse_url)
    warehouse.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
    with pytest.raises(ConnectionFailed) as caught, lost_connections_named(warehouse_url):
        connection.execute("SELECT 1")
    connection.close()
    assert caught.value.layer == "lost"
    with pytest.raises(psycopg.errors.QueryCanceled), lost_connections_named(warehouse_url):
        warehouse.execute("SET statement_timeout = 1; SELECT pg_sleep(10)")


# -- checking ----------------------------------------------------------------------------------------


def test_a_check_tells_every_layer(warehouse_url: str) -> None:
    found = list(check(warehouse_url))
    assert [c.layer for c in found][-5:] == ["tls", "login", "database", "permission", "version"]
    assert all(c.ok and c.milliseconds >= 0 for c in found)
    with connect(warehouse_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,), "it leaves nothing behind"


@pytest.mark.parametrize(
    ("place", "layers"),
    [("127.0.0.1:1", ["name", "port"]), ("no-such-host.invalid", ["name"]), ("/db?host=/nowhere", ["port"])],
)
def test_a_check_ends_at_the_first_layer_that_fails(place: str, layers: list[str]) -> None:
    found = list(check(f"postgresql://u:secret-1234@{place}"))
    assert [c.layer for c in found] == layers
    assert not found[-1].ok
    assert found[-1].hint


def test_a_check_finds_missing_rights_and_schemas(warehouse: psycopg.Connection, warehouse_url: str) -> None:
    role = f"{warehouse.info.dbname}_role"
    warehouse.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-1234'")
    try:
        url = changed(warehouse_url, role, "secret-1234")
        denied = list(check(url))[-1]
        assert (denied.layer, denied.ok) == ("permission", False)
        assert "GRANT USAGE, CREATE" in denied.hint
        absent = list(check(url, schema="mart"))[-1]
        assert 'CREATE SCHEMA "mart"' in absent.hint
    finally:
        warehouse.execute(f"DROP ROLE {role}")

"""WebDAV: logins, certificates, listings that lie, and connections that break."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from dwcli.connectors import create_connector
from dwcli.connectors._remote_files import fetch, list_remote
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from tests.connectors.places import certificates, served, webdav_place


def ids(config: dict, query: str = "*.csv", **more) -> list[int]:
    connector = create_connector(config | more)
    connector.connect()
    try:
        found = connector.fetch_data(query, Cursor()).items
        return [v for item in found if item.payload is not None for v in item.payload["id"].to_list()]
    finally:
        connector.close()


def refused(config: dict, **more) -> ConnectionFailed:
    with pytest.raises(ConnectionFailed) as caught:
        ids(config, **more)
    assert "s3cret" not in str(caught.value.args) + caught.value.why + caught.value.hint
    return caught.value


@pytest.fixture
def place(tmp_path):
    with webdav_place(tmp_path) as found:
        found.write("a.csv", b"id\n1\n")
        yield found


def test_tls_is_used_with_a_certificate_that_is_trusted(tmp_path):
    tls = certificates(tmp_path)
    with webdav_place(tmp_path, tls) as place:
        place.write("a.csv", b"id\n1\n")
        assert ids(place.config, ca_file=str(tls.authority)) == [1]
        assert refused(place.config).layer == "tls"


def test_a_wrong_password_is_a_failed_login(place):
    assert refused(place.config, password="wrong").layer == "login"
    assert refused(place.config, username="").layer == "login"


def test_a_host_or_port_that_is_not_there_is_told_apart(place):
    assert refused(place.config, base_url="http://no.such.host.invalid/dav").layer == "name"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert refused(place.config, base_url=f"http://127.0.0.1:{port}/dav").layer == "port"


def test_a_base_path_that_is_not_there_is_told(place):
    with pytest.raises(ResourceMissing, match="nowhere"):
        ids(place.config, remote_base_path="nowhere")


def test_an_address_with_a_password_in_it_is_refused():
    from dwcli.errors import ConfigError

    with pytest.raises(ConfigError):
        create_connector({"protocol": "webdav", "base_url": "https://me:s3cret@example.com/dav"})


def test_a_server_that_is_no_webdav_is_told(tmp_path):
    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<p>hello</p>"]

    with served(page) as url, pytest.raises(QueryFailed, match="WebDAV"):
        ids({"protocol": "webdav", "base_url": url})


def test_a_file_that_changes_while_it_is_fetched_is_an_error(place):
    connector = create_connector(place.config)
    connector.connect()
    (listed,) = list_remote(connector.client.server, "a.csv", "auto")
    place.write("a.csv", b"id\n2\n")
    with pytest.raises(SourceData, match="changed"):
        fetch(connector.client.server, listed)
    place.remove("a.csv")
    assert fetch(connector.client.server, listed).path is None
    connector.close()
    connector.close()


def listing(*hrefs: str, head: str = "") -> bytes:
    """A PROPFIND answer with these files in the folder /dav/."""
    inside = "<d:prop><d:getcontentlength>5</d:getcontentlength><d:getetag>1</d:getetag></d:prop>"
    folder = "<d:prop><d:resourcetype><d:collection/></d:resourcetype></d:prop>"
    lines = [f"<d:response><d:href>/dav/</d:href><d:propstat>{folder}</d:propstat></d:response>"]
    lines += [
        f"<d:response><d:href>{h}</d:href><d:propstat>{inside}</d:propstat></d:response>" for h in hrefs
    ]
    return (
        f'<?xml version="1.0"?>{head}<d:multistatus xmlns:d="DAV:">{"".join(lines)}</d:multistatus>'.encode()
    )


def answering(body: bytes):
    def app(environ, start_response):
        if environ["REQUEST_METHOD"] == "GET":
            start_response("200 OK", [("Content-Length", "5")])
            return [b"id\n1\n"]
        start_response("207 Multi-Status", [("Content-Type", "application/xml")])
        return [body]

    return app


@pytest.mark.parametrize(
    "body",
    [
        listing("/etc/passwd.csv"),
        listing("/dav/%2e%2e"),
        listing("/dav/..%2f..%2fx.csv"),
        listing("/dav/a/b.csv"),
        b"<not xml",
        listing("/dav/a.csv", head='<!DOCTYPE x [<!ENTITY a "aaaa">]>'),
    ],
)
def test_listings_that_lead_elsewhere_or_cannot_be_read_are_refused(body):
    with served(answering(body)) as url, pytest.raises(SourceData):
        ids({"protocol": "webdav", "base_url": f"{url}/dav"})


def test_listings_of_a_server_behind_another_prefix_are_read():
    body = listing("/dav/a%20b.csv").replace(b"/dav/", b"http://inner/prefix/dav/")
    with served(answering(body)) as url:
        connector = create_connector({"protocol": "webdav", "base_url": f"{url}/dav"})
        connector.connect()
        assert [file.name for file in list_remote(connector.client.server, "", "auto")] == ["a b.csv"]
        connector.close()


def test_a_transfer_that_breaks_off_is_an_error(tmp_path):
    def cutting(inner, environ, start_response):
        if environ["REQUEST_METHOD"] != "GET":
            return inner(environ, start_response)
        start_response("200 OK", [("Content-Length", "3500003")])
        return [b"id\n" + b"123456\n" * 1000]

    with webdav_place(tmp_path, app=cutting) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        assert refused(place.config).layer == "lost"


def test_a_server_that_falls_silent_ends_by_timeout_or_by_closing(tmp_path):
    reached, done = threading.Event(), threading.Event()

    def stalling(inner, environ, start_response):
        if environ["REQUEST_METHOD"] == "GET":
            reached.set()
            done.wait(20)
        return inner(environ, start_response)

    with webdav_place(tmp_path, app=stalling) as place:
        place.write("a.csv", b"id\n1\n")
        error = refused(place.config, timeout_seconds=0.5)
        assert error.layer == "lost"

        reached.clear()
        connector = create_connector(place.config)
        connector.connect()
        failed = []

        def read():
            try:
                list(connector.fetch_data("a.csv").items)
            except ConnectionFailed as error:
                failed.append(error.layer)

        thread = threading.Thread(target=read)
        thread.start()
        assert reached.wait(10)
        started = time.monotonic()
        connector.close()
        thread.join(10)
        done.set()
        assert failed == ["lost"]
        assert time.monotonic() - started < 5

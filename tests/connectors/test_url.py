"""Files by their web addresses: what changed, where credentials go, and what is no data file."""

from __future__ import annotations

import gzip
from contextlib import contextmanager

import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.connectors.places import certificates, served
from tests.pipeline.runs import rows_of


def items(url: str, query: str = "", position=None, **more) -> list:
    connector = create_connector({"protocol": "url", "url": url} | more)
    connector.connect()
    try:
        return list(connector.fetch_data(query, Cursor(position=position)).items)
    finally:
        connector.close()


def ids(url: str, query: str = "", position=None, **more) -> list[int]:
    found = items(url, query, position, **more)
    return [v for item in found if item.payload is not None for v in item.payload["id"].to_list()]


def refused(url: str, query: str = "", **more) -> DwError:
    with pytest.raises(DwError) as caught:
        ids(url, query, **more)
    assert "s3cret" not in str(caught.value.args) + caught.value.why + caught.value.hint
    return caught.value


class Site:
    """Answers by path: (status, headers, body), or a function of the environment."""

    def __init__(self):
        self.pages = {}
        self.asked = []

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        self.asked.append((environ["REQUEST_METHOD"], path, environ))
        found = self.pages.get(path, ("404 Not Found", [], b"no"))
        status, headers, body = found(environ) if callable(found) else found
        headers = (
            [*headers]
            if any(k == "Content-Length" for k, _ in headers)
            else [
                *headers,
                ("Content-Length", str(len(body))),
            ]
        )
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def put(self, path, body, *headers, status="200 OK"):
        self.pages[path] = (status, list(headers), body)


@pytest.fixture
def site():
    found = Site()
    with served(found) as url:
        found.url = url
        yield found


@contextmanager
def other_site():
    found = Site()
    with served(found) as url:
        found.url = url
        yield found


def test_a_file_is_read_with_its_name_and_type(site):
    site.put("/data/ü 1.csv".encode().decode("latin-1"), b"id,v\n1,2.50\n")
    (item,) = items(f"{site.url}/data/ü 1.csv")
    assert item.payload.row(0, named=True)["_source_path"] == "ü 1.csv"
    assert item.payload["id"].to_list() == [1]


def test_files_are_named_below_a_folder_or_by_their_whole_address(site):
    site.put("/data/a.csv", b"id\n1\n")
    site.put("/data/x/b.csv", b"id\n2\n")
    assert ids(f"{site.url}/data/", "a.csv") == [1]
    assert ids(f"{site.url}/data/", "x/b.csv") == [2]
    assert ids(f"{site.url}/data/a.csv", f"{site.url}/data/x/b.csv") == [2]
    assert [r.name for r in connected(f"{site.url}/data/a.csv").discover()] == ["a.csv"]


def connected(url: str):
    connector = create_connector({"protocol": "url", "url": url})
    connector.connect()
    return connector


@pytest.mark.parametrize(
    "query", ["", "*.csv", "../b.csv", "%2e%2e/b.csv", "http://example.com/a.csv", "/b.csv"]
)
def test_queries_that_mean_no_file_below_the_address_are_refused(site, query):
    assert isinstance(refused(f"{site.url}/data/", query), QueryFailed)


def test_parameters_of_the_address_are_sent_but_never_kept(site):
    def export(environ):
        assert environ["QUERY_STRING"] in ("token=s3cret&q=a*", "token=s3cret&q=/b")
        return "200 OK", [("Content-Type", "text/csv")], b"id\n1\n"

    site.pages["/export"] = export
    address = f"{site.url}/export?token=s3cret&q=a*"
    refused(address.replace("q=a*", "q=/b"), "http://example.com/a.csv")
    refused(address, "none.csv")
    (item,) = items(address)
    assert item.payload["_source_path"].to_list() == ["export"]
    assert "s3cret" not in str(item.position)


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
def test_a_file_is_read_again_when_its_mark_changes(site, mark):
    site.put("/a.csv", b"id\n1\n", (mark, "one"))
    position = items(f"{site.url}/a.csv")[-1].position
    site.asked.clear()
    assert items(f"{site.url}/a.csv", position=position) == []
    assert {method for method, _, _ in site.asked} == {"HEAD"}
    site.put("/a.csv", b"id\n2\n", (mark, "two"))
    (item,) = items(f"{site.url}/a.csv", position=position)
    assert item.payload["id"].to_list() == [2]
    assert dict(item.replaces) == {"_source_path": "a.csv"}


def test_a_file_without_a_mark_is_read_every_time(site, tmp_path, warehouse_url, warehouse):
    (tmp_path / "sources").mkdir()
    (tmp_path / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "sources" / "in.yaml").write_text(
        f"protocol: url\nurl: {site.url}/a.csv\npipelines:\n  t:\n    query: a.csv\n    write: append\n"
    )
    project = load_project(tmp_path)
    for body in (b"id\n1\n2\n", b"id\n3\n"):
        site.put("/a.csv", body)
        (result,) = run_project(project, select(project, ["t"]), warehouse_url, RunOptions(), lambda e: None)
        assert result["status"] == "success", result["error"]
    assert rows_of(warehouse, "select id from t") == [(3,)]


def test_servers_that_do_not_know_head_or_lengths_are_read(site):
    def get_only(environ):
        if environ["REQUEST_METHOD"] == "HEAD":
            return "405 Method Not Allowed", [], b""
        return "200 OK", [("ETag", "1")], b"id\n1\n"

    def zero(environ):
        size = "0" if environ["REQUEST_METHOD"] == "HEAD" else "5"
        return "200 OK", [("Content-Length", size)], b"id\n1\n"

    site.pages |= {"/a.csv": get_only, "/b.csv": zero}
    assert ids(f"{site.url}/a.csv") == [1]
    assert ids(f"{site.url}/b.csv") == [1]
    connector = connected(f"{site.url}/b.csv")
    assert connector.describe("").bytes_estimate is None
    connector.close()


def test_a_packed_file_stays_packed_on_its_way(site):
    site.put("/a.csv.gz", gzip.compress(b"id\n7\n"), ("Content-Encoding", "gzip"))
    assert ids(f"{site.url}/a.csv.gz") == [7]


def test_a_web_page_is_no_data_file(site):
    site.put("/a.csv", b"<html>please log in</html>", ("Content-Type", "text/html; charset=utf-8"))
    assert isinstance(refused(f"{site.url}/a.csv"), SourceData)


@pytest.mark.parametrize(
    ("status", "layer"),
    [("401 Unauthorized", "login"), ("403 Forbidden", "permission"), ("503 Busy", "lost")],
)
def test_refusals_are_told_apart(site, status, layer):
    site.put("/a.csv", b"", status=status)
    error = refused(f"{site.url}/a.csv", token="s3cret")
    assert isinstance(error, ConnectionFailed)
    assert error.layer == layer


def test_what_is_not_there_is_told(site):
    assert isinstance(refused(f"{site.url}/none.csv"), ResourceMissing)


def test_a_transfer_that_breaks_off_is_an_error(site):
    site.put("/a.csv", b"id\n1\n", ("Content-Length", "5000"))
    error = refused(f"{site.url}/a.csv")
    assert isinstance(error, ConnectionFailed)
    assert error.layer == "lost"


def test_credentials_are_sent_and_stay_with_their_server(site):
    secrets = {"token": "s3cret", "headers": {"X-Key": "s3cret"}}
    with other_site() as other:
        other.put("/a.csv", b"id\n1\n")
        site.put("/a.csv", b"", ("Location", f"{other.url}/a.csv"), status="302 Found")
        site.put("/b.csv", b"", ("Location", "/c.csv"), status="302 Found")
        site.put("/c.csv", b"id\n2\n")
        assert ids(f"{site.url}/a.csv", **secrets) == [1]
        assert ids(f"{site.url}/b.csv", **secrets) == [2]
        assert "s3cret" not in str([environ for _, _, environ in other.asked])
        for _, path, environ in site.asked:
            assert environ["HTTP_AUTHORIZATION"] == "Bearer s3cret", path
            assert environ["HTTP_X_KEY"] == "s3cret", path


def test_redirects_never_leave_https_nor_go_on_for_ever(site, tmp_path):
    site.put("/round.csv", b"", ("Location", "/round.csv"), status="302 Found")
    assert isinstance(refused(f"{site.url}/round.csv"), QueryFailed)
    tls, safe = certificates(tmp_path), Site()
    safe.put("/a.csv", b"", ("Location", f"{site.url}/a.csv"), status="302 Found")
    with served(safe, tls) as url:
        error = refused(f"{url}/a.csv", ca_file=str(tls.authority))
        assert isinstance(error, QueryFailed)
        assert refused(f"{url}/a.csv").layer == "tls"


@pytest.mark.parametrize("url", ["ftp://host/a.csv", "a.csv", "https://me:s3cret@host/a.csv"])
def test_what_is_no_web_address_is_refused(url):
    with pytest.raises(ConfigError):
        create_connector({"protocol": "https", "url": url})

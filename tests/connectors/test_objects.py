"""Object stores: keys, buckets, objects that stand for folders, and connections that break."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from dwcli.connectors import create_connector
from dwcli.connectors._remote_files import fetch, list_remote
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, DwError, ResourceMissing, SourceData
from tests.connectors import places
from tests.connectors.places import served

azurite_endpoint = places.azurite_endpoint


def ids(config: dict, query: str = "*.csv", **more) -> list[int]:
    connector = create_connector(config | more)
    connector.connect()
    try:
        found = connector.fetch_data(query, Cursor()).items
        return [v for item in found if item.payload is not None for v in item.payload["id"].to_list()]
    finally:
        connector.close()


def refused(config: dict, query: str = "*.csv", **more) -> DwError:
    with pytest.raises(DwError) as caught:
        ids(config, query, **more)
    assert "s3cret" not in str(caught.value.args) + caught.value.why + caught.value.hint
    assert "Debug source" not in caught.value.message + caught.value.why
    return caught.value


@pytest.fixture
def s3(tmp_path):
    with places.s3_place(tmp_path) as found:
        yield found


@pytest.fixture
def azure(azurite_endpoint):
    with places.azure_place(azurite_endpoint) as found:
        yield found


def test_a_bucket_or_folder_that_is_not_there_is_told(s3, azure):
    assert isinstance(refused(s3.config, bucket="none-such"), ResourceMissing)
    assert isinstance(refused(s3.config, remote_base_path="nowhere"), ResourceMissing)
    assert isinstance(refused(azure.config, container="none-such"), ResourceMissing)


def test_wrong_keys_are_failed_logins(azure, tmp_path):
    other = "AAAA" + azure.config["account_key"][4:]
    assert refused(azure.config, account_key=other).layer == "login"
    assert refused(azure.config, account_key="no base64!").layer == "login"
    broken = tmp_path / "key.json"
    broken.write_text(json.dumps({"private_key": "s3cret", "client_email": "x"}))
    config = {"protocol": "gcs", "bucket": "files", "endpoint": "http://127.0.0.1:9"}
    assert refused(config, service_account_file=str(broken)).layer == "login"
    assert refused(config, service_account_file=str(tmp_path / "none.json")).layer == "login"


@pytest.mark.parametrize(
    ("status", "code", "layer"),
    [
        ("403 Forbidden", "SignatureDoesNotMatch", "login"),
        ("403 Forbidden", "InvalidAccessKeyId", "login"),
        ("403 Forbidden", "AccessDenied", "permission"),
        ("301 Moved", "PermanentRedirect", "name"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "name"),
        ("503 Slow Down", "SlowDown", "lost"),
    ],
)
def test_refusals_of_the_store_are_told_apart(status, code, layer):
    def app(environ, start_response):
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>because</Message></Error>".encode()]

    with served(app) as url:
        config = {"protocol": "s3", "bucket": "files", "endpoint": url, "access_key_id": "key"}
        error = refused(config, secret_access_key="s3cret", timeout_seconds=2)
    assert error.layer == layer
    assert code in error.why or layer == "name"


def test_a_host_or_port_that_is_not_there_is_told_apart():
    config = {"protocol": "s3", "bucket": "files", "anonymous": True, "timeout_seconds": 2}
    assert refused(config, endpoint="http://no.such.host.invalid").layer == "name"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert refused(config, endpoint=f"http://127.0.0.1:{port}").layer == "port"


def test_a_certificate_must_be_trusted(tmp_path):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/xml")])
        return [b"<ListBucketResult><Name>files</Name><KeyCount>0</KeyCount></ListBucketResult>"]

    tls = places.certificates(tmp_path)
    with served(app, tls) as url:
        config = {"protocol": "s3", "bucket": "files", "endpoint": url, "anonymous": True}
        assert refused(config, timeout_seconds=2).layer == "tls"
        assert isinstance(refused(config, ca_file=str(tls.authority)), ResourceMissing)


def test_objects_that_stand_for_folders_are_no_files(s3):
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "s3cret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3.config["endpoint"], **keys)
    client.put_object(Bucket=s3.config["bucket"], Key="x/", Body=b"")
    s3.write("x/a.csv", b"id\n1\n")
    for query in ("x", "x/*", "**/*", "x/**"):
        assert ids(s3.config, query, format="csv") == [1], query


def test_a_name_that_is_no_path_is_told(s3):
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "s3cret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3.config["endpoint"], **keys)
    s3.write("a.csv", b"id\n1\n")
    for name in ("x//b.csv", "y/../../../etc/c.csv"):
        client.put_object(Bucket=s3.config["bucket"], Key=name, Body=b"id\n2\n")
    assert ids(s3.config, "*.csv") == [1]
    assert isinstance(refused(s3.config, "**/*.csv"), SourceData)


def test_an_object_that_changes_before_it_is_fetched_is_an_error(s3):
    s3.write("a.csv", b"id\n1\n")
    connector = create_connector(s3.config)
    connector.connect()
    (listed,) = list_remote(connector.client.server, "a.csv", "auto")
    s3.write("a.csv", b"id\n2\n")
    with pytest.raises(SourceData, match="changed"):
        fetch(connector.client.server, listed)
    s3.remove("a.csv")
    assert fetch(connector.client.server, listed).path is None
    connector.close()
    connector.close()


class Store:
    """An S3 that has one object, whose body it gives as `give` says."""

    def __init__(self, give):
        self.give = give

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"].rstrip("/") == "/files":
            body = (
                b"<ListBucketResult><Name>files</Name><KeyCount>1</KeyCount><Contents><Key>a.csv</Key>"
                b"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag><Size>3500003</Size>"
                b"</Contents></ListBucketResult>"
            )
            start_response(
                "200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [body]
        headers = [("Content-Length", "3500003"), ("ETag", "1")]
        start_response("200 OK", [*headers, ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")])
        return self.give()


def test_a_transfer_that_breaks_off_is_an_error():
    with served(Store(lambda: [b"id\n" + b"123456\n" * 1000])) as url:
        config = {"protocol": "s3", "bucket": "files", "endpoint": url, "anonymous": True}
        assert refused(config, timeout_seconds=1).layer == "lost"


def test_closing_ends_a_read_from_a_store_that_is_silent():
    reached, done = threading.Event(), threading.Event()

    def stall():
        yield b"id\n" + b"123456\n" * 1000
        reached.set()
        done.wait(20)

    with served(Store(stall)) as url:
        config = {"protocol": "s3", "bucket": "files", "endpoint": url, "anonymous": True}
        connector = create_connector(config)
        connector.connect()
        failed = []

        def read():
            try:
                list(connector.fetch_data("*.csv").items)
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


def test_large_objects_come_whole(s3):
    body = b"id\n" + b"123456\n" * 2_000_000
    s3.write("a.csv", body)
    assert len(ids(s3.config)) == 2_000_000

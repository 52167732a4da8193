"""FTP and FTPS: logins, certificates, servers of other habits, and connections that break."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from dwcli.connectors import create_connector
from dwcli.connectors.ftp import Client as FtpClient
from dwcli.connectors.ftp import Config, _from_line
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, ResourceMissing, SourceData
from tests.connectors.places import certificates, ftp_place


def ids(config: dict, query: str = "*.csv", position=None, **more) -> list[int]:
    connector = create_connector(config | more)
    connector.connect()
    try:
        found = connector.fetch_data(query, Cursor(position=position)).items
        return [v for item in found if item.payload is not None for v in item.payload["id"].to_list()]
    finally:
        connector.close()


def refused(config: dict, **more) -> ConnectionFailed:
    with pytest.raises(ConnectionFailed) as caught:
        ids(config, **more)
    assert "s3cret" not in str(caught.value.args) + caught.value.why + caught.value.hint
    return caught.value


@pytest.mark.parametrize("protocol", ["ftp", "ftps"])
def test_tls_is_used_with_a_certificate_that_is_trusted(tmp_path, protocol):
    tls = certificates(tmp_path)
    with ftp_place(tmp_path, tls) as place:
        place.write("a.csv", b"id\n1\n")
        place.write("b.csv", b"id\n" + b"2\n" * 300_000)
        assert sum(ids(place.config, protocol=protocol, ca_file=str(tls.authority))) == 600_001


def test_a_certificate_that_is_not_trusted_ends_before_the_password(tmp_path):
    with ftp_place(tmp_path, certificates(tmp_path)) as place:
        error = refused(place.config)
    assert error.layer == "tls"
    assert "ca_file" in error.hint


def test_a_certificate_for_another_host_is_refused(tmp_path):
    tls = certificates(tmp_path, "ftp.example.com")
    with ftp_place(tmp_path, tls) as place:
        assert refused(place.config, ca_file=str(tls.authority)).layer == "tls"


def test_a_password_in_plain_text_is_warned_of(tmp_path, caplog):
    with ftp_place(tmp_path) as place:
        place.write("a.csv", b"id\n1\n")
        assert ids(place.config) == [1]
    assert "anyone on the way can read the password" in caplog.text
    assert "s3cret" not in caplog.text


def test_ftps_never_goes_on_without_tls(tmp_path):
    with ftp_place(tmp_path) as place:
        assert refused(place.config, protocol="ftps").layer == "tls"
        assert refused(place.config, tls="require").layer == "tls"


def test_a_wrong_password_is_a_failed_login(tmp_path):
    with ftp_place(tmp_path, auth_failed_timeout=0) as place:
        assert refused(place.config, password="wrong").layer == "login"


def test_a_host_or_port_that_is_not_there_is_told_apart():
    assert refused({"protocol": "ftp", "host": "no.such.host.invalid"}).layer == "name"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert refused({"protocol": "ftp", "host": "127.0.0.1", "port": port}).layer == "port"


def test_a_base_path_that_is_not_there_is_told(tmp_path):
    with ftp_place(tmp_path) as place, pytest.raises(ResourceMissing, match="nowhere"):
        ids(place.config, remote_base_path="nowhere")


def without(*commands: str) -> dict:
    """Handler attributes of a server that does not know these commands."""
    from pyftpdlib.handlers import FTPHandler

    return {"proto_cmds": {name: v for name, v in FTPHandler.proto_cmds.items() if name not in commands}}


@pytest.mark.parametrize("missing", [("MLSD",), ("MLSD", "MDTM")])
def test_servers_without_exact_listings_are_read_too(tmp_path, missing):
    with ftp_place(tmp_path) as ready:
        ready.write("x.csv", b"")
    with ftp_place(tmp_path, **without(*missing)) as place:
        place.write("x.csv", b"id\n1\n")
        place.write("sub/two words.csv", b"id\n2\n")
        (place.root / "link.csv").symlink_to(place.root / "x.csv")
        connector = create_connector(place.config)
        connector.connect()
        found = list(connector.fetch_data("**/*.csv").items)
        connector.close()
        assert [item.payload["id"].to_list() for item in found] == [[1, 2, 1]]
        position = found[-1].position
        assert sorted(position["files"]) == ["link.csv", "sub/two words.csv", "x.csv"]
        place.write("x.csv", b"id\n3\n")
        if "MDTM" not in missing:
            assert sorted(ids(place.config, "x.csv", position)) == [3]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-rw-r--r--   1 ftp ftp      12 Jan 05  2024 a b.csv", ("a b.csv", False, 12)),
        ("drwxr-xr-x   2 1000 domain users 4096 Feb 29 12:30 dir", ("dir", True, 4096)),
        ("-rw-r--r--+  1 ftp ftp      12 Jan  5 12:30 x.csv", ("x.csv", False, 12)),
        ("01-15-24  10:30AM             1234 x.csv", ("x.csv", False, 1234)),
        ("01-15-2024  10:30      <DIR>          sub dir", ("sub dir", True, 0)),
    ],
)
def test_listings_of_unix_and_windows_servers_are_understood(line, expected):
    entry = _from_line(FtpClient(Config(host="h")), "", line)
    assert (entry.name.strip(), entry.folder, entry.size) == expected


def test_a_listing_in_another_form_is_an_error():
    with pytest.raises(SourceData):
        _from_line(FtpClient(Config(host="h")), "", "x.csv;1   12/24  5-JAN-2024 [A,B]")


def test_a_transfer_that_breaks_off_is_an_error(tmp_path):
    from pyftpdlib.handlers import DTPHandler

    class Breaking(DTPHandler):
        def send(self, data):
            result = super().send(data)
            if self.get_transmitted_bytes() > 300_000:
                self.cmd_channel.close()
                self.close()
            return result

    with ftp_place(tmp_path, dtp_handler=Breaking, use_sendfile=False) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        assert refused(place.config).layer == "lost"


def test_a_transfer_that_ends_early_with_a_good_answer_is_an_error(tmp_path, monkeypatch):
    with ftp_place(tmp_path) as place:
        place.write("a.csv", b"id\n1\n2\n")
        connector = create_connector(place.config)
        connector.connect()
        from dwcli.connectors import _remote_files

        listed = _remote_files.list_remote(connector.client.server, "a.csv", "auto")[0]
        monkeypatch.setattr(
            _remote_files,
            "list_remote",
            lambda *a: [type(listed)(listed.name, listed.size + 5, listed.stamp)],
        )
        with pytest.raises(ConnectionFailed, match="ended after 7 of 12 bytes"):
            list(connector.fetch_data("a.csv").items)
        connector.close()


def test_a_file_that_changes_while_it_is_fetched_is_an_error(tmp_path):
    with ftp_place(tmp_path) as place:
        place.write("a.csv", b"id\n1\n")
        connector = create_connector(place.config)
        connector.connect()
        from dwcli.connectors._remote_files import fetch, list_remote

        (listed,) = list_remote(connector.client.server, "a.csv", "auto")
        place.write("a.csv", b"id\n2\n")
        with pytest.raises(SourceData, match="changed"):
            fetch(connector.client.server, listed)
        place.remove("a.csv")
        assert fetch(connector.client.server, listed).path is None
        connector.close()


def test_a_connection_that_the_server_ended_while_idle_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("dwcli.connectors.ftp._IDLE_SECONDS", 0.0)
    with ftp_place(tmp_path) as place:
        place.write("a.csv", b"id\n1\n")
        connector = create_connector(place.config)
        connector.connect()
        connector.client.ftp.sock.shutdown(socket.SHUT_RDWR)
        assert sum(1 for _ in connector.fetch_data("*.csv").items) == 1
        connector.close()


def test_one_connection_serves_all_reads(tmp_path):
    with ftp_place(tmp_path) as place:
        for name in "abc":
            place.write(f"{name}.csv", b"id\n1\n")
        connector = create_connector(place.config)
        connector.connect()
        first = connector.client.ftp
        for _ in range(3):
            list(connector.fetch_data("*.csv").items)
            connector.describe("a.csv")
        assert connector.client.ftp is first
        assert connector.client.used > 0
        connector.close()


@pytest.fixture
def silent():
    """Port of a server that greets and never speaks again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve():
            while True:
                try:
                    kept.append(server.accept()[0])
                    kept[-1].sendall(b"220 hello\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in kept:
            one.close()


def test_a_silent_server_ends_by_timeout(silent):
    started = time.monotonic()
    error = refused({"protocol": "ftp", "host": "127.0.0.1", "port": silent, "timeout_seconds": 0.3})
    assert error.layer == "lost"
    assert time.monotonic() - started < 5


def test_closing_ends_a_read_that_is_waiting(tmp_path):
    from pyftpdlib.handlers import DTPHandler

    sent = threading.Event()

    class Stalling(DTPHandler):
        def send(self, data):
            if self.get_transmitted_bytes() > 100_000:
                sent.set()
                return 0
            return super().send(data)

    with ftp_place(tmp_path, dtp_handler=Stalling, use_sendfile=False) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        connector = create_connector(place.config | {"timeout_seconds": 60})
        connector.connect()
        failed = []

        def read():
            try:
                list(connector.fetch_data("a.csv").items)
            except ConnectionFailed as error:
                failed.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert sent.wait(10)
        connector.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [error.layer for error in failed] == ["lost"]

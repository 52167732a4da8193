"""SFTP: host keys, logins, names, and connections that break."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import asyncssh
import pytest

from dwcli.connectors import create_connector
from dwcli.connectors._remote_files import fetch, list_remote
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, ResourceMissing, SourceData
from tests.connectors.places import ssh_place


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
    with ssh_place(tmp_path) as found:
        found.write("a.csv", b"id\n1\n")
        yield found


def test_a_key_logs_in_without_a_password(place, tmp_path):
    assert ids(place.config, protocol="sftp", password="", key_file=str(tmp_path / "key")) == [1]


def test_a_key_with_a_passphrase_needs_it(place, tmp_path):
    asyncssh.read_private_key(tmp_path / "key").write_private_key(
        tmp_path / "locked", passphrase="s3cret", rounds=50
    )
    locked = {"password": "", "key_file": str(tmp_path / "locked")}
    assert ids(place.config, **locked, key_passphrase="s3cret") == [1]
    assert refused(place.config, **locked).layer == "login"
    assert refused(place.config, **locked, key_passphrase="wrong").layer == "login"
    assert "key_file" in refused(place.config, key_file=str(tmp_path / "none")).hint


def test_wrong_passwords_and_keys_are_failed_logins(place, tmp_path):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "other")
    assert refused(place.config, password="wrong").layer == "login"
    assert refused(place.config, password="", key_file=str(tmp_path / "other")).layer == "login"


@pytest.mark.parametrize("there", [True, False])
def test_an_unknown_host_key_is_refused_with_the_command_that_adds_one(place, tmp_path, there):
    empty = tmp_path / "empty"
    if there:
        empty.write_text("")
    error = refused(place.config, known_hosts=str(empty))
    assert error.layer == "tls"
    assert f"ssh-keyscan -p {place.config['port']} 127.0.0.1 >> {empty}" in error.hint


def test_a_host_key_that_changed_is_refused_as_such(place):
    known = Path(place.config["known_hosts"])
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known.write_text(known.read_text().split(" ")[0] + " " + other)
    error = refused(place.config)
    assert error.layer == "tls"
    assert "another host key" in error.message
    assert "ssh-keygen" in error.hint


def test_a_host_or_port_that_is_not_there_is_told_apart(place):
    assert refused(place.config, host="no.such.host.invalid").layer == "name"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert refused(place.config, port=port).layer == "port"


def test_a_base_path_that_is_not_there_is_told(place):
    with pytest.raises(ResourceMissing, match="nowhere"):
        ids(place.config, remote_base_path="nowhere")


def test_absolute_paths_and_links_are_read(place):
    place.write("deep/b.csv", b"id\n2\n")
    (place.root / "link.csv").symlink_to("deep/b.csv")
    (place.root / "loop").symlink_to(".")
    (place.root / "dead.csv").symlink_to("nowhere")
    assert ids(place.config, "/deep/*.csv") == [2]
    assert ids(place.config, "link.csv") == [2]
    assert ids(place.config, "**/*.csv") == [1, 2, 2]
    assert ids(place.config, "loop/a.csv") == [1]


def test_names_in_another_encoding_are_read_when_it_is_given(place):
    Path(str(place.root).encode().decode() + "/x").mkdir()
    with open(bytes(place.root) + b"/x/f\xfcr.csv", "wb") as file:  # noqa: PTH123
        file.write(b"id\n5\n")
    with pytest.raises(SourceData) as caught:
        ids(place.config, "x")
    assert "name_encoding" in caught.value.hint
    assert ids(place.config, "x", name_encoding="latin-1") == [5]


def test_files_that_may_not_be_read_are_told(place, tmp_path):
    class Strict(asyncssh.SFTPServer):
        def __init__(self, chan):
            super().__init__(chan, chroot=str(place.root))

        def open(self, path, pflags, attrs):
            raise asyncssh.SFTPPermissionDenied("no")

    other = tmp_path / "other"
    other.mkdir()
    with ssh_place(other, sftp_factory=Strict) as strict:
        strict.write("a.csv", b"id\n1\n")
        assert refused(strict.config).layer == "permission"


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


def broken_at(offset: int, how):
    """A server that does `how` when a file is read at or behind `offset`."""

    class Breaking(asyncssh.SFTPServer):
        root = ""

        def __init__(self, chan):
            super().__init__(chan, chroot=Breaking.root)
            self.chan = chan

        async def read(self, file_obj, at, size):
            if at >= offset:
                return await how(self.chan, file_obj)
            return super().read(file_obj, at, size)

    return Breaking


@pytest.fixture
def breaking(tmp_path):
    def place_that(how):
        factory = broken_at(1_000_000, how)
        factory.root = str(tmp_path / "files")
        place = ssh_place(tmp_path, sftp_factory=factory)
        return place

    return place_that


def test_a_transfer_that_breaks_off_is_an_error(breaking):
    async def cut(chan, file_obj):
        chan.get_connection().abort()
        return b""

    with breaking(cut) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        assert refused(place.config).layer == "lost"


def test_an_end_of_file_that_comes_too_early_is_an_error(breaking):
    async def end(chan, file_obj):
        return b""

    with breaking(end) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        error = refused(place.config)
        assert error.layer == "lost"
        assert "of 3,500,003 bytes" in error.message


def test_a_server_that_falls_silent_ends_by_timeout_or_by_closing(breaking):
    import asyncio

    reached = threading.Event()

    async def stall(chan, file_obj):
        file_obj.close()  # nobody else will, once the connection is gone
        reached.set()
        await asyncio.sleep(60)

    with breaking(stall) as place:
        place.write("a.csv", b"id\n" + b"123456\n" * 500_000)
        assert refused(place.config, timeout_seconds=1).layer == "lost"

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
        assert failed == ["lost"]
        assert time.monotonic() - started < 5

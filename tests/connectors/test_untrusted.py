"""Servers whose certificate nobody vouches for, or is another host's: no login is sent to them."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest
import trustme

from dwcli.connectors import create_connector
from dwcli.errors import ConnectionFailed

PASSWORD = "secret-word"
LOGIN = {"username": "reader", "password": PASSWORD}
#: protocol → its config
CONFIGS = {
    "amqp": lambda port, ca: {"host": "127.0.0.1", "port": port, "queue": "q", "tls": True, "tls_ca": ca},
    "mqtt": lambda port, ca: {
        "host": "127.0.0.1",
        "port": port,
        "topic": "t",
        "client_id": "dw",
        "tls": True,
        "tls_ca": ca,
    },
    "redis": lambda port, ca: {"host": "127.0.0.1", "port": port, "tls": True, "tls_ca": ca},
    "nats": lambda port, ca: {"servers": f"tls://127.0.0.1:{port}", "subject": "s", "tls_ca": ca},
    "cassandra": lambda port, ca: {
        "hosts": ["127.0.0.1"],
        "port": port,
        "keyspace": "ks",
        "tls": True,
        "tls_ca": ca,
    },
    "neo4j": lambda port, ca: {"uri": f"bolt{'' if ca else '+s'}://127.0.0.1:{port}", "tls_ca": ca},
    "clickhouse": lambda port, ca: {
        "host": "127.0.0.1",
        "port": port,
        "database": "d",
        "tls": True,
        "tls_ca": ca,
    },
    "mysql": lambda port, ca: {
        "host": "127.0.0.1",
        "port": port,
        "database": "d",
        "ssl_mode": "verify-full",
        "ssl_ca": ca,
    },
    "oracle": lambda port, ca: {
        "host": "localhost",
        "port": port,
        "service_name": "s",
        "tls": True,
        "wallet_location": str(Path(ca).parent),
    },
    "mssql": lambda port, ca: {"host": "127.0.0.1", "port": port, "database": "d"},
}


def greet_as_nats(plain):
    told = {"server_id": "x", "version": "2.9", "tls_required": True, "max_payload": 1024}
    plain.sendall(b"INFO " + json.dumps(told).encode() + b"\r\n")


def greet_as_mysql(plain):
    """A greeting that offers TLS; the client asks for it before it says who it is."""
    able = 0x000FAA09
    greeting = b"\x0a8.0.0\0" + bytes(4) + b"12345678\0" + struct.pack("<H", able & 0xFFFF) + b"\x2d\x02\0"
    greeting += struct.pack("<H", able >> 16) + b"\x15" + bytes(10) + b"123456789012\0mysql_native_password\0"
    plain.sendall(struct.pack("<I", len(greeting)) + greeting)
    received(plain, 36)


def received(plain, size):
    data = b""
    while len(data) < size and (more := plain.recv(size - len(data))):
        data += more
    return data


def tds_packet(plain):
    head = received(plain, 8)
    if len(head) < 8:
        raise ConnectionError
    return received(plain, struct.unpack(">H", head[2:4])[0] - 8)


def tds_handshake(plain, context):
    """SQL Server carries the handshake, of TLS 1.2 at most, in its own packets."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def send(kind, payload):
        plain.sendall(struct.pack(">BBHHBB", kind, 1, len(payload) + 8, 0, 1, 0) + payload)

    tds_packet(plain)
    send(4, bytes.fromhex("00000b00060100110001ff") + bytes.fromhex("100000000000") + b"\x03")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = context.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            secure.do_handshake()
            break
        except ssl.SSLWantReadError:
            if outgoing.pending:
                send(0x12, outgoing.read())
            incoming.write(tds_packet(plain))
    return b"a client that trusts it"


#: How a server begins that does not speak TLS from the first byte.
GREETINGS = {"nats": greet_as_nats, "mysql": greet_as_mysql}


class Impostor:
    """A server of this protocol with its own certificate; `heard` is what clients sent behind TLS."""

    def __init__(self, protocol, context):
        self.protocol, self.context = protocol, context
        self.heard: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self.listener.accept()
                plain.settimeout(5)
                with plain, contextlib.suppress(OSError):
                    self.heard.append(self._answer(plain))

    def _answer(self, plain):
        if self.protocol == "mssql":
            return tds_handshake(plain, self.context)
        GREETINGS.get(self.protocol, lambda _: None)(plain)
        with self.context.wrap_socket(plain, server_side=True) as secure:
            return secure.recv(1000)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


#: Cassandra's servers are found by address: those of one's own authority are trusted under any name. The
#: driver of SQL Server takes its authorities from the system alone, so another host's is as unknown.
CASES = [
    (protocol, fault)
    for protocol in CONFIGS
    for fault in ("unknown authority", "another host")
    if (protocol, fault) not in (("cassandra", "another host"), ("mssql", "another host"))
]


@contextlib.contextmanager
def impostor(protocol, tmp_path, *, elsewhere=False, vouched=True):
    """A server with a certificate of its own, and a connector that knows its authority or another."""
    authority = trustme.CA()
    known = authority if vouched else trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = ("elsewhere.example",) if elsewhere else ("127.0.0.1", "localhost")
    authority.issue_cert(*names).configure_cert(context)
    for file in ("ca.pem", "ewallet.pem"):
        known.cert_pem.write_to_path(tmp_path / file)
    server = Impostor(protocol, context)
    config = CONFIGS[protocol](server.port, str(tmp_path / "ca.pem"))
    connector = create_connector({"protocol": protocol, **config, **LOGIN})
    try:
        yield server, connector
    finally:
        connector.close()
        server.close()


@pytest.mark.parametrize(("protocol", "fault"), CASES)
def test_a_certificate_that_proves_nothing_ends_before_the_login(protocol, fault, tmp_path):
    unknown = fault == "unknown authority"
    with (
        impostor(protocol, tmp_path, elsewhere=not unknown, vouched=not unknown) as (server, connector),
        pytest.raises(ConnectionFailed) as caught,
    ):
        connector.connect()
        list(connector.discover())
    assert caught.value.layer == "tls", repr(caught.value)
    assert caught.value.hint and PASSWORD not in f"{caught.value} {caught.value.why} {caught.value.hint}"
    assert not b"".join(server.heard)


#: No authority that a test makes is one that the driver of SQL Server knows.
@pytest.mark.parametrize("protocol", [protocol for protocol in CONFIGS if protocol != "mssql"])
def test_behind_one_that_proves_its_host_the_login_begins(protocol, tmp_path):
    with (
        impostor(protocol, tmp_path) as (server, connector),
        pytest.raises(ConnectionFailed),  # it says nothing more
    ):
        connector.connect()
        list(connector.discover())
    assert b"".join(server.heard)


@pytest.mark.parametrize("authority", [None, "ca.pem"])
def test_cassandra_under_another_name_needs_an_authority_of_ones_own(authority, tmp_path, monkeypatch):
    from dwcli.connectors import cassandra

    monkeypatch.chdir(tmp_path)
    trustme.CA().cert_pem.write_to_path("ca.pem")
    config = cassandra.Config(hosts=["h"], keyspace="ks", tls=True, tls_ca=authority)
    context = cassandra._arguments(config)["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname is (authority is None)

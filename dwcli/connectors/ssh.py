"""Files on a machine that is reached by SSH (SFTP)."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._background import Background, ask, end, later, start, stop
from dwcli.connectors._formats.items import Listed
from dwcli.connectors._probe import reach
from dwcli.connectors._remote_files import (
    TIMEOUT_SECONDS,
    Entry,
    RemoteFileConfig,
    Server,
    changed,
    describe,
    discover,
    join,
    read,
)
from dwcli.contract import LOCAL_PATH
from dwcli.errors import ConnectionFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    import asyncssh

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "SFTP (SSH)"
ALIASES = ("sftp",)
EXTRA = "ssh"
TRIED = "OpenSSH 9.2"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True

_CHUNK = 1024 * 1024
_DIRECTORY, _SYMLINK, _UNKNOWN = 2, 3, 5  # types of the SFTP protocol


class Config(RemoteFileConfig):
    """Files on a machine that is reached by SSH."""

    host: str = Field(min_length=1, description="host name or IP address")
    port: int = Field(22, ge=1, le=65535, description="port")
    username: str = Field("", description="user; your own name if left empty")
    password: SecretStr = Field(SecretStr(""), description="password, where no key is used")
    key_file: str = Field(
        "", description="private key; else the agent's and those in ~/.ssh", json_schema_extra=LOCAL_PATH
    )
    key_passphrase: SecretStr = Field(
        SecretStr(""), description="passphrase of the key", json_schema_extra={"advanced": True}
    )
    remote_base_path: str = Field("", description="folder that all paths are below; empty for the top")
    known_hosts: str = Field(
        "~/.ssh/known_hosts",
        description="file of the host keys that are trusted",
        json_schema_extra=LOCAL_PATH | {"advanced": True},
    )
    name_encoding: str = Field(
        "utf-8", description="encoding of file names", json_schema_extra={"advanced": True}
    )
    timeout_seconds: float = Field(
        TIMEOUT_SECONDS,
        gt=0,
        description="how long to wait for an answer, in seconds",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """One SSH connection, with SFTP on it."""

    config: Config
    background: Background
    connection: asyncssh.SSHClientConnection | None = None
    sftp: asyncssh.SFTPClient | None = None
    #: absolute path of the root
    base: str = "/"
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(
            f"sftp://{self.config.host}/{self.config.remote_base_path.strip('/')}".rstrip("/"),
            entries=lambda folder: _ask(self, _entries(self, folder)),
            chunks=lambda file: _chunks(self, file),
            stop=lambda: stop(self.background),
            parallel=4,
            absolute=not self.config.remote_base_path,
        )


def connect(config: Config) -> Client:
    """Log in and find the folder. Raises ConnectionFailed with the layer, ResourceMissing for the folder.

    The server's host key must be one that `known_hosts` has for it; none is ever added by dw.
    """
    try:
        import asyncssh  # noqa: F401
    except ImportError as error:
        raise driver_missing("ssh", error) from None
    reach(config.host, config.port, min(config.timeout_seconds, 10))
    client = Client(config, start())
    try:
        _ask(client, _log_in(client))
    except BaseException:
        close(client)
        raise
    return client


def close(client: Client) -> None:
    """End the connection, whatever it is doing."""
    if client.connection is not None:
        connection, client.connection = client.connection, None
        if not client.background.ended:
            client.background.loop.call_soon_threadsafe(connection.abort)
    end(client.background)


# -- the connection ------------------------------------------------------------------------------------


def _ask(client: Client, answer: Any) -> Any:
    """The answer of a coroutine; the driver's errors become those of dw."""
    import asyncssh

    try:
        return ask(client.background, answer, client.config.timeout_seconds, client.server.where)
    except FileNotFoundError:
        raise
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory) as error:
        raise FileNotFoundError(error.reason) from None
    except asyncssh.SFTPPermissionDenied:
        raise ConnectionFailed(
            f"{_user(client.config)} may not read everything in {client.server.where}",
            layer="permission",
            hint="let this user read the files and enter their folders",
        ) from None
    except UnicodeDecodeError:
        raise _misnamed(client) from None
    except (asyncssh.Error, OSError, TimeoutError) as error:
        if isinstance(error, asyncssh.SFTPBadMessage):
            raise _misnamed(client) from None
        raise ConnectionFailed(
            f"the connection to {client.config.host} broke",
            layer="lost",
            why=str(error) or type(error).__name__,
            hint="run again: nothing that is loaded is fetched twice",
        ) from None


def _misnamed(client: Client) -> SourceData:
    return SourceData(
        f"{client.server.where} has file names that are not in {client.config.name_encoding}",
        hint="set name_encoding, such as cp1252 or latin-1",
    )


def _user(config: Config) -> str:
    return config.username or getpass.getuser()


async def _log_in(client: Client) -> None:
    import asyncssh

    config = client.config
    password = config.password.get_secret_value()
    keys: Any = ()
    if config.key_file:
        keys = [_key(config)]
    elif password:
        keys = None  # so that the password is tried before the server has had enough
    trusted = Path(config.known_hosts).expanduser()
    options = asyncssh.SSHClientConnectionOptions(
        config=None,
        username=_user(config),
        password=password or None,
        client_keys=keys,
        known_hosts=str(trusted) if trusted.is_file() else ([], [], []),
        agent_path=None if keys != () else (),
        login_timeout=config.timeout_seconds,
        keepalive_interval=15,
        keepalive_count_max=3,
    )
    try:
        client.connection = await asyncssh.connect(config.host, config.port, options=options)
    except asyncssh.HostKeyNotVerifiable:
        raise _untrusted(config, trusted) from None
    except asyncssh.PermissionDenied as error:
        raise ConnectionFailed(
            f"{config.host} refuses the login of {_user(config)}",
            layer="login",
            why=error.reason,
            hint="check username, password and key_file",
        ) from None
    try:
        client.sftp = await client.connection.start_sftp_client(path_encoding=config.name_encoding)
    except asyncssh.ChannelOpenError as error:
        raise ConnectionFailed(
            f"{config.host} offers no SFTP to {_user(config)}",
            layer="permission",
            why=error.reason,
            hint="let its sshd have the subsystem sftp",
        ) from None
    await _find_base(client)


def _key(config: Config) -> Any:
    import asyncssh

    path = Path(config.key_file).expanduser()
    passphrase = config.key_passphrase.get_secret_value() or None
    try:
        return asyncssh.read_private_key(path, passphrase)
    except OSError as error:
        problem, hint = f"the key {path} cannot be read: {error.strerror}", "check key_file"
    except asyncssh.KeyEncryptionError:
        problem, hint = f"the key {path} needs another passphrase", "check key_passphrase"
    except asyncssh.KeyImportError as error:
        problem = f"{path} is no private key that can be used"
        hint = "check key_passphrase" if "passphrase" in str(error).lower() else "check key_file"
    raise ConnectionFailed(problem, layer="login", hint=hint)


def _untrusted(config: Config, trusted: Path) -> ConnectionFailed:
    """The error for a host key that is not known, or another one than is known."""
    import asyncssh

    known = trusted.is_file() and asyncssh.read_known_hosts(str(trusted)).match(
        config.host, config.host, config.port
    )
    name = config.host if config.port == 22 else f"[{config.host}]:{config.port}"
    if known and known[0]:
        return ConnectionFailed(
            f"{config.host} shows another host key than {trusted} has for it",
            layer="tls",
            why="the machine was set up anew, or somebody else answers in its place",
            hint=f"once you are sure which: ssh-keygen -f {trusted} -R '{name}', then add the new key",
        )
    return ConnectionFailed(
        f"the host key of {config.host} is not known",
        layer="tls",
        why=f"{trusted} has no line for {name}",
        hint=f"add it: ssh-keyscan -p {config.port} {config.host} >> {trusted}, and compare it "
        "(ssh-keygen -lf) with what the server's owner tells you",
    )


async def _find_base(client: Client) -> None:
    import asyncssh

    assert client.sftp is not None
    wanted = client.config.remote_base_path
    try:
        client.base = str(await client.sftp.realpath(wanted or "."))
        folder = await client.sftp.isdir(client.base)
    except asyncssh.SFTPNoSuchFile:
        folder = False
    if not folder:
        raise ResourceMissing(
            f"{client.config.host} has no folder {wanted or client.base} for {_user(client.config)}",
            hint="check remote_base_path: it begins at the user's folder, or with / at the machine's root",
        )


# -- what is there, and what is in it ------------------------------------------------------------------


def _absolute(client: Client, path: str) -> str:
    return path if path.startswith("/") and client.server.absolute else join(client.base, path.strip("/"))


async def _entries(client: Client, folder: str) -> list[Entry]:
    import asyncssh

    sftp, path = client.sftp, _absolute(client, folder).rstrip("/") or "/"
    assert sftp is not None
    try:
        there = await sftp.isdir(path)
    except asyncssh.SFTPFailure:
        there = False  # a file stands where the path has a folder
    if not there:
        raise FileNotFoundError(folder)
    found = []
    async for one in _scan(sftp, path):
        name, attrs = str(one.filename), one.attrs
        if name in (".", ".."):
            continue
        link = attrs.type == _SYMLINK
        if link or attrs.type == _UNKNOWN:
            try:
                attrs = await sftp.stat(join(path, name))
            except asyncssh.SFTPError:
                continue  # a link to nothing
        found.append(Entry(name, attrs.type == _DIRECTORY, attrs.size or 0, _stamp(attrs), link))
    return found


def _scan(sftp: asyncssh.SFTPClient, path: str) -> AsyncIterator[asyncssh.SFTPName]:
    return sftp.scandir(path)


def _stamp(attrs: asyncssh.SFTPAttrs) -> str:
    return f"{attrs.size}:{attrs.mtime}" + (f".{attrs.mtime_ns:09}" if attrs.mtime_ns else "")


def _chunks(client: Client, file: Listed) -> Iterator[bytes]:
    sftp = client.sftp
    assert sftp is not None
    path = _absolute(client, file.name)
    opened = _ask(client, _open(sftp, path))
    offset = 0
    try:
        while chunk := _ask(client, opened.read(_CHUNK, offset)):
            offset += len(chunk)
            yield chunk
        now = _stamp(_ask(client, opened.stat()))
        if now != file.stamp:
            raise changed(file, now)
    finally:
        later(client.background, opened.close())


async def _open(sftp: asyncssh.SFTPClient, path: str) -> Any:
    return await sftp.open(path, "rb")

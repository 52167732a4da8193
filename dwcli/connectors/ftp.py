"""Files on an FTP server, over TLS wherever the server can."""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from dwcli.connectors._formats.items import Listed
from dwcli.connectors._probe import reach
from dwcli.connectors._remote_files import (
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
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "FTP"
TRIED = "pyftpdlib 2.2, vsftpd 3.0"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True

_log = get_logger(__name__)

_CHUNK = 1024 * 1024
#: After this long without a word, the server is asked whether it still listens.
_IDLE_SECONDS = 30.0
#: What ends a connection, where nothing else is made of it nearer to its cause.
_NETWORK = (OSError, EOFError, ftplib.Error)
_UNIX_LINE = re.compile(
    r"(?P<kind>[-dlbcps])\S{9,}\s+\d+\s+.*?\s(?P<size>\d+)\s+(?P<time>\w{3}\s+\d+\s+[\d:]+|\d{4}-\S+\s+[\d:.]+)\s"
    r"(?P<name>.+)"
)
_DOS_LINE = re.compile(r"(?P<time>\d\d-\d\d-\d+\s+\d\d:\d\d\w*)\s+(?P<size><DIR>|\d+)\s(?P<name>.+)")


class Config(RemoteFileConfig):
    """Files on an FTP server."""

    host: str = Field(min_length=1, description="host name or IP address")
    port: int = Field(21, ge=1, le=65535, description="port")
    username: str = Field("anonymous", description="user")
    password: SecretStr = Field(
        SecretStr(""), description="password", json_schema_extra={"unless": {"username": ["anonymous", ""]}}
    )
    remote_base_path: str = Field("", description="folder that all paths are below; empty for the top")
    tls: Literal["auto", "require", "off"] = Field(
        "auto", description="whether the connection is encrypted; auto wherever the server can"
    )
    ca_file: str = Field(
        "",
        description="file of the authority that signed the server's certificate",
        json_schema_extra=LOCAL_PATH | {"advanced": True},
    )
    name_encoding: str = Field(
        "utf-8", description="encoding of file names", json_schema_extra={"advanced": True}
    )
    timeout_seconds: float = Field(
        30,
        gt=0,
        description="how long to wait for an answer, in seconds",
        json_schema_extra={"advanced": True},
    )


class _Connection(ftplib.FTP_TLS):
    """FTP whose data connections go on with the TLS session of the control connection.

    Many servers demand it (vsftpd's require_ssl_reuse), and ftplib has no option for it.
    """

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        if getattr(self, "_prot_p", False) and isinstance(self.sock, ssl.SSLSocket):
            data = self.context.wrap_socket(data, server_hostname=self.host, session=self.sock.session)
        return data, size


@dataclass
class Client:
    """One control connection, made again when the server has ended it."""

    config: Config
    ftp: _Connection | None = None
    data: socket.socket | None = None
    #: absolute path of the root
    base: str = "/"
    #: whether folders are listed by MLSD, which tells exact times
    mlsd: bool = True
    used: float = 0.0
    #: a thread is fetching a file: the connection is that thread's to close
    busy: bool = False
    closed: bool = False
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(
            f"ftp://{self.config.host}/{self.config.remote_base_path.strip('/')}".rstrip("/"),
            entries=lambda folder: _entries(self, folder),
            chunks=lambda file: _chunks(self, file),
            stop=lambda: _stop(self),
            absolute=not self.config.remote_base_path,
            exact=lambda file: _exact(self, file),
        )


def connect(config: Config) -> Client:
    """Log in and find the folder. Raises ConnectionFailed with the layer, ResourceMissing for the folder."""
    client = Client(config)
    reach(config.host, config.port, config.timeout_seconds)
    try:
        ftp = _connection(client)
        home = ftp.pwd() or "/"
        client.base = join(home, config.remote_base_path) if config.remote_base_path else home
        if config.remote_base_path.startswith("/"):
            client.base = config.remote_base_path
        try:
            ftp.cwd(client.base)
        except ftplib.error_perm as error:
            raise ResourceMissing(
                f"{config.host} has no folder {client.base} for {config.username}",
                why=_answer(error),
                hint="check remote_base_path: it begins at the user's folder, or with / at the server's root",
            ) from None
    except _NETWORK as error:
        close(client)
        raise _lost(client, error) from None
    except Exception:
        close(client)
        raise
    return client


def close(client: Client) -> None:
    """End the connection, whatever it is doing."""
    client.closed = True
    _stop(client)
    if not client.busy:
        _hang_up(client)


def _hang_up(client: Client) -> None:
    if client.ftp is not None:
        client.ftp.close()
        client.ftp = None


# -- the connection ------------------------------------------------------------------------------------


def _connection(client: Client) -> _Connection:
    """A connection that answers: the one there is, else a new one."""
    if client.closed:
        raise EOFError("the connection is closed")
    if client.ftp is not None and time.monotonic() - client.used > _IDLE_SECONDS:
        try:
            client.ftp.voidcmd("NOOP")
        except (OSError, EOFError, ftplib.Error):
            _hang_up(client)
    if client.ftp is None:
        client.ftp = _logged_in(client.config)
    client.used = time.monotonic()
    return client.ftp


def _logged_in(config: Config) -> _Connection:
    context = ssl.create_default_context(cafile=_ca_file(config))
    ftp = _Connection(context=context, timeout=config.timeout_seconds, encoding=config.name_encoding)
    try:
        ftp.connect(config.host, config.port)
        assert ftp.sock is not None
        # A long transfer leaves this connection silent, and routers forget silent connections.
        ftp.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if config.tls != "off":
            _encrypt(ftp, config)
        try:
            ftplib.FTP.login(ftp, config.username, config.password.get_secret_value())
        except ftplib.error_perm as error:
            raise ConnectionFailed(
                f"{config.host} refuses the login of {config.username}",
                layer="login",
                why=_answer(error),
                hint="check username and password",
            ) from None
        if isinstance(ftp.sock, ssl.SSLSocket):
            ftp.prot_p()
        ftp.voidcmd("TYPE I")
        with contextlib.suppress(ftplib.error_perm):
            ftp.sendcmd("OPTS UTF8 ON")
    except BaseException:
        ftp.close()
        raise
    return ftp


def _ca_file(config: Config) -> str | None:
    if config.ca_file and not Path(config.ca_file).is_file():
        raise ConnectionFailed(f"there is no file {config.ca_file}", layer="tls", hint="check ca_file")
    return config.ca_file or None


def _encrypt(ftp: _Connection, config: Config) -> None:
    """AUTH TLS, or what `tls` says of a server that has none."""
    try:
        ftp.auth()
    except ftplib.error_perm as error:
        if config.tls == "require":
            raise ConnectionFailed(
                f"{config.host}:{config.port} does not offer TLS",
                layer="tls",
                why=_answer(error),
                hint="where the password may be read on the way: tls: off",
            ) from None
        if config.password.get_secret_value():
            _log.warning(
                "%s offers no TLS: anyone on the way can read the password and the files", config.host
            )
    except ssl.SSLCertVerificationError as error:
        raise ConnectionFailed(
            f"the certificate of {config.host} cannot be trusted",
            layer="tls",
            why=error.verify_message,
            hint="give the authority's certificate as ca_file, and the host by the name in the certificate",
        ) from None
    except ssl.SSLError as error:
        raise ConnectionFailed(
            f"no TLS with {config.host}:{config.port}", layer="tls", why=error.reason or str(error)
        ) from None


def _stop(client: Client) -> None:
    """Wake whoever waits for the server, in another thread."""
    for one in (client.data, client.ftp.sock if client.ftp else None):
        if one is not None:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
    client.used = float("-inf")


def _lost(client: Client, error: BaseException) -> ConnectionFailed:
    client.used = float("-inf")
    timeout = isinstance(error, TimeoutError)
    refused = isinstance(error, ftplib.error_perm | ftplib.error_temp)
    return ConnectionFailed(
        f"{client.config.host} {'refuses to go on' if refused else 'does not answer any more'}",
        layer="lost",
        why=f"nothing came for {client.config.timeout_seconds:g} s" if timeout else _answer(error),
        hint="run again: nothing that is loaded is fetched twice",
    )


def _answer(error: BaseException) -> str:
    return str(error).strip() or "it closed the connection"


# -- what is there -------------------------------------------------------------------------------------


def _absolute(client: Client, path: str) -> str:
    if "\n" in path or "\r" in path:
        raise QueryFailed(f"FTP has no word for the name {path!r}", hint="rename it")
    return path if path.startswith("/") and client.server.absolute else join(client.base, path.strip("/"))


def _entries(client: Client, folder: str) -> list[Entry]:
    try:
        ftp = _connection(client)
        try:
            ftp.cwd(_absolute(client, folder).rstrip("/") or "/")
        except ftplib.error_perm:
            raise FileNotFoundError(folder) from None
        if client.mlsd:
            try:
                return [_from_facts(client, folder, name, facts) for name, facts in _mlsd(ftp)]
            except ftplib.error_perm as error:
                if not str(error).startswith("50"):
                    raise _forbidden(client, folder, error) from None
                client.mlsd = False  # vsftpd, for one, does not know MLSD
        lines: list[str] = []
        try:
            ftplib.FTP.retrlines(ftp, "LIST", lines.append)
            ftp.voidcmd("TYPE I")
        except ftplib.error_perm as error:
            if str(error).startswith("550"):
                return []  # how some servers say that a folder is empty
            raise _forbidden(client, folder, error) from None
        return [entry for line in lines if (entry := _from_line(client, folder, line))]
    except UnicodeDecodeError:
        raise SourceData(
            f"{client.server.where} has file names that are not in {client.config.name_encoding}",
            hint="set name_encoding, such as cp1252 or latin-1",
        ) from None
    except FileNotFoundError:
        raise
    except _NETWORK as error:
        raise _lost(client, error) from None


def _mlsd(ftp: ftplib.FTP) -> list[tuple[str, dict[str, str]]]:
    found = [(name, facts) for name, facts in ftp.mlsd() if facts.get("type") not in ("cdir", "pdir")]
    ftp.voidcmd("TYPE I")  # a listing leaves the connection in text mode, which spoils files and their sizes
    return found


def _from_facts(client: Client, folder: str, name: str, facts: dict[str, str]) -> Entry:
    kind = facts.get("type", "file").lower()
    if kind.startswith("os.unix=s"):
        return _link(client, folder, name)
    size, time_ = int(facts.get("size", -1)), facts.get("modify", "")
    return Entry(name, kind == "dir", size, f"{size}:{time_}" if time_ else "")


def _from_line(client: Client, folder: str, line: str) -> Entry | None:
    """One line of LIST, as Unix or Windows servers write it."""
    if re.fullmatch(r"total \d+", line.strip()) or not line.strip():
        return None
    unix, dos = _UNIX_LINE.fullmatch(line), _DOS_LINE.fullmatch(line)
    if unix:
        name = unix["name"]
        if name in (".", ".."):
            return None
        if unix["kind"] == "l":
            return _link(client, folder, name.partition(" -> ")[0])
        return Entry(name, unix["kind"] == "d", int(unix["size"]))
    if dos:
        return Entry(dos["name"], dos["size"] == "<DIR>", int(dos["size"].replace("<DIR>", "0")))
    raise SourceData(
        f"{client.server.where} lists its files in a form that dw cannot read",
        why=f"a line is: {line[:100]}",
        hint="a server that knows MLSD lists them in the standard form",
    )


def _link(client: Client, folder: str, name: str) -> Entry:
    """A symbolic link: to a file where the server tells a size, else to a folder."""
    assert client.ftp is not None
    try:
        size = client.ftp.size(_absolute(client, join(folder, name)))
    except ftplib.error_perm:
        size = None
    return Entry(name, size is None, size or 0, link=True)


def _exact(client: Client, file: Listed) -> Listed:
    """The file with its time, where the listing did not tell it to the second."""
    if file.stamp:
        return file
    try:
        time_ = _modified(_connection(client), _absolute(client, file.name))
    except _NETWORK as error:
        raise _lost(client, error) from None
    return replace(file, stamp=f"{file.size}:{time_}")


def _modified(ftp: ftplib.FTP, path: str) -> str:
    """Time of the last change as YYYYMMDDhhmmss in UTC, "" where the server does not tell."""
    try:
        return ftp.voidcmd(f"MDTM {path}").partition(" ")[2].strip()
    except ftplib.error_perm:
        return ""


def _forbidden(client: Client, folder: str, error: ftplib.Error) -> ConnectionFailed:
    return ConnectionFailed(
        f"{client.config.username} may not list {folder or 'the folder'} in {client.server.where}",
        layer="permission",
        why=_answer(error),
    )


# -- what is in it -------------------------------------------------------------------------------------


def _chunks(client: Client, file: Listed) -> Iterator[bytes]:
    path = _absolute(client, file.name)
    client.busy = True
    try:
        ftp = _connection(client)
        try:
            client.data = ftp.transfercmd(f"RETR {path}")
        except ftplib.error_perm as error:
            raise _refused(client, ftp, file, path, error) from None
        try:
            while chunk := client.data.recv(_CHUNK):
                yield chunk
        except GeneratorExit:
            _hang_up(client)  # a transfer that is broken off leaves the control connection out of step
            raise
        finally:
            client.data.close()
            client.data = None
        ftp.voidresp()
        client.used = time.monotonic()
        listed, now = file.stamp.partition(":")[2], _modified(ftp, path)
        if listed and now and listed[:14] != now[:14]:
            raise changed(file, f"{file.size}:{now}")
    except FileNotFoundError:
        raise
    except _NETWORK as error:
        raise _lost(client, error) from None
    finally:
        client.busy = False
        if client.closed:
            _hang_up(client)


def _refused(
    client: Client, ftp: ftplib.FTP, file: Listed, path: str, error: ftplib.Error
) -> FileNotFoundError | ConnectionFailed:
    """550 is said both of a file that is gone and of one that may not be read: its size tells them apart."""
    try:
        ftp.size(path)
    except ftplib.error_perm:
        return FileNotFoundError(file.name)
    return ConnectionFailed(
        f"{client.config.username} may not read {file.name} in {client.server.where}",
        layer="permission",
        why=_answer(error),
    )

"""Files on an FTP server, over TLS or not at all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dwcli.connectors import ftp
from dwcli.connectors.ftp import close, connect, describe, discover, read

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "FTPS (FTP over TLS)"
TRIED = "pyftpdlib 2.2, vsftpd 3.0 with TLS"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True


class Config(ftp.Config):
    """Files on an FTP server, over explicit TLS."""

    tls: Literal["auto", "require", "off"] = Field(
        "require",
        description="whether the connection is encrypted; auto wherever the server can",
        json_schema_extra={"advanced": True},
    )

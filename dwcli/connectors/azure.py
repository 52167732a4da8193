"""Files in a container of Azure Blob Storage or Data Lake Storage."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._objects import (
    ObjectsClient,
    ObjectsConfig,
    close_objects,
    store_options,
    try_objects,
)
from dwcli.connectors._remote_files import describe_remote, discover_remote, join, read_remote
from dwcli.contract import Cursor, IngestedItem, Resource
from dwcli.errors import ConnectionFailed

TITLE = "Azure Blob Storage"
ALIASES = ("az", "adls", "abfs")
EXTRA = "s3"
STAND_IN = "Azurite 3.35"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True


class Place(BaseModel):
    """What is asked first."""

    container: str = Field(min_length=1, description="container")
    account_name: str = Field(min_length=1, description="storage account")
    account_key: SecretStr = Field(SecretStr(""), description="key of the account")


class Config(ObjectsConfig, Place):
    """Files in a container of Azure Blob Storage."""

    sas_token: SecretStr = Field(
        SecretStr(""),
        description="shared access signature, instead of a key",
        json_schema_extra={"advanced": True},
    )
    tenant_id: str = Field(
        "", description="tenant of an application that logs in", json_schema_extra={"advanced": True}
    )
    client_id: str = Field("", description="the application's id", json_schema_extra={"advanced": True})
    client_secret: SecretStr = Field(
        SecretStr(""), description="the application's secret", json_schema_extra={"advanced": True}
    )
    anonymous: bool = Field(
        False, description="whether the container is public", json_schema_extra={"advanced": True}
    )


Client = ObjectsClient


def connect(config: Config) -> Client:
    """Ask for the first object. Raises ConnectionFailed with the layer, ResourceMissing."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore
    except ImportError as error:
        raise driver_missing("azure", error) from None
    given = {
        "account_name": config.account_name,
        "account_key": config.account_key.get_secret_value(),
        "sas_key": config.sas_token.get_secret_value(),
        "tenant_id": config.tenant_id,
        "client_id": config.client_id,
        "client_secret": config.client_secret.get_secret_value(),
        "endpoint": config.endpoint,
        "skip_signature": config.anonymous,
    }
    try:
        store = AzureStore(
            config.container,
            config={key: value for key, value in given.items() if value},  # type: ignore[arg-type]
            **store_options(config),
        )
    except (BaseError, ValueError):
        raise ConnectionFailed(
            "the key of the account cannot be used", layer="login", hint="check account_key and sas_token"
        ) from None
    where = join(f"azure://{config.container}", config.remote_base_path.strip("/")).rstrip("/")
    endpoint = config.endpoint or f"https://{config.account_name}.blob.core.windows.net"
    return try_objects(Client(config, where, endpoint, store))


def discover(client: Client) -> Iterator[Resource]:
    """Groups of files that look alike, then single files."""
    yield from discover_remote(client.server, client.config)


def describe(client: Client, query: str) -> Resource:
    """The columns and size of what a path or glob means."""
    return describe_remote(client.server, client.config, query)


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Batches of all files that `query` means, without those that `cursor.position` has in the same state.

    query: a path or glob below `remote_base_path`; "." for everything. Raises ResourceMissing when nothing is
    there, SourceData for what cannot be read exactly, ConnectionFailed for a file that broke off.
    """
    yield from read_remote(client.server, client.config, query, cursor)


def close(client: Client) -> None:
    """End what is under way."""
    close_objects(client)

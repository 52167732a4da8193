"""Files in a container of Azure Blob Storage or Data Lake Storage."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._objects import (
    ObjectsClient,
    ObjectsConfig,
    close,
    store_options,
    try_objects,
)
from dwcli.connectors._remote_files import describe, discover, join, read
from dwcli.errors import ConnectionFailed

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "Azure Blob Storage"
ALIASES = ("az", "adls", "abfs")
EXTRA = "s3"
STAND_IN = "Azurite 3.35"
QUERY = "a path or glob, such as orders/*.csv"
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

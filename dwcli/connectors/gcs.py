"""Files in a bucket of Google Cloud Storage."""

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
from dwcli.contract import LOCAL_PATH
from dwcli.errors import ConnectionFailed

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "Google Cloud Storage"
ALIASES = ("gs",)
EXTRA = "s3"
STAND_IN = "fake-gcs-server 1.52"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True


class Place(BaseModel):
    """What is asked first."""

    bucket: str = Field(min_length=1, description="bucket")
    service_account_file: str = Field(
        "",
        description="key file of a service account; the environment's or the machine's if empty",
        json_schema_extra=LOCAL_PATH,
    )
    service_account_info: SecretStr = Field(
        SecretStr(""), description="the same key as JSON text", json_schema_extra={"advanced": True}
    )


class Config(ObjectsConfig, Place):
    """Files in a bucket of Google Cloud Storage."""

    anonymous: bool = Field(
        False, description="whether the bucket is public", json_schema_extra={"advanced": True}
    )


Client = ObjectsClient


def connect(config: Config) -> Client:
    """Ask for the first object. Raises ConnectionFailed with the layer, ResourceMissing."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore
    except ImportError as error:
        raise driver_missing("gcs", error) from None
    given = {
        "service_account": config.service_account_file,
        "service_account_key": config.service_account_info.get_secret_value(),
        "base_url": config.endpoint,
        "skip_signature": config.anonymous,
    }
    try:
        store = GCSStore(
            config.bucket,
            config={key: value for key, value in given.items() if value},  # type: ignore[arg-type]
            **store_options(config),
        )
    except (BaseError, OSError, ValueError) as error:
        raise ConnectionFailed(
            "the key of the service account cannot be used",
            layer="login",
            why=str(error).partition("\n")[0] if config.service_account_file else "",
            hint="check service_account_file: the JSON file that the cloud console gives",
        ) from None
    where = join(f"gs://{config.bucket}", config.remote_base_path.strip("/")).rstrip("/")
    return try_objects(Client(config, where, config.endpoint or "https://storage.googleapis.com", store))

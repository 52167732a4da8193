"""Files in a bucket of Amazon S3, or of a store that speaks its protocol."""

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

__all__ = ["Config", "close", "connect", "describe", "discover", "read"]

TITLE = "Amazon S3 and what speaks its protocol"
ALIASES = ("minio", "r2", "aws")
EXTRA = "s3"
STAND_IN = "moto 5.2"
QUERY = "a path or glob, such as orders/*.csv"
INCREMENTAL = "new and changed files"
TYPING = "inferred"
STREAMING = True


class Place(BaseModel):
    """What is asked first."""

    bucket: str = Field(min_length=1, description="bucket")
    access_key_id: str = Field("", description="access key; the environment's or the machine's if empty")
    secret_access_key: SecretStr = Field(
        SecretStr(""), description="secret access key", json_schema_extra={"needs": "access_key_id"}
    )
    region: str = Field("us-east-1", description="region of the bucket")


class Config(ObjectsConfig, Place):
    """Files in an S3 bucket."""

    session_token: SecretStr = Field(
        SecretStr(""), description="token of temporary keys", json_schema_extra={"advanced": True}
    )
    anonymous: bool = Field(
        False, description="whether the bucket is public", json_schema_extra={"advanced": True}
    )
    virtual_host: bool = Field(
        False,
        description="whether the endpoint's name begins with the bucket's",
        json_schema_extra={"advanced": True},
    )


Client = ObjectsClient


def connect(config: Config) -> Client:
    """Ask for the first object. Raises ConnectionFailed with the layer, ResourceMissing."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise driver_missing("s3", error) from None
    given = {
        "access_key_id": config.access_key_id,
        "secret_access_key": config.secret_access_key.get_secret_value(),
        "session_token": config.session_token.get_secret_value(),
        "region": config.region,
        "endpoint": config.endpoint,
        "skip_signature": config.anonymous,
        "virtual_hosted_style_request": config.virtual_host,
    }
    store = S3Store(
        config.bucket,
        config={key: value for key, value in given.items() if value},  # type: ignore[arg-type]
        **store_options(config),
    )
    where = join(f"s3://{config.bucket}", config.remote_base_path.strip("/")).rstrip("/")
    endpoint = config.endpoint or f"https://s3.{config.region}.amazonaws.com"
    return try_objects(Client(config, where, endpoint, store))

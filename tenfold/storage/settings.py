"""How to reach S3: one reading of the usual AWS variables, given to boto, Lance and Daft in the words of each.

Keys are not in here. All three find them by themselves in the same places (variables, profile, web identity of a pod),
renew them where they expire, and so no dictionary that might be printed holds a secret.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tenfold.errors import InputError
from tenfold.storage.uris import is_s3


class Settings(BaseModel):
    """How to reach S3.

    Attributes:
        endpoint: address of the service where it is not Amazon's (`AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`).
        region: `AWS_REGION`, else `AWS_DEFAULT_REGION`; MinIO takes any.
        patience: seconds for which a request that may yet succeed is tried again (`TENFOLD_STORAGE_PATIENCE`): a
            restart of MinIO takes a few, a move to another node under a minute.
        connect_timeout, read_timeout: seconds for one try.
    """

    model_config = ConfigDict(frozen=True)

    endpoint: str | None = None
    region: str = "us-east-1"
    patience: float = Field(default=60.0, ge=0, le=3600)
    connect_timeout: float = 5.0
    read_timeout: float = 30.0

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/") if value else None

    @classmethod
    def read(cls) -> Settings:
        """From the environment, now; raises InputError naming the variable that is wrong."""
        env = os.environ
        values: dict[str, Any] = {
            "endpoint": env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
            "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
            "patience": env.get("TENFOLD_STORAGE_PATIENCE"),
        }
        try:
            return cls.model_validate({name: value for name, value in values.items() if value})
        except ValidationError as error:
            names = {"endpoint": "AWS_ENDPOINT_URL", "patience": "TENFOLD_STORAGE_PATIENCE"}
            first = error.errors()[0]
            name = names.get(str(first["loc"][0]), str(first["loc"][0]))
            example = "for example http://minio:9000" if name == "AWS_ENDPOINT_URL" else "seconds, 0 to 3600"
            raise InputError(f"{name}={first['input']!r}: {first['msg']}", f"set {name}: {example}") from None


def endpoint() -> str | None:
    """Address of the S3 service where it is not Amazon's."""
    return Settings.read().endpoint


def lance_options(uri: str) -> dict[str, str]:
    """`storage_options` for Lance at `uri`; empty for files.

    The trap: Lance has three layers of retries, one around the other (the HTTP client, a throttle, the reader or the
    listing), whose numbers multiply; by default they give up after a second where nobody listens, and go on for
    minutes where `client_retry_timeout` alone is raised. With the numbers here a read is given up after about
    `patience`, a listing after half as much again.
    """
    if not is_s3(uri):
        return {}
    settings = Settings.read()
    options = {
        "region": settings.region,
        "connect_timeout": f"{settings.connect_timeout:g}s",
        "timeout": f"{max(60.0, settings.read_timeout):g}s",  # of a whole request, body included
        "client_max_retries": "1000",  # time is the limit, not their number
        "client_retry_timeout": str(max(1, round(settings.patience / 4))),
        "download_retry_count": "1",
        "lance_aimd_max_retries": "1",  # 0 would switch off the throttle that makes Lance heed "slow down"
    }
    if settings.endpoint:
        options["endpoint"] = settings.endpoint
        options["allow_http"] = str(settings.endpoint.startswith("http://")).lower()
        options["virtual_hosted_style_request"] = "false"  # MinIO: the bucket is in the path, not in the host's name
    return options


def daft_io_config(uri: str) -> Any:
    """`io_config` for Daft at `uri` (a `daft.io.IOConfig`); None for files."""
    if not is_s3(uri):
        return None
    from daft.io import IOConfig, S3Config

    settings = Settings.read()
    return IOConfig(
        s3=S3Config(
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            use_ssl=not (settings.endpoint or "").startswith("http://"),
            connect_timeout_ms=int(settings.connect_timeout * 1000),
            read_timeout_ms=int(settings.read_timeout * 1000),
            num_tries=1 + retries(settings.patience),
            retry_initial_backoff_ms=100,
            retry_mode="standard",
        )
    )


def retries(patience: float) -> int:
    """How many tries of exponential backoff (from 0.1 s, at most 15 s apart) fill `patience` seconds.

    >>> retries(0), retries(60)
    (0, 11)
    """
    count, waited = 0, 0.0
    while waited < patience:
        waited += min(0.1 * 2**count, 15.0)
        count += 1
    return count

"""The boto3 client for S3: endpoint, credentials, time-outs and addressing, from the environment."""

from __future__ import annotations

import os
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore import exceptions as boto_errors
from botocore.config import Config

from fvae.config import ConfigError, one_line

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds without a byte from the store."""
CONNECTIONS = 32

_clients: dict[object, Any] = {}
_clients_lock = threading.Lock()


def client(*, anonymous: bool = False) -> Any:
    """The boto3 client of this process for the environment as it is now. Raises ``ConfigError``.

    Requests are not signed where ``anonymous`` is true or the environment has no credentials: public buckets can be
    read so.
    """
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    identity = (os.getpid(), CONNECT_TIMEOUT, READ_TIMEOUT, anonymous, settings)
    with _clients_lock:  # clients are thread-safe, making them is not
        if identity not in _clients:
            if len(_clients) >= 8:  # only tests have so many environments
                _clients.clear()
            _clients[identity] = _make_client(anonymous)
        return _clients[identity]


def _make_client(anonymous: bool) -> Any:
    try:
        session = boto3.Session()
        signed = not anonymous and session.get_credentials() is not None
        made = _client_with(session, "auto", signed)
        host = urlsplit(made.meta.endpoint_url).hostname or ""
        if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            made = _client_with(session, "path", signed)  # other stores seldom have a DNS name for each bucket
    except (boto_errors.BotoCoreError, ValueError) as error:
        raise ConfigError(f"S3 settings: {one_line(error)}") from error
    return made


def _client_with(session: boto3.Session, addressing: str, signed: bool) -> Any:
    return session.client(
        "s3",
        region_name=session.region_name or "us-east-1",
        config=Config(
            signature_version=None if signed else UNSIGNED,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours is the only loop
            max_pool_connections=CONNECTIONS,
            request_checksum_calculation="when_required",  # compatible stores refuse trailing checksums
            response_checksum_validation="when_required",
            s3={"addressing_style": addressing, "payload_signing_enabled": True},
        ),
    )


def store_time(answer: dict[str, Any]) -> float:
    """Seconds since 1970 by the clock of the store that gave ``answer``; this machine's where it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date).timestamp() if date else time.time()

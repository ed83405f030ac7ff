"""A run's objects, read from wherever they lie: JSON, and many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvae.files import parse_json
from pipelines.storage import Storage


def address(storage: Storage, key: str) -> str:
    """Where an object lies, for users: a path or a URI."""
    return f"{storage.uri}/{key}"


def read_json(storage: Storage, key: str) -> dict[str, Any]:
    """The JSON object at ``key``. Raises ``ConfigError`` where it is none, ``FileNotFoundError`` where it is absent."""
    return parse_json(storage.read(key), address(storage, key))


def read_present(storage: Storage, keys: Sequence[str]) -> list[bytes | None]:
    """The content of each key, in order; None where it is absent. From a remote store a few at a time."""

    def read(key: str) -> bytes | None:
        try:
            return storage.read(key)
        except FileNotFoundError:
            return None

    if storage.local_path is not None:
        return [read(key) for key in keys]
    from pipelines.storage.s3_retry import in_threads  # boto3 takes a while to import: not for local runs

    return in_threads(read, keys)

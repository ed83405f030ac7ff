"""Objects of any storage: as JSON, several at once, and their addresses for messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvae.files import parse_json
from pipelines.storage import Storage
from pipelines.storage.concurrency import in_threads


def address(storage: Storage, key: str) -> str:
    """An object's path or URI, as messages name it."""
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
    return in_threads(read, keys)

"""The interface of every storage, its errors, and the rules of its keys."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fvae.config import ConfigError

READ_AHEAD = 8 * 2**20
"""Bytes that :meth:`Storage.open` fetches at a time."""


class StorageError(OSError):
    """A store does not answer, or does not keep what is written to it, after the last retry.

    ``str(error)`` is one line: the URI of the object, the operation, the cause and the attempts. What only the user
    can correct (no such bucket, refused credentials) is ``ConfigError`` instead.
    """


class CorruptError(StorageError):
    """An object whose content is not what was written, however often it is read."""


class ChangedError(StorageError):
    """An object is no longer the version that was asked for."""


class ArchivedError(ConfigError):
    """An object that its store has archived: it must be restored before it can be read."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of one object without reading it."""

    key: str
    """Relative to the storage that was asked."""
    size: int
    """Bytes."""
    modified: float
    """Seconds since 1970, by the store's clock."""
    version: str
    """Opaque; another one once the object's content is another."""


class Storage(ABC):
    """Named objects below one place: a local folder, or a prefix of an S3 bucket.

    Keys are relative, with ``/`` between their parts (``trials/0007/best.safetensors``). An object is whole or
    absent, whatever fails. Storages are picklable and safe to use from several threads. Every method raises
    ``StorageError`` where the store fails and ``ConfigError`` where its settings do.
    """

    uri: str
    """``s3://bucket/prefix`` without a last ``/``, or the folder's absolute path."""

    @property
    @abstractmethod
    def local_path(self) -> Path | None:
        """The folder, or ``None`` for a remote store."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """An object's content, verified against its recorded checksum. ``FileNotFoundError`` where it is absent."""

    @abstractmethod
    def read_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        """``length`` bytes from ``start``: fewer only where the object ends.

        Raises ``FileNotFoundError`` where the object is absent, and ``ChangedError`` where it is no longer ``version``.
        """

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """An object as a seekable, buffered file to read. ``FileNotFoundError`` where it is absent."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Make or replace an object."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> bool:
        """Make an object where none is; ``False``, with nothing changed, where there is one. Atomic."""

    @abstractmethod
    def replace(self, key: str, content: bytes, version: str) -> str | None:
        """Replace an object that still is ``version``: the new version, or ``None`` with nothing changed. Atomic."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Copy a local file to ``key``, or every file below a local folder to below ``key/``."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Copy the object ``key`` to a local file, or all below ``key/`` into a folder, verified like :meth:`read`.

        Raises ``FileNotFoundError`` where there is neither.
        """

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """What is known of an object. ``FileNotFoundError`` where it is absent."""

    @abstractmethod
    def checksum(self, key: str) -> str | None:
        """SHA-256 (hex) of an object's content: computed locally, as recorded at writing on a remote store.

        ``None`` where another tool wrote it and recorded none. ``FileNotFoundError`` where it is absent.
        """

    @abstractmethod
    def age(self, key: str) -> float:
        """Seconds since an object was written, by the store's own clock. ``FileNotFoundError`` where it is absent."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix`` (all where empty), sorted by key."""

    @abstractmethod
    def delete(self, *keys: str) -> None:
        """Remove objects; absent ones are fine."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The storage below ``name``."""

    @abstractmethod
    def clean_up(self, older_than_seconds: float = 0.0) -> int:
        """Remove what killed processes left half-written here; returns how many such things there were.

        Only the holder of the lease of this place (:func:`pipelines.storage.lease.exclusive`) may call it: with
        ``older_than_seconds=0`` it also ends writes that other processes are still busy with.
        """

    def cancelled_by(self, event: threading.Event) -> AbstractContextManager[None]:
        """In this thread and block, once ``event`` is set, a request that fails is not tried again."""
        return contextlib.nullcontext()

    def exists(self, key: str) -> bool:
        """Whether there is an object ``key``."""
        try:
            self.info(key)
        except FileNotFoundError:
            return False
        return True

    def delete_prefix(self, prefix: str) -> None:
        """Remove every object below the folder ``prefix`` (all where empty)."""
        self.delete(*(found.key for found in self.list(prefix)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def check_key(key: str) -> str:
    """``key``; raises ``ValueError`` where it is not a relative path of plain parts."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise ValueError(f"key {key!r}: must be a relative path without empty, '.' or '..' parts")
    return key

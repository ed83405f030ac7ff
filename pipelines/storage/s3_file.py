"""An object of a bucket as a seekable file."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from pipelines.storage.base import READ_AHEAD, CorruptError, Storage, StorageError
from pipelines.storage.s3_errors import DamagedError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHECKSUM = "sha256"
"""Metadata entry of every object written here: the SHA-256 of its content in hex."""


class RangedFile(io.RawIOBase):
    """An object, read by ranges; its checksum is verified where it is read from start to end in order."""

    def __init__(self, storage: Storage, key: str, head: dict[str, Any]) -> None:
        """``head``: the store's answer to a request for what is known of the object."""
        self._storage = storage
        self._key = key
        self._size: int = head["ContentLength"]
        self._version: str = head["ETag"]
        self._head = head
        self._position = 0
        self._hash = hashlib.sha256()
        self._hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}: before the start")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(READ_AHEAD), b""))  # io's own asks for 8 KiB at a time

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), READ_AHEAD, max(0, self._size - self._position))
        if length == self._size:
            content = self._storage.read(self._key)  # all at once: verified, and tried again where it is damaged
        else:
            content = self._storage.read_range(self._key, self._position, length, self._version)
        if len(content) != length:
            raise StorageError(f"{self._storage.uri}/{self._key}: cannot read: {len(content)} bytes of {length} came")
        view[:length] = content
        if self._hashed == self._position and length:
            self._hash.update(content)
            self._hashed += length
            if self._hashed == self._size:
                self._verify()
        self._position += length
        return length

    def _verify(self) -> None:
        try:
            verify(self._head, self._hash.hexdigest())
        except DamagedError as error:  # what was read before is with the caller already: too late to try again
            raise CorruptError(f"{self._storage.uri}/{self._key}: cannot read: {error} (1 attempt)") from error


def verify(answer: dict[str, Any], checksum: str) -> None:
    """Raise ``DamagedError`` where an object's checksum is not the recorded one; other tools record none."""
    recorded = answer["Metadata"].get(CHECKSUM, checksum)
    if recorded != checksum:
        raise DamagedError(f"the content's SHA-256 is {checksum[:12]}… and not the recorded {recorded[:12]}…")

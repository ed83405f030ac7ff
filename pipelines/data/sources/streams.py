"""One file of a source as a stream of bytes, decompressed on the way and read a few megabytes at a time."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fvae.config import ConfigError, require
from pipelines.data.sources.base import CHUNK_BYTES, digest
from pipelines.storage import Storage, StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 256 << 10
_Decompressor = gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
_MAGIC: dict[bytes, Callable[[BinaryIO], _Decompressor]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What the decompressors raise for damaged or truncated content."""


@dataclass(frozen=True, slots=True)
class OneFile:
    """A file that can be opened more than once."""

    where: str
    """The location as the user gave it; shown in messages."""
    size: int
    """Bytes, packed as it lies there."""
    version: str
    """Another one once the content is another."""
    open: Callable[[], BinaryIO]
    """Packed. Seekable."""

    def fingerprint(self) -> str:
        """Hex digits that change with the file."""
        return digest(self.size, self.version)

    @contextmanager
    def unpacked(self) -> Iterator[BinaryIO]:
        """The content; what is compressed by gzip, bzip2 or xz is decompressed on the way."""
        with self.open() as file, decompressed(file) as content:
            yield content


def local_file(path: Path, where: str) -> OneFile:
    """A file of this machine."""
    status = path.stat()
    return OneFile(where, status.st_size, str(status.st_mtime_ns), lambda: _open_local(path, where))


def stored_file(storage: Storage, key: str, where: str) -> OneFile:
    """An object of a store."""
    info = storage.info(key)
    return OneFile(where, info.size, info.version, lambda: storage.open(key))


class _AsFarAsWhole(io.RawIOBase):
    """Hands on what could be decompressed before damage raises; and small reads of its buffer stay cheap."""

    def __init__(self, unpacked: _Decompressor) -> None:
        self._unpacked = unpacked

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        content = self._unpacked.read1(len(view))
        view[: len(content)] = content
        return len(content)


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    """``file``, from its start, as it is or through the decompressor that its first bytes call for."""
    if file.seekable():
        head = file.read(6)
        file.seek(0)
    else:
        head = file.peek(6)  # type: ignore[attr-defined]  # a member of an archive, which is buffered
    for magic, opener in _MAGIC.items():
        if head.startswith(magic):
            with opener(file) as unpacked, io.BufferedReader(_AsFarAsWhole(unpacked), BUFFER) as buffered:
                yield buffered
            return
    yield file


def chunks(file: BinaryIO, count: int, row_bytes: int, where: str, what: str = "images") -> Iterator[tuple[int, bytes]]:
    """``count`` rows of ``row_bytes`` each, a few megabytes at a time: the rows' number and their bytes.

    Raises ``ConfigError`` where the file ends before the last row or goes on after it.
    """
    at_once = max(1, CHUNK_BYTES // max(row_bytes, 1))
    done = 0
    while done < count:
        rows = min(at_once, count - done)
        content = read_exactly(file, rows * row_bytes)
        have = done + len(content) // max(row_bytes, 1)
        require(
            len(content) == rows * row_bytes,
            f"{where}: cut short: holds {have:,} of the {count:,} {what} that its header promises; get a complete copy",
        )
        yield rows, content
        done += rows
    require(not file.read(1), f"{where}: more bytes than the {count:,} {what} that its header promises")


def read_exactly(file: BinaryIO, length: int) -> bytes:
    """``length`` bytes, or all that is left; never more memory than there are bytes."""
    parts = []
    while length:
        content = file.read(min(length, CHUNK_BYTES))
        if not content:
            break
        parts.append(content)
        length -= len(content)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def whole_or_refused(where: str, progress: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns what damaged or truncated content raises into ``ConfigError`` that says how far ``progress`` got."""
    try:
        yield
    except StorageError:
        raise  # the store is at fault
    except DAMAGED as error:
        raise refusal(error, where, progress()) from error


def refusal(error: Exception, where: str, progress: str = "") -> ConfigError:
    """The error for what damaged or truncated content raised."""
    cause = str(error) or type(error).__name__
    return ConfigError(f"{where}: damaged or cut short{progress} ({cause}); get a complete copy and try again")


def _open_local(path: Path, where: str) -> BinaryIO:
    try:
        return path.open("rb", buffering=BUFFER)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error

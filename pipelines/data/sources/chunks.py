"""Arrays read from a stream a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from fvae.config import require
from pipelines.data.sources.base import CHUNK_BYTES


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
            f"{where}: cut short: holds {have:,} of the {count:,} {what} that its header promises; get it whole",
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

"""Tar archives as a stream of members.

``tarfile`` takes four times as long for small members, and it takes a damaged header for the archive's end. Here an
archive ends with its end mark, or between two members; anything else is damage. Archives that were joined (``cat``) are
read on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_END = bytes(BLOCK)
_LARGEST_HEADER = 1 << 20  # a long name, or extended attributes
_PIECE = 1 << 20


@dataclass(slots=True)
class Member:
    """A regular file, or a link, of an archive."""

    name: str
    size: int
    """Bytes of content; 0 for a link."""
    link: str | None = None
    """Where a link leads to."""
    is_hard: bool = False
    """Whether a link is a hard one: another name of a member before it."""


@dataclass(slots=True)
class _Extended:
    """What the headers before a member say of it."""

    name: str | None = None
    link: str | None = None
    values: dict[str, str] = field(default_factory=dict)


class TarReader:
    """The members of a tar archive (ustar, GNU, pax) in their order; each is to be read before the next is asked for.

    Raises ``EOFError`` where the archive is cut short and ``OSError`` where a header is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.members = 0
        """Headers read so far."""
        self.trailing = False
        """Whether something other than zeros or an archive follows the end mark; known after the last member."""
        self.unmarked = False
        """Whether the archive ends without an end mark; known after the last member."""
        self._file = file
        self._head = b""  # what was read ahead of the member's content
        self._left = 0  # content of the member not yet read
        self._padding = 0
        self._global: dict[str, str] = {}

    def __iter__(self) -> Iterator[Member]:
        extended = _Extended()
        while True:
            self._skip()
            header = self._file.read(BLOCK)
            if header == _END:
                header = self._next_archive()
                if not header:
                    return
                extended, self._global = _Extended(), {}
            if not header and self.members and extended == _Extended():
                self.unmarked = True  # a writer that was not closed: every member is whole
                return
            if len(header) < BLOCK:
                raise EOFError("no end mark")
            if not is_header(header):
                raise OSError("a header's checksum does not fit")
            kind = header[156:157]
            size = _number(header[124:136])
            self.members += 1
            if kind in b"xgXLK":
                self._extend(extended, kind, size)
                continue
            size = int(extended.values.get("size", size))
            name = extended.name or extended.values.get("path") or self._global.get("path") or _name(header)
            link = extended.link or extended.values.get("linkpath") or _text(header[157:257])
            regular = kind in _REGULAR and not name.endswith("/")
            sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in extended.values)
            extended = _Extended()
            if size < 0:
                raise OSError("a negative size")
            if kind not in _WITHOUT_CONTENT:
                self._left, self._padding = size, -size % BLOCK
            if sparse:
                raise OSError(f"{name} is stored as a sparse file, which is not read; make the archive without")
            if regular:
                yield Member(name, size)
            elif kind in (b"1", b"2"):
                yield Member(name, 0, link, is_hard=kind == b"1")

    def read(self) -> bytes:
        """The present member's content."""
        size = self._left
        content = self._file.read(size + self._padding)
        if len(content) < size + self._padding:
            raise EOFError("a member is incomplete")
        head, self._head = self._head, b""
        self._left = self._padding = 0
        return head + content[:size]

    def head(self, most: int) -> bytes:
        """The first bytes of the present member, ``most`` at most; :meth:`read` still returns all of it."""
        while len(self._head) < most and (more := self.read_some(most - len(self._head))):
            self._head += more
        return self._head

    def open(self) -> BinaryIO:
        """The present member's content as a stream."""
        return io.BufferedReader(_Content(self))

    def read_some(self, most: int) -> bytes:
        """Up to ``most`` bytes of the present member; none at its end."""
        if not self._left:
            return b""
        content = self._file.read(min(most, self._left))
        if not content:
            raise EOFError("a member is incomplete")
        self._left -= len(content)
        return content

    def _skip(self) -> None:
        rest = self._left + self._padding
        self._left = self._padding = 0
        self._head = b""
        while rest:
            content = self._file.read(min(rest, _PIECE))
            if not content:
                raise EOFError("a member is incomplete")
            rest -= len(content)

    def _next_archive(self) -> bytes:
        """The first header of an archive that follows the end mark; else nothing, with the file read to its end."""
        while (block := self._file.read(BLOCK)) == _END:
            pass
        if is_header(block):
            return block
        self.trailing = block.count(0) != len(block)
        self._drain()
        return b""

    def _drain(self) -> None:
        """Read on to the end of the file, where the decompressor verifies its checksum."""
        while content := self._file.read(_PIECE):
            self.trailing = self.trailing or content.count(0) != len(content)

    def _extend(self, extended: _Extended, kind: bytes, size: int) -> None:
        if not 0 <= size <= _LARGEST_HEADER:
            raise OSError(f"an extended header of {size} bytes")
        self._left, self._padding = size, -size % BLOCK
        content = self.read()
        if kind == b"L":
            extended.name = _text(content)
        elif kind == b"K":
            extended.link = _text(content)
        elif kind in b"xX":
            extended.values.update(_records(content))
        elif kind == b"g":
            self._global.update(_records(content))


class _Content(io.RawIOBase):
    def __init__(self, reader: TarReader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        content = self._reader.read_some(len(view))
        view[: len(content)] = content
        return len(content)


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a member's header: whether their checksum fits."""
    if len(block) < BLOCK:
        return False
    try:
        expected = _number(block[148:156])
    except OSError:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")  # its own place counts as spaces
    # Some old programs summed signed bytes.
    return expected == total or expected == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _number(content: bytes) -> int:
    if content[0] in (0x80, 0xFF):
        return int.from_bytes(content[1:], "big", signed=content[0] == 0xFF)
    try:
        return int(content.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise OSError("a header holds no number where one belongs") from error


def _text(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" and header[345] else ""
    return f"{prefix}/{name}" if prefix else name


def _records(content: bytes) -> dict[str, str]:
    """The records ``length key=value\\n`` of a pax header."""
    found = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not _is_number(length) or not len(length) < int(length) <= len(content):
            raise OSError("an extended header is damaged")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    if not _is_number(found.get("size", "0").encode("utf-8", "surrogateescape")):
        raise OSError("an extended header is damaged")
    return found


def _is_number(text: bytes) -> bool:
    """Whether a text is a number of a length that a size has."""
    return text.isdigit() and len(text) <= 20

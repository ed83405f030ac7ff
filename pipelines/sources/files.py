"""The files of a folder, of a prefix in a store or of a zip archive: listed once, read in a fixed order."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from fvae.config import ConfigError, require
from pipelines.sources.base import LARGEST_FILE, BadFile, digest_all, is_clutter, is_image, printable, too_large
from pipelines.sources.streams import DAMAGED, OneFile, local_file, stored_file
from pipelines.storage import Storage, StorageError

THREADS = 16
AHEAD_BYTES = 32 << 20
"""What is read ahead of the consumer from a store."""
_ZIP_ERRORS = (*DAMAGED, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    key: str
    """Relative, with ``/``."""
    size: int
    """Bytes, unpacked."""
    version: str
    """Another one once the content is another."""


Content = bytes | str
"""What a file holds, or, as text, why it cannot be read."""


class Files(ABC):
    """Every file below one place, without what operating systems leave there."""

    kind: str
    """What kind of image source they are: ``image folder`` or ``zip archive``."""
    where: str
    """As the user gave it; shown in messages."""
    entries: list[Entry]
    """In the order of reading."""
    bad: list[BadFile]
    """What is there and is no file that could be read."""
    notes: list[str]
    """What was decided in listing them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.bad = []
        self.notes = []

    @abstractmethod
    def file(self, key: str) -> OneFile:
        """One of the files."""

    @abstractmethod
    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        """What the files hold, in the order given."""

    def fingerprint(self) -> str:
        """Hex digits that change when a file does."""
        return digest_all(part for entry in self.entries for part in (entry.key, entry.size, entry.version))


class LocalFiles(Files):
    """A folder of this machine. Links to files are followed; a folder that links lead to twice is read once.

    Raises ``ConfigError`` where a folder cannot be listed.
    """

    kind = "image folder"

    def __init__(self, root: Path, where: str) -> None:
        super().__init__(where)
        self._root = str(root)
        self._links: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self.entries = []
        self._walk("")
        skipped = 0
        # After all that lies there itself, so that each image keeps its own path; links may lie behind links.
        while self._links:
            prefix = self._links.pop(0)
            if self._identity(prefix) in self._seen:
                skipped += 1
            else:
                self._walk(prefix)
        if skipped:
            self.notes.append(f"{skipped:,} links to folders that are read anyway not followed")
        self.entries.sort(key=lambda entry: entry.key)
        self.bad.sort(key=lambda file: file.path)

    def file(self, key: str) -> OneFile:
        return local_file(Path(self._root, key), f"{self.where.rstrip('/')}/{key}")

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        for entry in entries:
            yield entry, self._content(entry)

    def _content(self, entry: Entry) -> Content:
        if entry.size > LARGEST_FILE:
            return too_large(entry.size)
        try:
            with io.FileIO(f"{self._root}/{entry.key}") as file:
                return file.readall() or b""
        except OSError as error:
            return error.strerror or str(error)

    def _identity(self, prefix: str) -> tuple[int, int]:
        status = os.stat(f"{self._root}/{prefix}")  # noqa: PTH116 (so that all below works on plain text: 60,000 files)
        return status.st_dev, status.st_ino

    def _walk(self, top: str) -> None:
        stack = [top]
        while stack:
            prefix = stack.pop()
            try:
                self._seen.add(self._identity(prefix))
                with os.scandir(f"{self._root}/{prefix}") as found:
                    for entry in found:
                        if not is_clutter(entry.name):
                            self._take(entry, prefix + entry.name, stack)
            except OSError as error:
                raise ConfigError(f"{self.where}: {printable(prefix)} cannot be listed ({error.strerror})") from error

    def _take(self, entry: os.DirEntry[str], key: str, stack: list[str]) -> None:
        if entry.is_dir():
            (self._links if entry.is_symlink() else stack).append(f"{key}/")
        elif entry.is_file():
            status = entry.stat()
            self.entries.append(Entry(key, status.st_size, str(status.st_mtime_ns)))
        elif is_image(key):
            cause = "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"
            self.bad.append(BadFile(printable(key), cause))


class StoredFiles(Files):
    """A prefix of a store; reads a few files ahead. Raises ``StorageError`` where the store fails."""

    kind = "image folder"

    def __init__(self, storage: Storage, where: str) -> None:
        super().__init__(where)
        self._storage = storage
        self.entries = [Entry(info.key, info.size, info.version) for info in storage.list() if not is_clutter(info.key)]

    def file(self, key: str) -> OneFile:
        return stored_file(self._storage, key, f"{self.where.rstrip('/')}/{key}")

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        waiting: deque[tuple[Entry, Future[Content]]] = deque()
        held = 0
        pool = ThreadPoolExecutor(THREADS)
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(self._content, entry)))
                held += entry.size
                while len(waiting) > 4 * THREADS or (held > AHEAD_BYTES and len(waiting) > 1):
                    held -= waiting[0][0].size
                    yield _done(waiting.popleft())
            while waiting:
                yield _done(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _content(self, entry: Entry) -> Content:
        if entry.size > LARGEST_FILE:
            return too_large(entry.size)
        try:
            return self._storage.read(entry.key)
        except FileNotFoundError:
            return "gone since it was listed"
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            return str(error)  # a key that is no path


class ZipFiles(Files):
    """The members of a zip archive, in the order in which they lie there.

    Raises ``ConfigError`` where the archive is damaged as a whole.
    """

    kind = "zip archive"

    def __init__(self, file: OneFile) -> None:
        super().__init__(file.where)
        self._file = file
        try:
            with file.open() as packed, zipfile.ZipFile(packed) as archive:
                members = archive.infolist()
        except StorageError:
            raise
        except (*_ZIP_ERRORS, ValueError) as error:
            raise ConfigError(f"{file.where}: no whole zip archive ({error}); get it whole and try again") from error
        # An archive that was added to may hold a name twice: the last one counts, as for every unpacker.
        kept = {
            member.filename: member for member in members if not member.is_dir() and not is_clutter(member.filename)
        }
        links = {name for name, member in kept.items() if stat.S_ISLNK(member.external_attr >> 16)}
        if links:
            self.notes.append(f"{len(links):,} links in the archive ignored")
        self._members = {name: member for name, member in kept.items() if name not in links}
        ordered = sorted(self._members.values(), key=lambda member: member.header_offset)
        self.entries = [Entry(member.filename, member.file_size, f"{member.CRC:08x}") for member in ordered]

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def file(self, key: str) -> OneFile:
        member = self._members[key]
        return OneFile(f"{self.where}: {key}", member.file_size, f"{member.CRC:08x}", partial(self._open, member))

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        with self._file.open() as packed, zipfile.ZipFile(packed) as archive:
            for entry in entries:
                yield entry, self._content(archive, self._members[entry.key])

    def _content(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Content:
        if member.flag_bits & 1:
            return "encrypted"
        if member.file_size > LARGEST_FILE:
            return too_large(member.file_size)
        try:
            return archive.read(member)
        except StorageError:
            raise
        except _ZIP_ERRORS as error:
            return f"damaged in the archive ({error})"

    def _open(self, member: zipfile.ZipInfo) -> BinaryIO:
        require(not member.flag_bits & 1, f"{self.where}: {member.filename} is encrypted; pack it without a password")
        packed = self._file.open()
        try:
            content = zipfile.ZipFile(packed).open(member)  # noqa: SIM115 (closed by _Member)
        except StorageError:
            raise
        except _ZIP_ERRORS as error:
            packed.close()
            raise ConfigError(f"{self.where}: {member.filename} is damaged in the archive ({error})") from error
        return _Member(content, packed)


class _Member(io.BufferedReader):
    """A zip member that closes the archive's file with itself."""

    def __init__(self, content: IO[bytes], packed: BinaryIO) -> None:
        super().__init__(content)  # type: ignore[arg-type]
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def _done(read: tuple[Entry, Future[Content]]) -> tuple[Entry, Content]:
    entry, future = read
    return entry, future.result()

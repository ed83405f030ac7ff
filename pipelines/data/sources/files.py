"""The files of a folder, of a prefix in a store or of a zip archive: listed once, read in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from pipelines.data.sources.base import LARGEST_FILE, BadFile, digest_all, printable, too_large
from pipelines.data.sources.file_names import HEAD, Clutter, is_image, is_image_content, may_be_image
from pipelines.data.sources.streams import OneFile, stored_file
from pipelines.storage import ArchivedError, Storage, check_key

THREADS = 16
AHEAD_BYTES = 32 << 20
"""What is read ahead of the consumer from a store."""


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
    """Every file below one place, without clutter (:mod:`pipelines.data.sources.file_names`)."""

    kind: str
    """What kind of image source they are: ``image folder`` or ``zip archive``."""
    where: str
    """The location as the user gave it; shown in messages."""
    entries: list[Entry]
    """In the order of reading."""
    bad: list[BadFile]
    """What is there and is no file that could be read."""
    notes: list[str]
    """What was decided in listing them."""
    clutter: list[str]
    """The one of these notes that names the clutter, if there was any."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.bad = []
        self.notes = []
        self.clutter = []

    @abstractmethod
    def file(self, key: str) -> OneFile:
        """One of the files."""

    @abstractmethod
    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        """What the files hold, in the order given."""

    @abstractmethod
    def heads(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The first bytes of each file, ``HEAD`` at most; none of a file that cannot be read."""

    @cached_property
    def images(self) -> list[Entry]:
        """The image files, by their suffixes or, where these do not tell, by their content; in the order of reading."""
        open_ = [entry for entry in self.entries if entry.size and may_be_image(entry.key)]
        found = {entry.key for entry, head in zip(open_, self.heads(open_), strict=True) if is_image_content(head)}
        return [entry for entry in self.entries if is_image(entry.key) or entry.key in found]

    def fingerprint(self) -> str:
        """Hex digits that change when a file does."""
        return digest_all(part for entry in self.entries for part in (entry.key, entry.size, entry.version))


class StoredFiles(Files):
    """A prefix of a store; reads a few files ahead. Raises ``StorageError`` where the store fails."""

    kind = "image folder"

    def __init__(self, storage: Storage, where: str) -> None:
        super().__init__(where)
        self._storage = storage
        listed = []
        for info in storage.list():
            try:
                check_key(info.key)
                listed.append(Entry(info.key, info.size, info.version))
            except ValueError:  # stores take names that no folder has
                self.bad.append(BadFile(printable(info.key), "a key with an empty, '.' or '..' part, which is no path"))
        self.entries, clutter = [], Clutter()
        for hidden in (True, False):  # where nothing else is there, hidden files are the images
            clutter = Clutter(hidden=hidden)
            self.entries = [entry for entry in listed if not clutter.takes(entry.key)]
            if self.entries:
                break
        self.clutter = clutter.notes()
        self.notes += self.clutter

    def file(self, key: str) -> OneFile:
        return stored_file(self._storage, key, f"{self.where.rstrip('/')}/{key}")

    def heads(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        if not entries:
            return
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(self._head, entries)

    def _head(self, entry: Entry) -> bytes:
        try:
            return self._storage.read_range(entry.key, 0, HEAD)
        except (FileNotFoundError, ArchivedError):
            return b""

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
        except ArchivedError:
            return "archived by the store: restore it first"


def _done(read: tuple[Entry, Future[Content]]) -> tuple[Entry, Content]:
    entry, future = read
    return entry, future.result()

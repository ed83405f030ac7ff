"""The files of a folder of this machine, listed once."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fvae.config import ConfigError
from pipelines.data.sources.base import LARGEST_FILE, BadFile, printable, too_large
from pipelines.data.sources.file_names import HEAD, Clutter, is_clutter, is_image, may_be_image
from pipelines.data.sources.files import Content, Entry, Files
from pipelines.data.sources.streams import OneFile, local_file

LONGEST_PATH = 4000
"""Bytes of a path; Linux takes 4,095, and names are appended."""


class LocalFiles(Files):
    """A folder of this machine. Links to files are followed; a folder that links lead to twice is read once.

    A link to a file beside it is a second name of the same image and is skipped. What cannot be listed or followed is a
    bad file.
    """

    kind = "image folder"

    def __init__(self, root: Path, where: str) -> None:
        super().__init__(where)
        self._root = str(root)
        self._clutter = Clutter()
        for hidden in (True, False):  # where nothing else is there, hidden files are the images
            self._clutter = Clutter(hidden=hidden)
            self._list()
            if self.entries or self.bad:
                break
        self.clutter = self._clutter.notes()
        self.notes += self.clutter

    def _list(self) -> None:
        self.entries, self.bad, self.notes = [], [], []
        self._links: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._beside = 0
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
        if self._beside:
            links = "1 link to a file" if self._beside == 1 else f"{self._beside:,} links to files"
            self.notes.append(f"{links} in the same folder skipped")
        self.entries.sort(key=lambda entry: entry.key)
        self.bad.sort(key=lambda file: file.path)

    def file(self, key: str) -> OneFile:
        return local_file(Path(self._root, key), f"{self.where.rstrip('/')}/{key}")

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        for entry in entries:
            yield entry, self._content(entry)

    def heads(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        for entry in entries:
            try:
                with io.FileIO(f"{self._root}/{entry.key}", opener=_open) as file:
                    yield file.read(HEAD) or b""
            except OSError:
                yield b""

    def _content(self, entry: Entry) -> Content:
        if entry.size > LARGEST_FILE:
            return too_large(entry.size)
        try:
            with io.FileIO(f"{self._root}/{entry.key}", opener=_open) as file:
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
                with _listed(f"{self._root}/{prefix}") as (status, found):
                    self._seen.add((status.st_dev, status.st_ino))
                    for entry in found:
                        if not self._clutter.takes(entry.name, prefix):
                            self._take(entry, prefix + entry.name, stack)
            except OSError as error:
                cause = error.strerror or str(error)
                if not prefix:
                    raise ConfigError(f"{self.where}: cannot be listed ({cause})") from error
                self.bad.append(BadFile(printable(prefix), f"a folder that cannot be listed ({cause})"))

    def _take(self, entry: os.DirEntry[str], key: str, stack: list[str]) -> None:
        try:
            if entry.is_dir():
                (self._links if entry.is_symlink() else stack).append(f"{key}/")
            elif entry.is_file():
                self._take_file(entry, key)
            elif is_image(key) or may_be_image(key):  # a class may be missing
                cause = "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"
                self.bad.append(BadFile(printable(key), cause))
        except OSError as error:
            loop = error.errno == errno.ELOOP
            cause = "a link that leads back to itself" if loop else error.strerror or str(error)
            self.bad.append(BadFile(printable(key), cause))

    def _take_file(self, entry: os.DirEntry[str], key: str) -> None:
        if entry.is_symlink() and is_image(key) and self._leads_beside(key):
            self._beside += 1
            return
        status = entry.stat()
        self.entries.append(Entry(key, status.st_size, str(status.st_mtime_ns)))

    def _leads_beside(self, key: str) -> bool:
        """Whether a link leads to another image of its own folder."""
        own = os.path.dirname(f"{self._root}/{key}")  # noqa: PTH120
        folder, name = os.path.split(os.readlink(f"{self._root}/{key}"))  # noqa: PTH115
        beside = not folder or os.path.realpath(f"{own}/{folder}" if folder[0] != "/" else folder) == os.path.realpath(
            own
        )
        return beside and is_image(name) and not is_clutter(name)


@contextlib.contextmanager
def _listed(folder: str) -> Iterator[tuple[os.stat_result, Iterator[os.DirEntry[str]]]]:
    """What is known of a folder, and its entries; however long its path is."""
    if len(os.fsencode(folder)) < LONGEST_PATH:
        with os.scandir(folder) as found:
            yield os.stat(folder), found  # noqa: PTH116
        return
    descriptor = _open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as found:
            yield os.fstat(descriptor), found
    finally:
        os.close(descriptor)


def _open(path: str, flags: int) -> int:
    """``os.open``; a path that is longer than the system takes is opened folder by folder."""
    if len(os.fsencode(path)) < LONGEST_PATH:
        return os.open(path, flags)
    folder = os.open("/" if path.startswith("/") else ".", os.O_RDONLY | os.O_DIRECTORY)
    *folders, name = [part for part in path.split("/") if part]
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)

"""The members of a zip archive, listed once."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, BinaryIO

from fvae.config import ConfigError, require
from pipelines.data.sources.base import LARGEST_FILE, too_large
from pipelines.data.sources.file_names import HEAD, Clutter
from pipelines.data.sources.files import Content, Entry, Files
from pipelines.data.sources.streams import DAMAGED, OneFile
from pipelines.storage import StorageError

_ZIP_ERRORS = (*DAMAGED, zipfile.BadZipFile, NotImplementedError, RuntimeError)


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
            raise ConfigError(
                f"{file.where}: not a complete zip archive ({error}); get a complete copy and try again"
            ) from error
        # An archive that was added to may hold a name twice: the last one counts, as for every unpacker.
        named = {_with_slashes(member): member for member in members if not member.is_dir()}
        links = {name for name, member in named.items() if stat.S_ISLNK(member.external_attr >> 16)}
        kept, clutter = {}, Clutter()
        for hidden in (True, False):  # where nothing else is there, hidden files are the images
            clutter = Clutter(hidden=hidden)
            kept = {name: member for name, member in named.items() if not clutter.takes(name) and name not in links}
            if kept:
                break
        self.clutter = clutter.notes()
        self.notes += self.clutter
        if links:
            self.notes.append(f"{len(links):,} symbolic link{'' if len(links) == 1 else 's'} in the archive skipped")
        self._members = kept
        ordered = sorted(self._members.items(), key=lambda item: item[1].header_offset)
        self.entries = [Entry(name, member.file_size, f"{member.CRC:08x}") for name, member in ordered]

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def file(self, key: str) -> OneFile:
        member = self._members[key]
        return OneFile(f"{self.where}: {key}", member.file_size, f"{member.CRC:08x}", partial(self._open, member))

    def heads(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        with self._file.open() as packed, zipfile.ZipFile(packed) as archive:
            for entry in entries:
                yield self._head(archive, self._members[entry.key])

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content]]:
        with self._file.open() as packed, zipfile.ZipFile(packed) as archive:
            for entry in entries:
                yield entry, self._content(archive, self._members[entry.key])

    def opened(self) -> Iterator[tuple[Entry, Callable[[], Content], Callable[[], bytes]]]:
        """All files in their order: what reads the content of each, and what reads its head, before the next one."""
        with self._file.open() as packed, zipfile.ZipFile(packed) as archive:
            for entry in self.entries:
                member = self._members[entry.key]
                yield entry, partial(self._content, archive, member), partial(self._head, archive, member)

    def _head(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(member) as content:
                return content.read(HEAD)
        except StorageError:
            raise
        except _ZIP_ERRORS:
            return b""

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


def _with_slashes(member: zipfile.ZipInfo) -> str:
    """The name; old Windows programs put backslashes between its parts, which zip's format does not know."""
    name = member.filename
    return name.replace("\\", "/") if "/" not in name else name


class _Member(io.BufferedReader):
    """A zip member that closes the archive's file with itself."""

    def __init__(self, content: IO[bytes], packed: BinaryIO) -> None:
        super().__init__(content)  # type: ignore[arg-type]
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()

"""Members of archives as one stream: of a tar, of the tars inside a tar, of many archives in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from fvae.config import ConfigError
from pipelines.data.sources.base import LARGEST_FILE, printable, too_large
from pipelines.data.sources.file_names import HEAD
from pipelines.data.sources.files import Content
from pipelines.data.sources.streams import DAMAGED, OneFile, decompressed, refusal
from pipelines.data.sources.tars import Member, TarReader
from pipelines.data.sources.zips import ZipFiles
from pipelines.storage import StorageError

TAR_SUFFIX = re.compile(r"\.(tar(\.(gz|bz2|xz))?|t[gbx]z2?)$", re.IGNORECASE)
ARCHIVE_SUFFIX = re.compile(r"\.zip$|" + TAR_SUFFIX.pattern, re.IGNORECASE)
Refusal = Callable[[Exception], ConfigError]
"""Makes one line of damage."""
DEEPEST = 4
"""Archives inside one another that are opened; an archive that holds itself has no end."""
_NUMBER = re.compile(r"\d+$")


@dataclass(slots=True)
class Found:
    """A member of an archive. Its head and its content are to be read before the next one is asked for."""

    path: str
    """Shown to users."""
    place: str
    """The path that decides on split and class: archives inside are folders, numbered shards of one set are nothing."""
    archive: int
    """Number of the archive."""
    read: Callable[[], Content]
    head: Callable[[], bytes] = bytes
    """Reads the first bytes, ``HEAD`` at most; none where they cannot be read. :attr:`read` still returns all."""
    link: str | None = None
    """Where a link leads to."""
    is_hard: bool = False


@dataclass(slots=True)
class Oddities:
    """What is odd about archives that were read to their ends."""

    trailing: int = 0
    unmarked: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One line each."""
        lines = ["bytes after the archive's end mark ignored"] if self.trailing else []
        if self.unmarked:
            lines.append(
                f"{', '.join(self.unmarked[:3])}{' …' if len(self.unmarked) > 3 else ''} ends without tar's end mark, "
                "behind a whole member: all that was written, or a copy cut short there"
            )
        return lines


def tar_members(
    file: OneFile, oddities: Oddities, *, nested: bool = False, prefix: str = "", shown: str = "", number: int = 0
) -> Iterator[Found]:
    """The regular files and the links of a tar archive.

    Args:
        file: the archive.
        oddities: filled in at the end.
        nested: whether a tar inside the tar is a folder of the same name; else it is a file like others.
        prefix: what stands before each place.
        shown: what stands before each path.
        number: of the archive.

    Raises ``ConfigError`` where the archive is damaged or cut short.
    """
    with file.unpacked() as content:
        reader = TarReader(content)

        def refused(error: Exception) -> ConfigError:
            return refusal(error, file.where, f" after {reader.members:,} entries")

        try:
            yield from _walk(reader, nested, prefix, shown, number, refused, 0)
            oddities.trailing += reader.trailing
            if reader.unmarked:
                oddities.unmarked.append(file.where.rpartition("/")[2])
        except StorageError:
            raise  # the store is at fault
        except DAMAGED as error:
            raise refused(error) from error


def _walk(
    reader: TarReader,
    nested: bool,
    prefix: str,
    shown: str,
    number: int,
    refused: Refusal,
    depth: int,
) -> Iterator[Found]:
    for member in reader:
        if nested and member.link is None and (inner := TAR_SUFFIX.sub("", member.name)) != member.name:
            if depth == DEEPEST:
                raise too_deep(printable(f"{shown}{member.name}"))
            with decompressed(reader.open()) as content:
                below = f"{prefix}{inner}/", f"{shown}{member.name}: "
                yield from _walk(TarReader(content), True, *below, number, refused, depth + 1)
        else:
            link = f"{prefix}{member.link}" if member.is_hard else member.link
            read, head = partial(_content, reader, member, refused), partial(_head, reader, refused)
            yield Found(shown + member.name, prefix + member.name, number, read, head, link, member.is_hard)


def too_deep(where: str) -> ConfigError:
    """The line for an archive that lies in too many others."""
    return ConfigError(f"{where}: archives more than {DEEPEST} deep inside one another; unpack the outer ones")


def _head(reader: TarReader, refused: Refusal) -> bytes:
    try:
        return reader.head(HEAD)
    except StorageError:
        raise
    except DAMAGED as error:
        raise refused(error) from error


def _content(reader: TarReader, member: Member, refused: Refusal) -> Content:
    if member.size > LARGEST_FILE:
        return too_large(member.size)
    try:
        return reader.read()
    except StorageError:
        raise
    except DAMAGED as error:  # which the walk would not see: it is read from outside of it
        raise refused(error) from error


def members_of_all(archives: Sequence[tuple[str, OneFile]], oddities: Oddities) -> Iterator[Found]:
    """The members of archives by their paths: ``train.zip`` is the folder ``train``, shards are in one folder."""
    folders = archive_folders([key for key, _ in archives])
    for number, (key, file) in enumerate(archives):
        prefix, shown = folders[key], f"{printable(key)}: "
        if TAR_SUFFIX.search(key):
            yield from tar_members(file, oddities, nested=True, prefix=prefix, shown=shown, number=number)
        else:
            files = ZipFiles(file)
            for entry, read, head in files.opened():
                yield Found(shown + entry.key, prefix + entry.key, number, read, head)


def archive_folders(keys: Sequence[str]) -> dict[str, str]:
    """Archive → the folder that it stands for, with a last ``/`` or empty.

    Archives side by side with names that differ in a number, counted from 0 or 1, are shards of one set: the number
    says nothing. ``00000.tar`` stands for no folder, ``train-000000.tar`` for ``train``; ``n01440764.tar`` stands for
    itself, and so does ``7.tar``: a digit alone may be a class.
    """
    stems = {key: ARCHIVE_SUFFIX.sub("", key) for key in keys}
    numbers: dict[str, list[int]] = {}
    for stem in stems.values():
        if found := _NUMBER.search(stem):
            numbers.setdefault(stem[: found.start()], []).append(int(found[0]))
    folders = {}
    for key, stem in stems.items():
        found = _NUMBER.search(stem)
        start = stem[: found.start()] if found else ""
        digit = found is not None and len(found[0]) == 1 and start.rpartition("/")[2] == ""
        if found and not digit and min(numbers[start]) <= 1 and max(numbers[start]) <= 2 * len(numbers[start]):
            stem = start.rstrip("-_.")
        folders[key] = stem if not stem or stem.endswith("/") else f"{stem}/"
    return folders

"""Trees of image files: folders, prefixes of a store, zip and tar archives. Archives are read as they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fvae.config import ConfigError, require
from pipelines.sources.base import (
    LARGEST_FILE,
    BadFile,
    ImageFile,
    Item,
    Source,
    is_clutter,
    is_image,
    printable,
    suffix_counts,
    suffix_of,
    too_large,
)
from pipelines.sources.files import Entry, Files
from pipelines.sources.layout import Layout
from pipelines.sources.streams import OneFile, whole_or_refused
from pipelines.sources.tars import TarReader


def ignored_line(others: Counter[str]) -> list[str]:
    """The note on files that are no images, by suffix; none where there are none."""
    total = sum(others.values())
    files = "1 file that is not an image" if total == 1 else f"{total:,} files that are not images"
    return [f"{files} ignored: {suffix_counts(others)}"] if total else []


class ImageTree(Source):
    """The image files among some listed files; these are read in the order of the list."""

    def __init__(self, name: str, files: Files) -> None:
        super().__init__(name, files.kind)
        self._files = files
        self._images = [entry for entry in files.entries if is_image(entry.key)]
        folders = {entry.key.rpartition("/")[0] for entry in self._images}
        self._layout = Layout(files.where, folders)
        for entry in self._images:  # a stray is said before anything is read
            self._place(entry)
        others = Counter(suffix_of(entry.key) for entry in files.entries if not is_image(entry.key))
        self.notes = [*files.notes, *ignored_line(others)]

    def fingerprint(self) -> str:
        return self._files.fingerprint()

    def count(self) -> int:
        return len(self._images)

    def items(self) -> Iterator[Item]:
        yield from self._files.bad
        for entry, content in self._files.contents(self._images):
            path = printable(entry.key)
            if isinstance(content, str):
                yield BadFile(path, content)
            else:
                yield ImageFile(path, content, *self._place(entry))

    def _place(self, entry: Entry) -> tuple[str | None, str | None]:
        return self._layout.place(entry.key.rpartition("/")[0], entry.key)


class ImageTar(Source):
    """The image files of a tar archive, in its own order.

    A member that stands in it twice is refused: the first may be long handed over when the second, which every
    unpacker would keep instead, comes.
    """

    def __init__(self, name: str, file: OneFile) -> None:
        super().__init__(name, "tar archive")
        self._file = file
        self._layout = Layout(file.where)

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def class_of(self, label: str) -> str | None:
        return self._layout.class_of(label)

    def items(self) -> Iterator[Item]:
        layout = self._layout = Layout(self._file.where)
        others: Counter[str] = Counter()
        links = 0
        seen: set[int] = set()  # hashes of names: of millions, too, they fit the memory
        with self._file.unpacked() as content:
            reader = TarReader(content)
            with whole_or_refused(self._file.where, lambda: f" after {reader.members:,} entries"):
                for member in reader:
                    name = member.name
                    if is_clutter(name):
                        continue
                    if member.is_link:
                        links += 1
                    elif not is_image(name):
                        others[suffix_of(name)] += 1
                        continue
                    key = hash(name.removeprefix("./"))
                    require(
                        key not in seen,
                        f"{self._file.where}: {printable(name)} stands in it twice; pack it again",
                    )
                    seen.add(key)
                    if member.size > LARGEST_FILE:
                        yield BadFile(printable(name), too_large(member.size))
                    else:
                        folder = name.rpartition("/")[0]
                        yield ImageFile(printable(name), reader.read(), *layout.place(folder, name))
        layout.finish()
        self.notes = ignored_line(others)
        if links:
            self.notes.append(f"{links:,} links in the archive ignored")
        if reader.trailing:
            self.notes.append("bytes after the archive's end mark ignored")


def peek_tar(file: OneFile) -> tuple[str, Counter[str]]:
    """What a tar archive holds: the first member that says so, else ``""``, and the suffixes before it.

    Raises ``ConfigError`` where it is damaged before that.
    """
    from pipelines.sources.cifar import format_in_tar

    suffixes: Counter[str] = Counter()
    with file.unpacked() as content:
        reader = TarReader(content)
        with whole_or_refused(file.where, lambda: f" after {reader.members:,} entries"):
            for member in reader:
                if member.is_link or is_clutter(member.name):
                    continue
                if is_image(member.name) or format_in_tar(member.name):
                    return member.name, suffixes
                suffixes[suffix_of(member.name)] += 1
    return "", suffixes


def no_images(where: str, suffixes: Counter[str]) -> ConfigError:
    """The line for a place without anything to read."""
    if not suffixes:
        return ConfigError(f"{where}: empty; needs image files (.png, .jpg, .webp, .bmp, .tif) or files of arrays")
    return ConfigError(
        f"{where}: no images in it; it holds {suffix_counts(suffixes)}, and .png, .jpg, .webp, .bmp and .tif are read"
    )

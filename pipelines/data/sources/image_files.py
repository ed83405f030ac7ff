"""Image files in folders, prefixes of a store, zip and tar archives. Archives are read in their own order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from fvae.config import ConfigError
from pipelines.data.sources.archives import Found, Oddities, tar_members
from pipelines.data.sources.base import LEFT_OUT, BadFile, ImageFile, Item, Source, printable, suffix_counts, suffix_of
from pipelines.data.sources.file_names import Clutter, is_image, is_image_content, may_be_image
from pipelines.data.sources.files import Entry, Files
from pipelines.data.sources.splits.layout import Layout, place_of
from pipelines.data.sources.splits.names import listed_splits
from pipelines.data.sources.splits.option import SplitOption
from pipelines.data.sources.streams import OneFile
from pipelines.data.sources.webdataset import Samples, place_and_class

_Key = tuple[int, str]
"""The number of an archive, and a path in it."""


def ignored_line(others: Counter[str]) -> list[str]:
    """The note on files that are no images, by suffix; none where there are none."""
    total = sum(others.values())
    files = "1 file that is not an image" if total == 1 else f"{total:,} files that are not images"
    return [f"{files} ignored: {suffix_counts(others)}"] if total else []


def left_out_line(count: int) -> list[str]:
    """The note on images that an explicit ``--splits`` does not name; none where there are none."""
    return [f"{count:,} image{'' if count == 1 else 's'} in no folder that --splits names: left out"] if count else []


class ImageTree(Source):
    """The image files among some listed files; these are read in the order of the list."""

    def __init__(self, name: str, files: Files, splits: SplitOption, notes: Sequence[str] = ()) -> None:
        super().__init__(name, files.kind)
        self._files = files
        places: dict[str, str] = {}
        for entry in files.images:
            places.setdefault(place_of(entry.key), entry.key)
        lists = [entry.key for entry in files.entries if listed_splits(entry.key)]
        self._layout = Layout(files.where, places, splits, lists)  # raises for a stray before anything is read
        self._images = [entry for entry in files.images if self._place(entry)[0] != LEFT_OUT]
        others = Counter(suffix_of(entry.key) for entry in files.entries)
        others.subtract(suffix_of(entry.key) for entry in files.images)
        left_out = left_out_line(len(files.images) - len(self._images))
        self.notes = [*files.notes, *notes, *ignored_line(+others), *left_out]
        self.origins = self._layout.origins

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
        return self._layout.split_and_class(place_of(entry.key))


class ImageStream(Source):
    """The image files of archives, in their own order. Splits and classes are known at the end.

    A member that is in an archive twice is refused: the first may be long handed over when the second, which every
    unpacker would keep instead, comes. Symbolic links are skipped; a hard link is the file that it names.

    Args:
        name: of the source.
        kind: in words.
        where: the source as the user gave it.
        splits: what the user says about splits.
        walk: the members, from the start; fills in what is odd.
        fingerprint: of the archives.
        hidden: whether hidden files are ignored.
        notes: what was decided before.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        where: str,
        splits: SplitOption,
        walk: Callable[[Oddities], Iterator[Found]],
        fingerprint: Callable[[], str],
        *,
        hidden: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, kind)
        self._fixed_notes = notes
        self._where = where
        self._splits = splits
        self._walk = walk
        self._fingerprint = fingerprint
        self._hidden = hidden
        self._layout = Layout(where, {}, SplitOption())

    def fingerprint(self) -> str:
        return self._fingerprint()

    def class_of(self, label: str) -> str | None:
        place, named = place_and_class(label)
        return self._layout.split_and_class(place)[1] if named is None else named

    def split_of(self, label: str) -> str | None:
        return self._layout.split_and_class(place_and_class(label)[0])[0]

    def items(self) -> Iterator[Item]:
        places: dict[str, str] = {}
        others: Counter[str] = Counter()
        clutter, oddities = Clutter(hidden=self._hidden), Oddities()
        hard: dict[_Key, list[Found]] = {}
        targets: dict[_Key, _Key] = {}
        lists: list[str] = []
        skipped: dict[str, str] = {}  # the places of symbolic links
        symbolic = 0
        seen: set[int] = set()  # hashes of names: of millions, too, they fit the memory
        samples = Samples(self._where)
        for found in self._walk(oddities):
            path = found.place
            if found.is_hard and found.link is not None:
                targets[found.archive, _plain(path)] = found.archive, _plain(found.link)
            if clutter.takes(path):
                continue
            if found.link is not None:
                if found.is_hard and (is_image(path) or may_be_image(path)):
                    hard.setdefault((found.archive, _plain(found.link)), []).append(found)
                symbolic += not found.is_hard
                if not found.is_hard:  # a name without a suffix may be that of a folder
                    skipped.setdefault(place_of(path) if is_image(path) else path, found.path)
                continue
            if is_image(path):
                content = found.read()
            elif path.endswith(".cls"):
                yield from samples.add_class(found)
                continue
            elif may_be_image(path) and is_image_content(found.head()):
                content = found.read()
            else:
                others[suffix_of(path)] += 1
                lists += [found.path] if listed_splits(path) else []
                continue
            once = hash((found.archive, path.removeprefix("./")))
            if once in seen:
                raise ConfigError(f"{self._where}: {printable(found.path)} is in the archive twice; pack it again")
            seen.add(once)
            yield from samples.add(found, self._item(found, content, places))
        yield from samples.rest()
        yield from self._hard_links(_resolved(hard, targets), places)
        self._layout = Layout(self._where, places, self._splits, lists, skipped)
        self.origins = self._layout.origins
        self.notes = [*self._fixed_notes, *ignored_line(others), *clutter.notes(), *oddities.notes()]
        if symbolic:
            self.notes.append(f"{symbolic:,} symbolic link{'' if symbolic == 1 else 's'} in the archive skipped")

    def _item(self, found: Found, content: bytes | str, places: dict[str, str]) -> ImageFile | BadFile:
        if isinstance(content, str):
            return BadFile(printable(found.path), content)
        place = place_of(found.place)
        places.setdefault(place, found.path)
        return ImageFile(printable(found.path), content, None, place)

    def _hard_links(self, hard: dict[_Key, list[Found]], places: dict[str, str]) -> Iterator[Item]:
        """The images that hard links name, read again: when a link comes, its file is long handed over."""
        if not hard:
            return
        for found in self._walk(Oddities()):
            links = hard.pop((found.archive, _plain(found.place)), []) if found.link is None else []
            content = found.read() if links else b""
            for link in links:
                image = is_image(link.place) or (isinstance(content, bytes) and is_image_content(content))
                if image:
                    yield self._item(link, content, places)
            if not hard:
                return
        for links in hard.values():
            for link in filter(lambda link: is_image(link.place), links):
                yield BadFile(printable(link.path), f"a hard link to {printable(link.link or '')}, which is not there")


def image_tar(name: str, file: OneFile, splits: SplitOption, *, nested: bool, hidden: bool) -> ImageStream:
    """The images of a tar archive, and of the tars inside where it is ``nested``."""

    def walk(oddities: Oddities) -> Iterator[Found]:
        return tar_members(file, oddities, nested=nested)

    return ImageStream(name, "tar archive", file.where, splits, walk, file.fingerprint, hidden=hidden)


def _resolved(hard: dict[_Key, list[Found]], targets: dict[_Key, _Key]) -> dict[_Key, list[Found]]:
    """Hard links by the file that they name, which may be another hard link in the archive."""
    resolved: dict[_Key, list[Found]] = {}
    for key, links in hard.items():
        passed = set()
        while key in targets and key not in passed:  # a damaged archive may lead round in a circle
            passed.add(key)
            key = targets[key]
        resolved.setdefault(key, []).extend(links)
    return resolved


def _plain(path: str) -> str:
    return path.removeprefix("./").lstrip("/")


def no_images(where: str, suffixes: Counter[str], ignored: Sequence[str] = ()) -> ConfigError:
    """The line for a place without anything to read; ``ignored`` are the notes on what was not looked into."""
    if not suffixes:
        return ConfigError(f"{where}: empty; needs image files (.png, .jpg, .webp, .bmp, .tif) or files of arrays")
    return ConfigError(
        f"{where}: no images in it; it holds {suffix_counts(suffixes)}, and .png, .jpg, .webp, .bmp, .gif, .avif and "
        f".tif are read{''.join(f'; {note}; rename what is meant' for note in ignored)}"
    )

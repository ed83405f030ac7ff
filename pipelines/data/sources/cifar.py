"""The CIFAR-10 and CIFAR-100 batches as published, for Python and binary, in a folder or an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np

from fvae.config import require
from pipelines.data.sources.base import Item, Pixels, Source
from pipelines.data.sources.cifar_formats import Format
from pipelines.data.sources.files import Files
from pipelines.data.sources.plain_pickle import PlainArray, load_plain
from pipelines.data.sources.streams import OneFile, whole_or_refused
from pipelines.data.sources.tars import TarReader

PIXELS = 3 * 32 * 32
SLICE = 1024
"""Images handed over at a time."""


class Cifar(Source):
    """Batches in one of the published forms.

    Args:
        walk: the files as a stream of (name without folder, opener): each is to be opened before the next is asked for.
    """

    def __init__(
        self,
        name: str,
        where: str,
        form: Format,
        walk: Callable[[], Iterator[tuple[str, str, Callable[[], AbstractContextManager[BinaryIO]]]]],
        fingerprint: Callable[[], str],
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, form.kind)
        self._fixed_notes = list(notes)
        self._where = where
        self._form = form
        self._walk = walk
        self._fingerprint = fingerprint
        self._names: list[str] = []

    def fingerprint(self) -> str:
        return self._fingerprint()

    def class_of(self, label: str) -> str | None:
        return self._names[int(label)] if self._names else label

    def items(self) -> Iterator[Item]:
        form = self._form
        wanted = {*form.train, form.test}
        highest = -1
        self._names = []
        for name, where, opened in self._walk():
            split = form.split_of(name)
            if name == form.names:
                with opened() as file, whole_or_refused(where):
                    self._names = self._read_names(file, where)
            elif split is not None:
                require(name in wanted, f"{where}: the second {name} in {self._where}")
                wanted.discard(name)
                with opened() as file, whole_or_refused(where):
                    for pixels in self._read_batch(file, name, where, split):
                        highest = max(highest, *(int(label) for label in pixels.labels or () if label))
                        yield pixels
        require(not wanted, f"{self._where}: holds no {min(wanted, default='')}; {form.kind} come with it")
        classes = len(self._names) or form.classes
        require(highest < classes, f"{self._where}: has label {highest}, but there are {classes} classes")
        unnamed = [] if self._names else [f"no {form.names}: classes are named by their numbers"]
        self.notes = [*self._fixed_notes, *unnamed]

    def _read_batch(self, file: BinaryIO, name: str, where: str, split: str) -> Iterator[Pixels]:
        if self._form.label_bytes:
            record = self._form.label_bytes + PIXELS
            for content in _records(file, record, where):
                rows = np.frombuffer(content, np.uint8).reshape(-1, record)
                fine = rows[:, self._form.label_bytes - 1].tolist()
                yield _pixels(name, rows[:, self._form.label_bytes :], fine, split)
            return
        images, labels = _python_batch(load_plain(file, where), self._form.label_key, where)
        for start in range(0, len(images), SLICE):
            yield _pixels(name, images[start : start + SLICE], labels[start : start + SLICE], split)

    def _read_names(self, file: BinaryIO, where: str) -> list[str]:
        if self._form.label_bytes:
            names = [line.strip() for line in file.read(1 << 16).decode("utf-8", "replace").splitlines()]
            return [name for name in names if name]
        held = load_plain(file, where)
        key = self._form.names_key  # bytes as Python 2 wrote them, text where Python 3 has saved them again
        found = held.get(key, held.get(key.decode())) if isinstance(held, dict) else None
        require(isinstance(found, list) and bool(found), f"{where}: holds no {self._form.names_key.decode()}")
        return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in found or ()]


def cifar_files(name: str, files: Files, form: Format, folder: str, notes: Sequence[str] = ()) -> Cifar:
    """The batches in ``folder`` (``""``, or with a last ``/``) of some files."""
    present = {entry.key for entry in files.entries}

    def walk() -> Iterator[tuple[str, str, Callable[[], AbstractContextManager[BinaryIO]]]]:
        for base in (form.names, *form.train, form.test):
            if folder + base in present:
                file = files.file(folder + base)
                yield base, file.where, file.unpacked

    return Cifar(name, files.where, form, walk, files.fingerprint, notes)


def cifar_tar(name: str, file: OneFile, form: Format) -> Cifar:
    """The batches in a tar archive, in its own order."""

    def walk() -> Iterator[tuple[str, str, Callable[[], AbstractContextManager[BinaryIO]]]]:
        with file.unpacked() as content:
            reader = TarReader(content)
            with whole_or_refused(file.where, lambda: f" after {reader.members:,} entries"):
                for member in reader:
                    if member.link is not None:
                        continue
                    yield member.name.rpartition("/")[2], f"{file.where}: {member.name}", reader.open

    return Cifar(name, file.where, form, walk, file.fingerprint)


def _records(file: BinaryIO, record: int, where: str) -> Iterator[bytes]:
    """Whole records to the end of the file, some at a time."""
    rest = b""
    while content := file.read(SLICE * record):
        content = rest + content
        whole = len(content) // record * record
        rest = content[whole:]
        if whole:
            yield content[:whole]
    require(
        not rest, f"{where}: its length is no multiple of {record} bytes, so a part is missing; get a complete copy"
    )


def _python_batch(held: Any, label_key: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    data = held.get(b"data", held.get("data")) if isinstance(held, dict) else None
    images: np.ndarray = getattr(data, "array", np.empty(0)) if isinstance(data, PlainArray) else np.empty(0)
    require(
        images.ndim == 2 and images.shape[1] == PIXELS and images.dtype == np.uint8,
        f"{where}: holds no data of unsigned bytes [N, {PIXELS}]; not a CIFAR batch",
    )
    labels = held.get(label_key, held.get(label_key.decode()))
    if isinstance(labels, PlainArray):
        labels = labels.array.reshape(-1).tolist()
    require(
        isinstance(labels, list)
        and len(labels) == len(images)
        and all(type(label) is int and label >= 0 for label in labels),
        f"{where}: needs a list of {len(images):,} numbers as {label_key.decode()}",
    )
    return images, labels


def _pixels(path: str, planes: np.ndarray, labels: list[int], split: str) -> Pixels:
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, H, W, 3]
    return Pixels(path, images, split, tuple(map(str, labels)))

"""Images in NumPy's files: one ``.npy`` or ``.npz``, or a folder of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvae.config import ConfigError, require
from pipelines.data.sources.array_meaning import (
    Form,
    assign,
    check_count,
    check_type,
    flat_side,
    form_of,
    meaning,
    read_labels,
)
from pipelines.data.sources.base import LEFT_OUT, BadFile, Item, Pixels, Source, digest, printable
from pipelines.data.sources.files import Files
from pipelines.data.sources.npy_format import Array, npz_arrays, read_header
from pipelines.data.sources.splits.layout import Layout, place_of
from pipelines.data.sources.splits.option import SplitOption
from pipelines.data.sources.streams import OneFile

MANY = 20
"""Arrays of one shape ``[A, B]`` are images of that size where there are more of them, even if B is a square."""


@dataclass(frozen=True, slots=True)
class Part:
    """One array of images."""

    array: Array
    form: Form
    split: str | None
    labels: Array | None = None
    label: str | None = None
    """The class of all its images, where no array holds their labels."""
    single: bool = False
    """Whether the array is one image."""


class Arrays(Source):
    """The images of some arrays."""

    def __init__(
        self,
        name: str,
        files: Sequence[OneFile],
        parts: Sequence[Part],
        notes: Sequence[str],
        bad: Sequence[BadFile] = (),
    ) -> None:
        super().__init__(name, "NumPy arrays")
        self._bad = bad
        self._files = files
        self._parts = parts
        types = sorted({found for part in parts if (found := check_type(part.array))})
        self.needs_range = " and ".join(types)
        self._fixed_notes = [*notes, *sorted({part.form.note for part in parts if part.form.note})]
        self.notes = self._fixed_notes

    def fingerprint(self) -> str:
        if len(self._files) == 1:
            return self._files[0].fingerprint()
        return digest(*(part for file in self._files for part in (file.where, file.fingerprint())))

    def count(self) -> int:
        return sum(1 if part.single else part.array.shape[0] for part in self._parts)

    def items(self) -> Iterator[Item]:
        notes = []
        yield from self._bad
        for part in self._parts:
            name = part.array.where.rpartition("/")[2]
            if part.single:
                yield _single(part, name)
                continue
            labels: Sequence[str | None] | None = None
            if part.labels:
                labels, note = read_labels(part.labels)
                notes += [note] if note else []
            elif part.label is not None:
                labels = [part.label] * part.array.shape[0]
            start = 0
            for rows in part.array.rows():
                of_these = None if labels is None else tuple(labels[start : start + len(rows)])
                start += len(rows)
                yield Pixels(name, part.form.images(rows), part.split, of_these)
        self.notes = [*self._fixed_notes, *notes]


def _single(part: Part, name: str) -> Item:
    """The image that an array is, or why it cannot be read."""
    try:
        image = np.concatenate(list(part.array.rows()))
    except ConfigError as error:
        return BadFile(printable(name), str(error).removeprefix(f"{part.array.where}: "))
    return Pixels(name, image[None], part.split, (part.label,))


def npy_file(name: str, file: OneFile) -> Arrays:
    """A ``.npy`` file: one array of images. Raises ``ConfigError`` where that is not what it holds."""
    array = read_header(file.where, file.open)
    check_type(array)
    return Arrays(name, [file], [Part(array, form_of(array), None)], [])


def npz_file(name: str, file: OneFile) -> Arrays:
    """A ``.npz`` file. Raises ``ConfigError`` where its arrays are no images."""
    return Arrays(name, [file], *_named_parts(file.where, npz_arrays(file)))


def array_folder(name: str, files: Files, keys: Sequence[str], splits: SplitOption) -> Arrays:
    """The ``.npy`` or ``.npz`` files of a folder.

    A ``.npz`` holds a split, or a part of one, as its name says. ``.npy`` files with names like ``x_train`` and
    ``y_train`` belong together like the arrays of one ``.npz``; others hold a class each, or one image each, whose
    class is its folder's name. Raises ``ConfigError`` where their shapes fit no images.
    """
    opened = {key: files.file(key) for key in sorted(keys)}
    if all(key.lower().endswith(".npz") for key in keys):
        return _npz_folder(name, files.where, opened, splits)
    arrays: dict[str, Array] = {}
    bad: list[BadFile] = []
    for key, file in opened.items():
        try:
            arrays[key] = read_header(file.where, file.open)
        except ConfigError as error:
            bad.append(BadFile(printable(key), str(error).removeprefix(f"{file.where}: ")))
    require(
        bool(arrays),
        f"{files.where}: no array in it that can be read{f'; {bad[0].path}: {bad[0].cause}' if bad else ''}",
    )
    names = {key.rpartition("/")[2].rpartition(".")[0]: array for key, array in arrays.items()}
    if len(names) == len(arrays) and (len(arrays) == 1 or any(meaning(stem)[0] == "labels" for stem in names)):
        return Arrays(name, list(opened.values()), *_named_parts(files.where, names))
    single = _are_single(list(arrays.values()))
    places = {key: place_of(key) if single else key.rpartition(".")[0] for key in arrays}
    layout = Layout(files.where, {place: key for key, place in places.items()}, splits)
    parts = []
    for key, array in arrays.items():
        split, label = layout.split_and_class(places[key])
        check_type(array)
        if split != LEFT_OUT:
            parts.append(Part(array, Form() if single else form_of(array), split, label=label, single=single))
    source = Arrays(name, list(opened.values()), parts, ["each .npy file is one image"] if single else [], bad)
    source.origins = layout.origins
    return source


def _npz_folder(name: str, where: str, opened: Mapping[str, OneFile], splits: SplitOption) -> Arrays:
    layout = Layout(where, {key.rpartition(".")[0]: key for key in opened}, splits)
    parts, notes = [], []
    for key, file in opened.items():
        split, _ = layout.split_and_class(key.rpartition(".")[0])
        found, said = _named_parts(file.where, npz_arrays(file), split)
        if split != LEFT_OUT:
            parts += found
            notes += [note for note in said if note not in notes]
    source = Arrays(name, list(opened.values()), parts, notes)
    source.origins = layout.origins
    return source


def _named_parts(where: str, arrays: Mapping[str, Array], split: str | None = None) -> tuple[list[Part], list[str]]:
    """The arrays that names make images and labels, and the note on the others. Raises ``ConfigError``."""
    named, others = assign(where, arrays)
    for part in named:
        check_type(arrays[part.images])
        if part.labels:
            check_count(arrays[part.labels], arrays[part.images].shape[0])
    parts = [
        Part(
            arrays[part.images],
            form_of(arrays[part.images], planar=part.images.lower().endswith("data") or "batch" in part.images.lower()),
            part.split or split,
            arrays[part.labels] if part.labels else None,
        )
        for part in named
    ]
    return parts, [f"arrays that are neither images nor labels ignored: {', '.join(others)}"] if others else []


def _are_single(arrays: Sequence[Array]) -> bool:
    """Whether each of some arrays is one image, and not many."""
    if all(len(array.shape) == 3 and array.shape[2] in (1, 3) for array in arrays):
        return True
    if not all(len(array.shape) == 2 for array in arrays):
        return False
    return len({array.shape for array in arrays}) == 1 and (not flat_side(arrays[0].shape[1]) or len(arrays) > MANY)

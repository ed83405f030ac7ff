"""NumPy's ``.npy`` and ``.npz`` files, read a few megabytes at a time and without pickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from fvae.config import ConfigError, require
from pipelines.pixel_modes import to_8_bits
from pipelines.sources.base import LARGEST_IMAGE, Item, Pixels, Source
from pipelines.sources.chunks import chunks
from pipelines.sources.split_names import SPLIT_NAMES
from pipelines.sources.streams import OneFile, whole_or_refused
from pipelines.storage import StorageError

IMAGE_KEYS = ("images", "image", "x", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
Opened = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Array:
    """One stored array: where it is and what its header says."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    header_bytes: int
    opened: Opened


class Arrays(Source):
    """The images of one ``.npy`` or ``.npz`` file."""

    def __init__(self, name: str, file: OneFile, arrays: dict[str, Array]) -> None:
        super().__init__(name, "NumPy arrays")
        self._file = file
        self._parts, ignored = _assign(file.where, arrays)
        self._fixed_notes = []
        if ignored:
            self._fixed_notes.append(f"arrays that are neither images nor labels ignored: {', '.join(ignored)}")
        for _, images, _ in self._parts:
            _check_type(images)
        self._layouts = [_layout(images) for _, images, _ in self._parts]
        for _, images, labels in self._parts:
            if labels is not None:
                _check_labels(labels, images.shape[0])
        for layout in sorted({layout for layout in self._layouts if layout}):
            self._fixed_notes.append(f"arrays of four dimensions read as {layout}")
        self.notes = list(self._fixed_notes)

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def count(self) -> int:
        return sum(images.shape[0] for _, images, _ in self._parts)

    def items(self) -> Iterator[Item]:
        reduced = expanded = 0
        for (split, array, label_array), layout in zip(self._parts, self._layouts, strict=True):
            labels = _read_labels(label_array) if label_array else None
            start = 0
            for values in _read(array):
                reduced += len(values) if array.dtype == np.uint16 or array.dtype == np.dtype(">u2") else 0
                expanded += len(values) if array.dtype.kind == "b" else 0
                images = _to_bytes(values, array.where)
                if layout == "[N, C, H, W]":
                    images = images.transpose(0, 2, 3, 1)
                if images.ndim == 4 and images.shape[3] == 1:
                    images = images[..., 0]
                of_these = None if labels is None else tuple(labels[start : start + len(images)])
                start += len(images)
                yield Pixels(array.where.rpartition("/")[2], images, split, of_these)
        self.notes = list(self._fixed_notes)
        if reduced:
            self.notes.append(f"{reduced:,} images of 16 bits: rounded to 8 bits (lossy)")
        if expanded:
            self.notes.append(f"{expanded:,} images of booleans: 0 and 255")


def npy_file(name: str, file: OneFile) -> Arrays:
    """A ``.npy`` file: one array of images. Raises ``ConfigError`` where that is not what it holds."""
    return Arrays(name, file, {"images": _read_header(file.where, file.open)})


def npz_file(name: str, file: OneFile) -> Arrays:
    """A ``.npz`` file. Raises ``ConfigError`` where its arrays are no images."""

    def opened(member: str) -> Opened:
        @contextmanager
        def open_member() -> Iterator[BinaryIO]:
            with (
                _unzipped(file.where),
                file.open() as packed,
                zipfile.ZipFile(packed) as archive,
                archive.open(member) as content,
            ):
                yield cast(BinaryIO, content)

        return open_member

    with _unzipped(file.where), file.open() as packed, zipfile.ZipFile(packed) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return Arrays(
        name, file, {key[: -len(".npy")]: _read_header(f"{file.where}/{key}", opened(key)) for key in members}
    )


@contextmanager
def _unzipped(where: str) -> Iterator[None]:
    with whole_or_refused(where):
        try:
            yield
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ConfigError(f"{where}: damaged ({error}); get it whole and try again") from error


def _read_header(where: str, opened: Opened) -> Array:
    with whole_or_refused(where), opened() as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            require(version in readers, f"{where}: .npy of version {version}; save it again with np.save")
            shape, fortran, dtype = readers[version](file)
        except StorageError:
            raise
        except ConfigError:
            raise
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: no whole .npy file ({str(error).splitlines()[0][:100]})") from error
        require(all(size >= 0 for size in shape), f"{where}: damaged: its header promises the shape {shape}")
        return Array(where, tuple(shape), dtype, fortran, file.tell(), opened)


def _read(array: Array) -> Iterator[np.ndarray]:
    """The array, some rows at a time."""
    count, *shape = array.shape
    row = math.prod(shape) * array.dtype.itemsize
    with whole_or_refused(array.where), array.opened() as file:
        file.read(array.header_bytes)
        for rows, content in chunks(file, count, row, array.where, "rows"):
            yield np.frombuffer(content, array.dtype).reshape(rows, *shape)


# --- what the arrays mean --------------------------------------------------------------------------


def _assign(where: str, arrays: dict[str, Array]) -> tuple[list[tuple[str | None, Array, Array | None]], list[str]]:
    """Which arrays are the images and labels of which split, and the names of the others."""
    images: dict[str | None, str] = {}
    labels: dict[str | None, str] = {}
    for name in arrays:
        parts = [part for part in name.lower().replace("-", "_").split("_") if part]
        split = next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)
        rest = "_".join(part for part in parts if part not in SPLIT_NAMES)
        kind = labels if rest in LABEL_KEYS else images if rest in IMAGE_KEYS or (split and not rest) else None
        if kind is None or (name.lower() == "arr_0" and len(arrays) > 1):
            continue
        require(split not in kind, f"{where}: {kind.get(split)} and {name} both mean the same; leave one of them")
        kind[split] = name
    if not images and len(arrays) == 1:
        images[None] = next(iter(arrays))
    held = ", ".join(arrays) or "nothing"
    require(
        bool(images),
        f"{where}: holds {held}; needs images, x, or x_train, x_val and x_test (labels in y, y_train …)",
    )
    require(
        None not in images or len(images) == 1,
        f"{where}: {images.get(None)} belongs to no split, beside {', '.join(n for s, n in images.items() if s)}",
    )
    stray = [name for split, name in labels.items() if split not in images]
    require(not stray, f"{where}: {', '.join(stray)}: labels without images")
    parts_ = [
        (split, arrays[name], arrays[labels[split]] if split in labels else None) for split, name in images.items()
    ]
    used = {*images.values(), *labels.values()}
    return parts_, [name for name in arrays if name not in used]


def _layout(array: Array) -> str:
    """How four dimensions are meant, ``""`` for three. Raises ``ConfigError`` where that cannot be told."""
    shape = "×".join(map(str, array.shape)) or "()"
    require(
        len(array.shape) in (3, 4),
        f"{array.where}: has shape {shape}; reshape it to [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]",
    )
    require(0 not in array.shape, f"{array.where}: empty ({shape})")
    require(
        math.prod(array.shape[1:]) <= LARGEST_IMAGE,
        f"{array.where}: damaged: its header promises images of {shape}",
    )
    first, last = array.shape[1], array.shape[-1]
    if len(array.shape) == 3:
        require(
            last not in (1, 3),
            f"{array.where}: shape {shape} is one picture or many that are {last} wide; give it four dimensions",
        )
        return ""
    require(
        first in (1, 3) or last in (1, 3),
        f"{array.where}: shape {shape} has neither first nor last 1 or 3 channels; an alpha channel is to be dropped",
    )
    require(
        first not in (1, 3) or last not in (1, 3),
        f"{array.where}: shape {shape} may have its channels first or last; crop or resize it so that it tells",
    )
    return "[N, H, W, C]" if last in (1, 3) else "[N, C, H, W]"


def _check_type(array: Array) -> None:
    kind = array.dtype.kind
    require(
        not array.dtype.hasobject,
        f"{array.where}: an array of objects; only numbers are read: save np.stack(images) as uint8",
    )
    require(
        kind in "bui" and array.dtype.names is None and array.dtype.subdtype is None,
        f"{array.where}: holds {array.dtype}; levels are whole numbers: if x lies in 0 … 1, save "
        "(255 * x).round().astype(np.uint8)",
    )
    require(not array.fortran, f"{array.where}: saved in Fortran order; save np.ascontiguousarray(images)")


def _to_bytes(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return to_8_bits(values)
    low, high = int(values.min()), int(values.max())
    require(
        low >= 0 and high <= 255,
        f"{where}: {values.dtype} with values from {low} to {high}; levels are 0 … 255: rescale and save as uint8",
    )
    return values.astype(np.uint8)


def _check_labels(array: Array, count: int) -> None:
    flat = len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)
    require(
        flat and array.shape[0] == count,
        f"{array.where}: labels of shape {array.shape} for {count:,} images; needs one for each, [{count}]",
    )
    require(
        array.dtype.kind in "uiU" and array.dtype.itemsize <= 4096,
        f"{array.where}: labels of type {array.dtype}; needs whole numbers or texts",
    )


def _read_labels(array: Array) -> list[str]:
    return [str(label) for values in _read(array) for label in values.reshape(-1).tolist()]

"""IDX files, the format of MNIST and its relatives; packed by gzip or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from fvae.config import require
from pipelines.data.sources.base import LARGEST_IMAGE, Item, Pixels, Source, digest
from pipelines.data.sources.files import Files
from pipelines.data.sources.streams import OneFile, chunks, read_exactly, whole_or_refused

_TYPES = {8: "unsigned bytes", 9: "signed bytes", 11: "shorts", 12: "ints", 13: "floats", 14: "doubles"}
_LABEL_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGES = re.compile(r"^((?:.*[-_])?)(train|t10k|test|val)[-_]images[-._]idx[34][-._]ubyte(\.gz)?$", re.IGNORECASE)
_SPLITS = {"train": "train", "val": "val", "t10k": "test", "test": "test"}


@dataclass(frozen=True, slots=True)
class Part:
    """One file of images with its labels."""

    images: OneFile
    labels: OneFile | None
    split: str | None


class Idx(Source):
    """One IDX file of images, or the files of a folder."""

    def __init__(self, name: str, parts: list[Part], notes: list[str]) -> None:
        super().__init__(name, "IDX files")
        self._parts = parts
        self._headers = [_read_header(part.images) for part in parts]
        for part, shape in zip(parts, self._headers, strict=True):
            require(
                len(shape) == 3 or shape[3] in (1, 3),
                f"{part.images.where}: has {_by(*shape)} values; images are N×H×W, N×H×W×1 or N×H×W×3",
            )
        self._fixed_notes = notes
        self.notes = notes

    def fingerprint(self) -> str:
        files = [file for part in self._parts for file in (part.images, part.labels) if file]
        return digest(*(file.fingerprint() for file in files), *(PurePosixPath(file.where).name for file in files))

    def count(self) -> int:
        return sum(shape[0] for shape in self._headers)

    def items(self) -> Iterator[Item]:
        left_out: list[str] = []
        for part, (count, *shape) in zip(self._parts, self._headers, strict=True):
            labels = _read_labels(part.labels, count) if part.labels else None
            if part.labels and labels is None:
                left_out.append(f"{PurePosixPath(part.labels.where).name} left out: labels that are not whole numbers")
            where = part.images.where
            start = 0
            # Whatever a decompressor finds wrong at the end concerns images handed over before it.
            with whole_or_refused(where, lambda: f" after {start:,} images"), part.images.unpacked() as file:  # noqa: B023
                file.read(4 + 4 * (1 + len(shape)))
                for rows, content in chunks(file, count, math.prod(shape), where, f"images ({_by(count, *shape)})"):
                    images = np.frombuffer(content, np.uint8).reshape(rows, *shape)
                    of_these = None if labels is None else tuple(map(str, labels[start : start + rows].tolist()))
                    start += rows
                    yield Pixels(PurePosixPath(where).name, _without_one(images), part.split, of_these)
        self.notes = [*self._fixed_notes, *left_out]


def is_idx_name(name: str) -> bool:
    """Whether a file (no folder in ``name``) is called like one of MNIST's files of images."""
    return _IMAGES.match(name) is not None


def is_idx(head: bytes) -> bool:
    """Whether a file starts like an IDX file."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in _TYPES and 1 <= head[3] <= 8


def idx_file(name: str, file: OneFile) -> Idx:
    """One file of images: it names no split."""
    return Idx(name, [Part(file, None, None)], [])


def idx_folder(name: str, files: Files, folder: str, notes: Sequence[str] = ()) -> Idx:
    """The files of images in ``folder`` (``""``, or with a last ``/``), each with its labels where they are there.

    Raises ``ConfigError`` where the training or the test file is missing, or one is there twice.
    """
    names = {entry.key.removeprefix(folder) for entry in files.entries if entry.key.rpartition("/")[0] == folder[:-1]}
    parts: dict[str, Part] = {}
    taken: dict[str, str] = {}
    notes = list(notes)
    for base in sorted(names):  # x before x.gz
        found = _IMAGES.match(base)
        if found is None:
            continue
        split = _SPLITS[found[2].lower()]
        if base.endswith(".gz") and taken.get(split) == base[: -len(".gz")]:
            notes.append(f"{base} ignored: {taken[split]} lies beside it")
            continue
        require(
            split not in taken,
            f"{files.where}: {taken.get(split)} and {base} are both {split} images; give a folder with one of them",
        )
        taken[split] = base
        stem = base.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
        labels = next((files.file(folder + label) for label in (stem, f"{stem}.gz") if label in names), None)
        start = re.split(r"[-._]idx\d", stem)[0]
        other = next((name for name in sorted(names) if name.startswith(start) and name not in (stem, base)), None)
        if labels is None and other is not None:
            notes.append(f"{other} left out: not one label of a byte for each image")
        parts[split] = Part(files.file(folder + base), labels, split)
    for split, usual in (("train", "train-images-idx3-ubyte"), ("test", "t10k-images-idx3-ubyte")):
        there = min(taken.values())
        require(
            split in parts,
            f"{files.where}: {there} has no file of {split} images ({usual}) beside it; "
            "give that file itself to use it alone",
        )
    return Idx(name, [parts[split] for split in ("train", "val", "test") if split in parts], notes)


def _read_header(file: OneFile, dimensions: tuple[int, ...] = (3, 4)) -> tuple[int, ...]:
    """The lengths of an IDX file's dimensions. Raises ``ConfigError`` where it cannot be read."""
    with whole_or_refused(file.where), file.unpacked() as content:
        head = content.read(4)
        what = "images" if 3 in dimensions else "labels"
        require(is_idx(head), f"{file.where}: not an IDX file of {what} (starts with {head.hex() or 'nothing'})")
        require(
            head[2] == 8 or what == "labels", f"{file.where}: holds {_TYPES[head[2]]}; only unsigned bytes are read"
        )
        require(
            head[3] in dimensions,
            f"{file.where}: not an IDX file of {what} (magic {head.hex()}: {head[3]} dimensions, not "
            f"{' or '.join(map(str, dimensions))})",
        )
        rest = read_exactly(content, 4 * head[3])
        require(len(rest) == 4 * head[3], f"{file.where}: cut short in its header; get a complete copy")
    shape = tuple(int(size) for size in np.frombuffer(rest, ">u4"))
    require(0 not in shape, f"{file.where}: empty ({_by(*shape)})")
    require(
        math.prod(shape[1:]) <= LARGEST_IMAGE,
        f"{file.where}: damaged: its header promises images of {_by(*shape[1:])}",
    )
    return shape


def _read_labels(file: OneFile, count: int) -> np.ndarray | None:
    """The labels as whole numbers; None where they are others. Raises ``ConfigError`` where they are not ``count``."""
    with whole_or_refused(file.where), file.unpacked() as content:
        head = content.read(4)
    kind = _LABEL_TYPES.get(head[2] if is_idx(head) else 8, "u1")
    (labels,) = _read_header(file, (1,))
    require(labels == count, f"{file.where}: {labels:,} labels for {count:,} images")
    with whole_or_refused(file.where), file.unpacked() as content:
        content.read(8)
        size = np.dtype(kind).itemsize
        parts = [np.frombuffer(part, kind) for _, part in chunks(content, count, size, file.where, "labels")]
    found = np.concatenate(parts)
    if found.dtype.kind == "f" and not (np.isfinite(found) & (found == np.floor(found))).all():
        return None
    return found.astype(np.int64)


def _by(*sizes: int) -> str:
    return "×".join(map(str, sizes))


def _without_one(images: np.ndarray) -> np.ndarray:
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images

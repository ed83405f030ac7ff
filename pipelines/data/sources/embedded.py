"""The data sets ``digits`` and ``photos``, which come with scikit-learn and need no network."""

from __future__ import annotations

import importlib.metadata
import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from pipelines.data.sources.base import Item, Pixels, Source, digest

SPLIT_SEED = 20180916
"""Seed of the split of the digits, which has the same test images in every search."""
VAL_SHARE = 0.1
TEST_SHARE = 0.2
PATCH = 16
TILE_ROWS, TILE_COLUMNS = 13, 4
"""Patches of a region of the photographs that lies in one split."""
VAL_TILES = frozenset({(0, 7), (1, 2)})
"""Rows and columns of regions: one of each half of the picture, so that every split sees sky and ground."""
TEST_TILES = frozenset({(0, 2), (1, 7)})


class Embedded(Source):
    """A data set by name."""

    images: int
    """How many there are."""

    def __init__(self, name: str) -> None:
        super().__init__(name, name)

    def fingerprint(self) -> str:
        return digest(self.name, importlib.metadata.version("scikit-learn"))

    def count(self) -> int:
        return self.images

    @abstractmethod
    def items(self) -> Iterator[Item]: ...


class Digits(Embedded):
    """1,797 scanned digits: 8×8, 17 levels (UCI Optical Recognition of Handwritten Digits)."""

    bins = 17
    images = 1797

    def __init__(self) -> None:
        super().__init__("digits")

    def items(self) -> Iterator[Item]:
        from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

        held = load_digits()
        images = held.images.astype(np.uint8)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        test, val = math.ceil(TEST_SHARE * len(images)), math.ceil(VAL_SHARE * len(images))
        for split, rows in zip(("test", "val", "train"), np.split(order, (test, test + val)), strict=True):
            yield Pixels("digits", images[rows], split, tuple(map(str, held.target[rows].tolist())))


class Photos(Embedded):
    """The two sample photographs, cut into 2,080 colour patches of 16×16 that do not overlap.

    Regions of 208×64 pixels lie in one split each, so that most patches have neighbours of their own split only.
    """

    bins = 256
    images = 2080

    def __init__(self) -> None:
        super().__init__("photos")

    def items(self) -> Iterator[Item]:
        from sklearn.datasets import load_sample_images

        held = load_sample_images()
        for name, photo in zip(held.filenames, held.images, strict=True):
            rows, columns = photo.shape[0] // PATCH, photo.shape[1] // PATCH
            cut = photo[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3)
            patches = cut.transpose(0, 2, 1, 3, 4)  # [rows, columns, 16, 16, 3]
            splits = photo_splits(rows, columns)
            file = name.replace("\\", "/").rpartition("/")[2]
            for split in ("train", "val", "test"):
                images = np.ascontiguousarray(patches[splits == split])
                yield Pixels(file, images, split, (file.partition(".")[0],) * len(images))


def photo_splits(rows: int, columns: int) -> np.ndarray:
    """The split of each patch of a photograph: an array of names ``[rows, columns]``."""
    splits = np.full((rows, columns), "train")
    for tiles, split in ((VAL_TILES, "val"), (TEST_TILES, "test")):
        for row, column in tiles:
            top, left = row * TILE_ROWS, column * TILE_COLUMNS
            splits[top : top + TILE_ROWS, left : left + TILE_COLUMNS] = split
    return splits

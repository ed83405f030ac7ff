"""The sets that come with scikit-learn, and their splits for good."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from fvae.data.images import ImageDataset
from pipelines.data.sources import open_source
from pipelines.data.sources.embedded import photo_splits
from tests.pipelines.data.source_builders import pixels_of

pytestmark = pytest.mark.core


def test_digits_keep_the_split_on_which_earlier_figures_rest() -> None:
    source = open_source("digits")
    assert (source.name, source.kind, source.bins, source.count()) == ("digits", "digits", 17, 1797)
    found = {str(split): images[:, None] for split, (images, _) in pixels_of(source).items()}
    assert {split: len(images) for split, images in found.items()} == {"train": 1257, "val": 180, "test": 360}
    assert ImageDataset(name="digits", bins=17, **found).content_hash() == "6e488d75142b8351"
    held = load_digits()
    labels = {
        image.astype(np.uint8).tobytes(): str(label) for image, label in zip(held.images, held.target, strict=True)
    }
    for images, classes in pixels_of(source).values():
        assert classes == [labels[image.tobytes()] for image in images]


def test_photos_are_cut_so_that_every_pixel_is_in_one_patch() -> None:
    source = open_source("photos")
    assert (source.name, source.bins, source.count()) == ("photos", 256, 2080)
    found = pixels_of(source)
    counts = {split: len(images) for split, (images, _) in found.items()}
    assert counts == {"train": 1664, "val": 208, "test": 208}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        expected = {
            split: [
                photo[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].tobytes()
                for row in range(26)
                for column in range(40)
                if photo_splits(26, 40)[row, column] == split
            ]
            for split in counts
        }
        for split, (images, labels) in found.items():
            mine = [image.tobytes() for image, label in zip(images, labels or (), strict=True) if label == name]
            assert mine == expected[str(split)]


def test_photos_regions_are_large() -> None:
    splits = photo_splits(26, 40)
    neighbours = [splits[:, 1:] == splits[:, :-1], splits[1:] == splits[:-1]]
    assert np.mean(np.concatenate([same.ravel() for same in neighbours])) > 0.9
    for half in (splits[:13], splits[13:]):
        assert set(half.ravel()) == {"train", "val", "test"}


def test_fingerprints_differ() -> None:
    assert open_source("digits").fingerprint() != open_source("photos").fingerprint()
    assert open_source("digits").fingerprint() == open_source("digits").fingerprint()

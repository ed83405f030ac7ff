"""Images in memory: what a data set refuses, its hash, its splits as sources, and the order of training."""

from __future__ import annotations

import warnings
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from fvae.data.images import ImageDataset, TensorImages, epoch_order, image_source, steps_per_epoch
from fvae.data.manifest import content_hash, image_digest
from tests.fvae.strategies import EXAMPLES, seeds

pytestmark = pytest.mark.core


def dataset(**changes: Any) -> ImageDataset:
    """12 + 5 + 4 distinct images, 2×3×3 with 17 levels."""
    pixels = np.random.default_rng(0).integers(17, size=(21, 2, 3, 3)).astype(np.uint8)
    values: dict[str, Any] = {
        "name": "tiny",
        "bins": 17,
        "train": pixels[:12],
        "val": pixels[12:17],
        "test": pixels[17:],
    }
    return ImageDataset(**(values | changes))


def test_shape_and_splits() -> None:
    data = dataset()
    assert data.shape == (2, 3, 3)
    assert {split: len(images) for split, images in data.splits().items()} == {"train": 12, "val": 5, "test": 4}


def test_counts_and_images_by_split() -> None:
    data = dataset()
    assert data.counts() == {"train": 12, "val": 5, "test": 4}
    for split, images in data.splits().items():
        assert data.images(split) is images
    with pytest.raises(ConfigError, match="split='all': must be one of train, val, test"):
        data.images("all")


def test_the_hash_is_that_of_the_digests_in_any_order() -> None:
    """Ingest computes it in the same way, and never has all the images in memory."""
    data = dataset()
    digests = {split: [image_digest(image) for image in images][::-1] for split, images in data.splits().items()}
    assert content_hash(data.bins, data.shape, digests) == data.content_hash() == "4b2ed43deb301525"


@EXAMPLES
@given(seed=seeds, split=st.sampled_from(("train", "val", "test")))
def test_hash_is_free_of_the_order_within_a_split(seed: int, split: str) -> None:
    images = getattr(dataset(), split)
    shuffled = images[np.random.default_rng(seed).permutation(len(images))]
    assert dataset(**{split: shuffled}).content_hash() == dataset().content_hash()


@EXAMPLES
@given(
    split=st.sampled_from(("train", "val", "test")),
    place=st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)),
)
def test_hash_sees_every_pixel(split: str, place: tuple[int, ...]) -> None:
    images = getattr(dataset(), split).copy()
    images[place] = (images[place] + 1) % 17
    assert dataset(**{split: images}).content_hash() != dataset().content_hash()


def test_hash_sees_which_split_an_image_is_in() -> None:
    data = dataset()
    moved = dataset(train=data.train[1:], test=np.concatenate((data.test, data.train[:1])))
    swapped = dataset(val=data.test, test=data.val)
    assert len({data.content_hash(), moved.content_hash(), swapped.content_hash()}) == 3


def test_hash_sees_where_a_split_ends() -> None:
    """Even where the images of all splits, in the hash's own order, are the same list."""
    data = dataset()
    images = sorted(np.concatenate(list(data.splits().values())), key=lambda image: sha256(image.tobytes()).digest())
    hashes = {dataset(train=np.stack(images[:end]), val=np.stack(images[end:17])).content_hash() for end in (11, 12)}
    assert len(hashes) == 2


def test_hash_sees_bins_repeats_and_shape() -> None:
    data = dataset()
    others = [
        dataset(bins=18),
        dataset(train=np.concatenate((data.train, data.train[:1]))),
        dataset(**{split: images.reshape(-1, 1, 6, 3) for split, images in data.splits().items()}),
    ]
    assert len({data.content_hash(), *(other.content_hash() for other in others)}) == 4


def test_hash_is_free_of_name_and_memory_layout() -> None:
    data = dataset()
    assert dataset(name="other", train=np.asfortranarray(data.train)).content_hash() == data.content_hash()
    assert len(data.content_hash()) == 16 and int(data.content_hash(), 16) >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": np.zeros((0, 2, 3, 3), np.uint8)}, "the val split is empty"),
        ({"test": np.zeros((4, 2, 3, 4), np.uint8)}, r"test is uint8 \(4, 2, 3, 4\); needs uint8 \[N, C, H, W\]"),
        ({"train": np.zeros((4, 2, 3, 3))}, "train is float64"),
        ({"val": np.full((1, 2, 3, 3), 17, np.uint8)}, "val holds level 17, but bins=17"),
    ],
)
def test_splits_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(**changes)


@EXAMPLES
@given(count=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 50))
def test_epoch_order_is_a_pure_permutation(count: int, seed: int, epoch: int) -> None:
    state = torch.get_rng_state()
    order = epoch_order(count, seed, epoch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(order.sort().values, torch.arange(count))
    torch.manual_seed(epoch)
    assert torch.equal(epoch_order(count, seed, epoch), order)


def test_epoch_order_differs_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


# --- splits as sources ---------------------------------------------------------------------------


@EXAMPLES
@given(count=st.integers(1, 60), seed=seeds, epoch=st.integers(0, 9), batch_size=st.integers(1, 70))
def test_a_tensor_is_read_in_the_epochs_order(count: int, seed: int, epoch: int, batch_size: int) -> None:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    source = image_source(images)
    batches = list(source.batches(seed=seed, epoch=epoch, batch_size=batch_size))
    assert torch.equal(torch.cat(batches), images[epoch_order(count, seed, epoch)])
    assert len(batches) == steps_per_epoch(count, batch_size) == -(-count // batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    in_order = list(source.in_order(batch_size))
    assert torch.equal(torch.cat(in_order), images) and max(map(len, in_order)) <= batch_size
    assert torch.equal(source.first(batch_size), images[:batch_size])
    assert (len(source), source.shape) == (count, (1, 2, 2))


def test_arrays_become_sources_without_a_copy_and_without_a_warning() -> None:
    array = np.zeros((3, 1, 2, 2), np.uint8)
    shared = array.view()
    shared.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = image_source(shared)
    array[1] = 7
    assert source.first(3).sum() == 28
    assert image_source(source) is source
    with pytest.raises(TypeError, match="images are list; needs an array, a tensor or an ImageSource"):
        image_source([1, 2])  # type: ignore[arg-type]
    for wrong in (torch.zeros(3, 2, 2), torch.zeros(0, 1, 2, 2)):
        with pytest.raises(ConfigError, match="images"):
            TensorImages(wrong)

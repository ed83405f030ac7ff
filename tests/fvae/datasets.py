"""What the tests of reading share: small data sets in shards, in memory, and what their batches hold."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np

from fvae.data.images import ImageSource
from fvae.data.manifest import SPLITS, Manifest, Shard, content_hash, image_digest
from fvae.data.shards import encode_shard
from fvae.data.streaming import ShardedImages

SIZE = 4
"""Bytes of a numbered image."""


class Files:
    """A data set's files by key; ``fetch`` notes what was read."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.read: list[str] = []
        self._lock = threading.Lock()

    def fetch(self, key: str) -> bytes:
        with self._lock:
            self.read.append(key)
        if key not in self.contents:
            raise FileNotFoundError(key)
        return self.contents[key]

    def __getstate__(self) -> dict[str, object]:
        return {"contents": self.contents, "read": []}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def numbered(count: int, shape: tuple[int, int, int] = (1, 2, 2)) -> np.ndarray:
    """``count`` distinct images, uint8: the first two pixels hold the number of each."""
    images = np.zeros((count, *shape), np.uint8)
    flat = images.reshape(count, -1)
    flat[:, 0], flat[:, 1] = np.arange(count) % 256, np.arange(count) // 256
    return images


def numbers(images: np.ndarray) -> list[int]:
    """The numbers of :func:`numbered` images."""
    flat = np.asarray(images).reshape(len(images), SIZE).astype(int)
    return (flat[:, 0] + 256 * flat[:, 1]).tolist()


def in_shards(
    splits: dict[str, tuple[np.ndarray, list[int]]], bins: int = 256, name: str = "numbered"
) -> tuple[Manifest, Files]:
    """A data set of ``splits``: images uint8 ``[N, C, H, W]`` and how many go to each shard."""
    shards, contents = [], {}
    for split, (images, sizes) in splits.items():
        assert sum(sizes) == len(images)
        for number, part in enumerate(np.split(images, np.cumsum(sizes)[:-1])):
            content = encode_shard(part, np.full(len(part), -1, np.int32))
            sha256 = hashlib.sha256(content).hexdigest()
            key = f"{split}-{number:05}-{sha256[:8]}.parquet"
            shards.append(Shard(key=key, split=split, images=len(part), bytes=len(content), sha256=sha256))
            contents[key] = content
    shape = splits["train"][0].shape[1:]
    manifest = Manifest(
        name=name,
        shape=shape,  # type: ignore[arg-type]
        bins=bins,
        counts={split: len(splits[split][0]) for split in SPLITS},
        classes=(),
        hash=content_hash(bins, shape, {split: map(image_digest, splits[split][0]) for split in SPLITS}),  # type: ignore[arg-type]
        shards=tuple(shards),
        source={},
        settings={},
    )
    return manifest, Files(contents)


def train_in_shards(sizes: list[int]) -> tuple[Manifest, Files]:
    """:func:`numbered` training images in shards of ``sizes``; one image in each other split."""
    one = (numbered(1), [1])
    return in_shards({"train": (numbered(sum(sizes)), sizes), "val": one, "test": one})


def sharded(sizes: list[int], **settings: Any) -> tuple[ShardedImages, Files]:
    manifest, files = train_in_shards(sizes)
    return ShardedImages(manifest, "train", files.fetch, **settings), files


def epoch_of(source: ImageSource, epoch: int = 0, seed: int = 0, **settings: Any) -> list[list[int]]:
    """The numbers of each batch."""
    return [numbers(batch) for batch in source.batches(**{"seed": seed, "epoch": epoch, "batch_size": 8, **settings})]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fvae-read-ahead"]


def settle() -> None:
    """Wait until the reading ahead has come to its end."""
    for thread in readers():
        thread.join(10)
    assert not readers()

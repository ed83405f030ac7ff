"""Images streamed from shards through a shuffle buffer, for data sets that do not fit in memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvae.data.images import permutation
from fvae.data.manifest import Manifest, Shard, require_split
from fvae.data.read_ahead import Job, ReadAhead
from fvae.data.shards import Fetch, fetch_shard, load_images
from fvae.workers import Workers, share

BUFFER_BYTES = 256 * 2**20
"""Decoded pixels that are shuffled together; as many again are read ahead meanwhile."""
HELD_BYTES = 64 * 2**20
"""A validation or test split of at most this many bytes is read once and kept."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Shards that are in memory together, and the order in which their images are handed out."""

    shards: tuple[Shard, ...]
    seed: tuple[int, str] | None
    """Seed and purpose of the order; ``None``: as stored."""
    skip: int = 0
    """Images of that order that were handed out before."""

    def __len__(self) -> int:
        return sum(shard.images for shard in self.shards)

    def order(self) -> np.ndarray:
        """Rows to hand out, int64."""
        order = np.arange(len(self)) if self.seed is None else permutation(len(self), *self.seed).numpy()
        return order[self.skip :]


class ShardedImages:
    """An :class:`~fvae.data.images.ImageSource` over one split of a data set in shards. Picklable where ``fetch`` is.

    An epoch's order: the split's shards are permuted by (seed, epoch); windows of whole shards that fit
    ``buffer_bytes`` (at least two shards) are shuffled one by one. Batches run across windows. Of several workers
    each reads every shard and hands out its share of every global batch: reading is many times faster than
    training, and so what a global batch holds does not depend on their number, even where that changes in mid-epoch.

    The next window is fetched, verified and decoded in the background. Errors there are raised again
    where the batches are taken: ``ConfigError`` for a shard that is missing or damaged, and what ``fetch`` raises.
    ``fetch`` is called by several threads at once.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        fetch: Fetch,
        worker: int = 0,
        workers: int = 1,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        require_split(split, manifest.counts)
        self.manifest, self.split, self.fetch = manifest, split, fetch
        self.workers, self.buffer_bytes = Workers(rank=worker, count=workers), buffer_bytes
        self._shards = manifest.of_split(split)
        self._first: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_first": None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        return self.manifest.shape

    def __len__(self) -> int:
        return self.manifest.counts[self.split]

    def for_worker(self, worker: int, workers: int) -> ShardedImages:
        """See :meth:`fvae.data.images.ImageSource.for_worker`."""
        return ShardedImages(self.manifest, self.split, self.fetch, worker, workers, self.buffer_bytes)

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """See :meth:`fvae.data.images.ImageSource.batches`. Windows before batch ``start`` are not read.

        Closing the iterator ends the threads that read ahead.
        """
        windows = (
            window
            for number in range(epoch, epoch + epochs)
            for window in self.windows(seed, number, skip=start * batch_size if number == epoch else 0)
        )
        every = (
            size
            for number in range(epoch, epoch + epochs)
            for size in self._sizes(batch_size, start if number == epoch else 0)
        )
        return self._rebatched(windows, every, self.workers)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """See :meth:`fvae.data.images.ImageSource.in_order`."""
        windows = (Window((shard,), None) for shard in self._shards)
        return self._rebatched(windows, self._sizes(batch_size), Workers())

    def first(self, count: int) -> Tensor:
        """See :meth:`fvae.data.images.ImageSource.first`. Kept, as it is asked for after every epoch."""
        count = min(count, len(self))
        if self._first is None or len(self._first) < count:
            reading = self.in_order(count)
            self._first = next(reading)
            reading.close()  # type: ignore[attr-defined]  # a generator
        return self._first[:count]

    def windows(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Window]:
        """The windows of an epoch, without those that end before image ``skip`` of it."""
        done = 0
        for number, shards in enumerate(self._grouped(seed, epoch)):
            window = Window(shards, (seed, f"window/{epoch}/{number}"), max(0, skip - done))
            if done + len(window) > skip:
                yield window
            done += len(window)

    def _sizes(self, batch_size: int, start: int = 0) -> Iterator[int]:
        """Images of each global batch from batch ``start`` on."""
        return (min(batch_size, len(self) - first) for first in range(start * batch_size, len(self), batch_size))

    def _grouped(self, seed: int, epoch: int) -> Iterator[tuple[Shard, ...]]:
        most = self.buffer_bytes // math.prod(self.shape)
        group: list[Shard] = []
        for index in permutation(len(self._shards), seed, f"shards/{epoch}").tolist():
            shard = self._shards[index]
            if len(group) >= 2 and sum(each.images for each in group) + shard.images > most:
                yield tuple(group)
                group = []
            group.append(shard)
        yield tuple(group)

    def _load(self, window: Window) -> tuple[tuple[np.ndarray, np.ndarray], list[Job]]:
        """Pixels uint8 ``[N, C, H, W]`` yet to be filled, the order of their rows, and the jobs that fill them."""
        pixels = np.empty((len(window), *self.shape), np.uint8)
        jobs: list[Job] = []
        row = 0
        for shard in window.shards:
            out = pixels[row : row + shard.images]
            jobs.append(functools.partial(fetch_shard, self.manifest, shard, self.fetch, out))
            row += shard.images
        return (pixels, window.order()), jobs

    def _rebatched(self, windows: Iterator[Window], sizes: Iterator[int], workers: Workers) -> Iterator[Tensor]:
        """One worker's share of each batch of ``sizes`` images, from the images of ``windows`` in their order."""
        pixels, order = np.empty((0, *self.shape), np.uint8), np.empty(0, np.int64)
        with ReadAhead(self._load, windows) as loaded:
            for size in sizes:
                begin, end = share(size, workers.rank, workers.count)
                parts, passed = [], 0
                while passed < size:
                    if not len(order):
                        del pixels  # before the window after next is begun
                        pixels, order = next(loaded)
                    rows, order = order[: size - passed], order[size - passed :]
                    parts.append(pixels[rows[max(0, begin - passed) : max(0, end - passed)]])
                    passed += len(rows)
                yield torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A :class:`~fvae.data.images.Dataset` whose training images stay where they are. Picklable where ``fetch`` is."""

    manifest: Manifest
    """What the data set holds."""
    fetch: Fetch
    """The bytes of one of its files, by key."""

    @property
    def name(self) -> str:
        """Short name, as in run names and MLflow experiments."""
        return self.manifest.name

    @property
    def bins(self) -> int:
        """Levels L of a pixel."""
        return self.manifest.bins

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        return self.manifest.shape

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return dict(self.manifest.counts)

    def content_hash(self) -> str:
        """The manifest's; every shard that is read is verified by its own checksum."""
        return self.manifest.hash

    def images(self, split: str) -> np.ndarray | ShardedImages:
        """The training split streamed; the others, read after every epoch, in memory up to :data:`HELD_BYTES`."""
        require_split(split, self.manifest.counts)
        if self._held(split):
            return load_images(self.manifest, split, self.fetch)
        return ShardedImages(self.manifest, split, self.fetch)

    def held_bytes(self) -> int:
        """Bytes of the splits that are not streamed."""
        return sum(self._bytes(split) for split in self.manifest.counts if self._held(split))

    def _held(self, split: str) -> bool:
        return split != "train" and self._bytes(split) <= HELD_BYTES

    def _bytes(self, split: str) -> int:
        return self.manifest.counts[split] * math.prod(self.shape)

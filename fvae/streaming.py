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

from fvae.data import permutation, require_worker, steps_per_epoch
from fvae.manifest import Manifest, Shard, require_split
from fvae.read_ahead import Job, ReadAhead
from fvae.shards import Fetch, fetch_shard, load_images

BUFFER_BYTES = 256 * 2**20
"""Decoded pixels that are shuffled together; as many again are read ahead meanwhile."""
HELD_BYTES = 64 * 2**20
"""A validation or test split of at most this many bytes is read once and kept."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Images ``first`` … ``last − 1`` of a shard."""

    shard: Shard
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclasses.dataclass(frozen=True)
class Window:
    """Pieces that are in memory together, and the order in which their images are handed out."""

    pieces: tuple[Piece, ...]
    seed: tuple[int, str] | None
    """Seed and purpose of the order; ``None``: as stored."""
    skip: int = 0
    """Images of that order that were handed out before."""

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def order(self) -> np.ndarray:
        """Rows to hand out, int64."""
        order = np.arange(len(self)) if self.seed is None else permutation(len(self), *self.seed).numpy()
        return order[self.skip :]


class ShardedImages:
    """An :class:`~fvae.data.ImageSource` over one split of a data set in shards. Picklable where ``fetch`` is.

    An epoch's order: the split's shards are permuted by (seed, epoch) and laid end to end; the images so
    lined up are cut into one contiguous range per worker, equal to within one image; in a worker's range,
    windows of whole shards that fit ``buffer_bytes`` (at least two shards) are shuffled one by one. Batches
    run across windows. A shard at the border of two ranges is read by both workers.

    The next window is fetched, verified and decoded in the background. What goes wrong there is raised to
    whoever takes the batches: ``ConfigError`` for a shard that is missing or damaged, and what ``fetch`` raises.
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
        require_worker(worker, workers, manifest.counts[split])
        self.manifest, self.split, self.fetch = manifest, split, fetch
        self.worker, self.workers, self.buffer_bytes = worker, workers, buffer_bytes
        self._shards = manifest.of_split(split)
        self._first: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_first": None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        return self.manifest.shape

    def __len__(self) -> int:
        begin, end = self._range()
        return end - begin

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(self.manifest.counts[self.split], batch_size, self.workers)

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """See :meth:`fvae.data.ImageSource.batches`. Windows before batch ``start`` are not read.

        Closing the iterator ends the threads that read ahead.
        """
        last = self.steps(batch_size) - 1
        sizes = [batch_size] * last + [len(self) - last * batch_size]
        windows = (
            window
            for number in range(epoch, epoch + epochs)
            for window in self.windows(seed, number, skip=start * batch_size if number == epoch else 0)
        )
        every = (
            size for number in range(epoch, epoch + epochs) for size in (sizes[start:] if number == epoch else sizes)
        )
        return self._rebatched(windows, every)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """See :meth:`fvae.data.ImageSource.in_order`."""
        count = self.manifest.counts[self.split]
        windows = (Window((Piece(shard, 0, shard.images),), None) for shard in self._shards)
        sizes = (min(batch_size, count - start) for start in range(0, count, batch_size))
        return self._rebatched(windows, sizes)

    def first(self, count: int) -> Tensor:
        """See :meth:`fvae.data.ImageSource.first`. Kept, as it is asked for after every epoch."""
        count = min(count, self.manifest.counts[self.split])
        if self._first is None or len(self._first) < count:
            reading = self.in_order(count)
            self._first = next(reading)
            reading.close()  # type: ignore[attr-defined]  # a generator
        return self._first[:count]

    def windows(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Window]:
        """This worker's windows of an epoch, without those that end before image ``skip`` of its range."""
        done = 0
        for number, pieces in enumerate(self._grouped(self._pieces(seed, epoch))):
            count = sum(map(len, pieces))
            if done + count > skip:
                purpose = f"window/{epoch}/{self.worker}/{self.workers}/{number}"
                yield Window(pieces, (seed, purpose), max(0, skip - done))
            done += count

    def _range(self) -> tuple[int, int]:
        count = self.manifest.counts[self.split]
        return count * self.worker // self.workers, count * (self.worker + 1) // self.workers

    def _pieces(self, seed: int, epoch: int) -> Iterator[Piece]:
        begin, end = self._range()
        position = 0
        for index in permutation(len(self._shards), seed, f"shards/{epoch}").tolist():
            shard = self._shards[index]
            first, last = max(begin - position, 0), min(end - position, shard.images)
            if first < last:
                yield Piece(shard, first, last)
            position += shard.images

    def _grouped(self, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, ...]]:
        most = self.buffer_bytes // math.prod(self.shape)
        group: list[Piece] = []
        for piece in pieces:
            if len(group) >= 2 and sum(map(len, group)) + len(piece) > most:
                yield tuple(group)
                group = []
            group.append(piece)
        yield tuple(group)

    def _load(self, window: Window) -> tuple[tuple[np.ndarray, np.ndarray], list[Job]]:
        """Pixels uint8 ``[N, C, H, W]`` yet to be filled, the order of their rows, and the jobs that fill them."""
        pixels = np.empty((len(window), *self.shape), np.uint8)
        jobs: list[Job] = []
        row = 0
        for piece in window.pieces:
            jobs.append(functools.partial(self._load_piece, piece, pixels[row : row + len(piece)]))
            row += len(piece)
        return (pixels, window.order()), jobs

    def _load_piece(self, piece: Piece, out: np.ndarray) -> None:
        if len(piece) == piece.shard.images:
            fetch_shard(self.manifest, piece.shard, self.fetch, out)
        else:  # the checksum is the whole file's
            out[...] = fetch_shard(self.manifest, piece.shard, self.fetch)[0][piece.first : piece.last]

    def _rebatched(self, windows: Iterator[Window], sizes: Iterator[int]) -> Iterator[Tensor]:
        """Tensors of ``sizes`` images each, from the images of ``windows`` in their order."""
        pixels, order = np.empty((0, *self.shape), np.uint8), np.empty(0, np.int64)
        with ReadAhead(self._load, windows) as loaded:
            for size in sizes:
                parts = []
                while size:
                    if not len(order):
                        del pixels  # before the window after next is begun
                        pixels, order = next(loaded)
                    parts.append(pixels[order[:size]])
                    order = order[size:]
                    size -= len(parts[-1])
                yield torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A :class:`~fvae.data.Dataset` whose training images stay where they are. Picklable where ``fetch`` is."""

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

"""Images for training and evaluation: data sets and their content hash, sources and their order.

Here what lies in memory; :mod:`fvae.streaming` has the same two interfaces for data sets on disk or S3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fvae.config import require
from fvae.digests import content_hash, image_digest
from fvae.manifest import require_split


@runtime_checkable
class ImageSource(Protocol):
    """One split, as training and evaluation read it. Batches are integer tensors ``[B, C, H, W]``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""

    def __len__(self) -> int:
        """Images that :meth:`batches` gives in an epoch: of several workers, this one's part."""

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch, the same number for every worker: see :func:`steps_per_epoch`."""

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """The batches of ``epochs`` epochs from ``epoch`` on; of the first, those from batch ``start`` on.

        Their order is a pure function of (seed, epoch, worker, workers); none spans two epochs.
        """

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Every image of the split once, whatever the worker, in stored order."""

    def first(self, count: int) -> Tensor:
        """The first ``count`` images in stored order, or all where there are fewer: ``[count, C, H, W]``."""


class Dataset(Protocol):
    """What a search needs of a data set, in memory or streamed."""

    @property
    def name(self) -> str:
        """Short name, as in run names and MLflow experiments."""

    @property
    def bins(self) -> int:
        """Levels L of a pixel."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""

    def counts(self) -> dict[str, int]:
        """Images by split: ``train``, ``val``, ``test``."""

    def held_bytes(self) -> int:
        """Bytes of the arrays that :meth:`images` gives for all splits; known without reading any."""

    def content_hash(self) -> str:
        """:func:`content_hash` of every pixel."""

    def images(self, split: str) -> np.ndarray | ImageSource:
        """One split, picklable: uint8 ``[N, C, H, W]``, or a source that reads it; see :func:`image_source`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """Three splits of one set of images, each uint8 ``[N, C, H, W]`` with levels 0 … bins − 1.

    Raises ``ConfigError`` where the splits do not fit together or one is empty.
    """

    name: str
    """Short name, as in run names and MLflow experiments."""
    bins: int
    """Levels L of a pixel."""
    train: np.ndarray
    """Images that models learn from."""
    val: np.ndarray
    """Images that choose between models."""
    test: np.ndarray
    """Images read once, for models already chosen."""

    def __post_init__(self) -> None:
        for split, images in self.splits().items():
            require(len(images) > 0, f"data set {self.name!r}: the {split} split is empty")
            require(
                images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == self.train.shape[1:],
                f"data set {self.name!r}: {split} is {images.dtype} {images.shape}; needs uint8 [N, C, H, W]",
            )
            require(
                int(images.max()) < self.bins,
                f"data set {self.name!r}: {split} holds level {images.max()}, but bins={self.bins}",
            )

    def splits(self) -> dict[str, np.ndarray]:
        """The splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        channels, height, width = self.train.shape[1:]
        return (channels, height, width)

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return {split: len(images) for split, images in self.splits().items()}

    def held_bytes(self) -> int:
        """Bytes of all images."""
        return sum(images.nbytes for images in self.splits().values())

    def images(self, split: str) -> np.ndarray:
        """The images of one split. Raises ``ConfigError`` for a split that there is not."""
        require_split(split, self.splits())
        return self.splits()[split]

    def content_hash(self) -> str:
        """:func:`content_hash` of every pixel."""
        digests = {split: map(image_digest, images) for split, images in self.splits().items()}
        return content_hash(self.bins, self.shape, digests)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that no two of them ever see the same noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


def permutation(count: int, seed: int, purpose: str) -> Tensor:
    """A random order of ``count`` things, a pure function of (seed, purpose): int64 ``[count]``."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, purpose)))


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in an epoch, a pure function of (seed, epoch): int64 ``[count]``."""
    return permutation(count, seed, f"order/{epoch}")


def steps_per_epoch(count: int, batch_size: int, workers: int) -> int:
    """Batches of each of ``workers`` that share ``count`` images, ``batch_size`` a worker.

    Workers have ⌊count/workers⌋ images or one more. They take equally many batches: all are full but the
    last, where one image too many for another batch makes it ``batch_size + 1``.
    """
    return -(-(count // workers) // batch_size)


def require_worker(worker: int, workers: int, count: int) -> None:
    """Raise ``ConfigError`` unless ``worker`` is one of ``workers`` that ``count`` images are enough for."""
    require(0 <= worker < workers, f"worker={worker}: must be from 0 to workers − 1 = {workers - 1}")
    require(count >= workers, f"workers={workers}: more than the {count} images; use fewer")


class TensorImages:
    """An :class:`ImageSource` over images in memory, integer ``[N, C, H, W]``, on any device.

    Of several workers each takes its slice of every global batch of ``workers · batch_size`` images: what a
    global batch holds does not depend on their number, but that the last one may be joined to the one before
    where it has fewer images than there are workers.
    """

    def __init__(self, images: Tensor, worker: int = 0, workers: int = 1) -> None:
        require(images.ndim == 4, f"images of shape {tuple(images.shape)}: needs [N, C, H, W]")
        require(len(images) > 0, "images: empty")
        require_worker(worker, workers, len(images))
        self.images, self.worker, self.workers = images, worker, workers

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        channels, height, width = self.images.shape[1:]
        return (channels, height, width)

    def __len__(self) -> int:
        # The first workers take what is left over; as tensor_split gives it.
        return (len(self.images) + self.workers - 1 - self.worker) // self.workers

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(len(self.images), batch_size, self.workers)

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """See :meth:`ImageSource.batches`. The order is :func:`epoch_order`."""
        last = self.steps(batch_size) - 1
        for number in range(epoch, epoch + epochs):
            order = epoch_order(len(self.images), seed, number).to(self.images.device)
            for step in range(start, last + 1):
                begin = step * batch_size * self.workers
                end = None if step == last else begin + batch_size * self.workers
                yield self.images[order[begin:end].tensor_split(self.workers)[self.worker]]
            start = 0

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """See :meth:`ImageSource.in_order`."""
        yield from self.images.split(batch_size)

    def first(self, count: int) -> Tensor:
        """See :meth:`ImageSource.first`."""
        return self.images[:count]


def image_source(images: np.ndarray | Tensor | ImageSource) -> ImageSource:
    """What :class:`~fvae.train.Trainer` and :func:`~fvae.evaluation.evaluate` read: arrays and tensors wrapped,
    without a copy; sources as they are.
    """
    if isinstance(images, np.ndarray):
        images = read_only_tensor(images)
    if isinstance(images, Tensor):
        return TensorImages(images)
    if not isinstance(images, ImageSource):
        raise TypeError(f"images are {type(images).__name__}; needs an array, a tensor or an ImageSource")
    return images


def read_only_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's own memory, also where that is shared and read-only: nothing may write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)

"""Images for training and evaluation: data sets and their content hash, sources and their order.

Here what lies in memory; :mod:`fvae.data.streaming` has the same two interfaces for data sets on disk or S3.
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
from fvae.data.manifest import content_hash, image_digest, require_split
from fvae.workers import Workers, share

Array = np.ndarray | Tensor
"""What the library takes where it takes images or latents."""


@runtime_checkable
class ImageSource(Protocol):
    """One split, as training and evaluation read it. Batches are integer tensors ``[B, C, H, W]``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""

    def __len__(self) -> int:
        """Images of the split, whatever the worker."""

    def for_worker(self, worker: int, workers: int) -> ImageSource:
        """The same split for one of ``workers``: its :meth:`batches` are that worker's shares."""

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """This worker's shares (:func:`fvae.workers.share`) of the global batches of ``epochs`` epochs from ``epoch``
        on; of the first epoch, those from batch ``start`` on.

        A global batch has ``batch_size`` images, the last of an epoch what is left. What it holds, and in which
        order, is a pure function of (seed, epoch), whatever the number of workers. A share may be empty.
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


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Global batches in an epoch of ``count`` images: the last may be smaller."""
    return -(-count // batch_size)


class TensorImages:
    """An :class:`ImageSource` over images in memory, integer ``[N, C, H, W]``, on any device.

    The order of an epoch is :func:`epoch_order`.
    """

    def __init__(self, images: Tensor, worker: int = 0, workers: int = 1) -> None:
        require(images.ndim == 4, f"images of shape {tuple(images.shape)}: needs [N, C, H, W]")
        require(len(images) > 0, "images: empty")
        self.images, self.workers = images, Workers(rank=worker, count=workers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        channels, height, width = self.images.shape[1:]
        return (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def for_worker(self, worker: int, workers: int) -> TensorImages:
        """See :meth:`ImageSource.for_worker`: over the same memory."""
        return TensorImages(self.images, worker, workers)

    def batches(self, *, seed: int, epoch: int, batch_size: int, start: int = 0, epochs: int = 1) -> Iterator[Tensor]:
        """See :meth:`ImageSource.batches`."""
        for number in range(epoch, epoch + epochs):
            order = epoch_order(len(self.images), seed, number).to(self.images.device)
            for whole in order.split(batch_size)[start:]:
                begin, end = share(len(whole), self.workers.rank, self.workers.count)
                yield self.images[whole[begin:end]]
            start = 0

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """See :meth:`ImageSource.in_order`."""
        yield from self.images.split(batch_size)

    def first(self, count: int) -> Tensor:
        """See :meth:`ImageSource.first`."""
        return self.images[:count]


def image_source(images: Array | ImageSource) -> ImageSource:
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


def as_tensor(values: Array, name: str) -> Tensor:
    """``values`` as a tensor; ``name`` is what an error calls them. See :func:`read_only_tensor`.

    Raises ``TypeError`` where they are neither an array nor a tensor, ``ValueError`` where no tensor holds their dtype.
    """
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} are {type(values).__name__}; needs a NumPy array or a tensor")
    try:
        return read_only_tensor(values)
    except TypeError:
        raise ValueError(f"{name} of dtype {values.dtype}: needs numbers") from None


def read_only_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's own memory, also where that is shared and read-only: nothing may write to it.

    An array with a negative stride, or in the other byte order, is copied. Raises ``TypeError`` for a dtype that no
    tensor has.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except ValueError:
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))

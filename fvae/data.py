"""Images in memory: splits, their content hash, and the order in which training sees them."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch

from fvae.config import require


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

    def content_hash(self) -> str:
        """SHA-256 (hex, 16 digits) over every pixel, by split; the order of the images is no part of it."""
        total = hashlib.sha256(repr((self.bins, self.shape)).encode())
        for split, images in self.splits().items():
            digests = sorted(hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images)
            total.update(split.encode() + b"".join(digests))
        return total.hexdigest()[:16]


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that no two of them ever see the same noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``count`` images in an epoch, a pure function of (seed, epoch): int64 ``[count]``."""
    generator = torch.Generator().manual_seed(derived_seed(seed, f"order/{epoch}"))
    return torch.randperm(count, generator=generator)

"""Which pixels these are, in a few digits: the hashes of an image and of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np


def image_digest(image: np.ndarray) -> bytes:
    """SHA-256 of the pixels of one image, uint8 ``[C, H, W]``: 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def content_hash(bins: int, shape: tuple[int, int, int], digests: Mapping[str, Iterable[bytes]]) -> str:
    """SHA-256 (hex, 16 digits) over every pixel, by split; the order of the images is no part of it.

    ``digests`` has each split's :func:`image_digest` s, the splits in the order train, val, test.
    """
    total = hashlib.sha256(repr((bins, tuple(shape))).encode())
    for split, of_images in digests.items():
        total.update(split.encode() + b"".join(sorted(of_images)))
    return total.hexdigest()[:16]

"""Reducing an image so that each new pixel is the mean of the area that it covers."""

from __future__ import annotations

import functools

import numpy as np


def area_average(square: np.ndarray, size: int) -> np.ndarray:
    """uint8 ``[S, S]`` or ``[S, S, C]`` to ``[size, size]`` or ``[size, size, C]``, size < S: each pixel is the exact,
    rounded mean of the area that it covers. Pillow's BOX takes border pixels whole or not at all.

    Whole numbers throughout: in units of 1/size of a source pixel, an output pixel is S of them wide.
    """
    side = len(square)
    if side <= 256:  # 255 · 256² is still exact in float32
        overlaps = _overlaps(side, size)
        strips = (overlaps @ square.reshape(side, -1)).reshape(size, side, -1)
        sums = (overlaps @ strips).astype(np.int64).reshape(size, size, *square.shape[2:])
    else:
        sums = _strip_sums(_strip_sums(square, size, np.int32).swapaxes(0, 1), size, np.int64).swapaxes(0, 1)
    return ((2 * sums + side * side) // (2 * side * side)).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _overlaps(side: int, size: int) -> np.ndarray:
    """float32 ``[size, side]``: how much of each source pixel lies in each output pixel, in units of 1/size."""
    unit = np.arange(side * size)
    overlaps = np.zeros((size, side), np.float32)
    np.add.at(overlaps, (unit // side, unit // size), 1)
    return overlaps


def _strip_sums(values: np.ndarray, size: int, dtype: type) -> np.ndarray:
    """Sums over ``size`` strips of the first axis, whose borders may cut through a row, in units of 1/size."""
    first, cut = np.divmod(np.arange(size) * len(values), size)
    cut = cut.astype(dtype).reshape(-1, *(1,) * (values.ndim - 1))
    before = cut * values[first]  # what of a strip's first row belongs to the strip before
    last = [*first[1:], len(values)]
    # strip by strip: np.add.reduceat takes twenty times as long for a photograph
    sums = np.stack([values[i:j].sum(axis=0, dtype=dtype) for i, j in zip(first, last, strict=True)])
    sums = sums * dtype(size) - before
    sums[:-1] += before[1:]
    return sums

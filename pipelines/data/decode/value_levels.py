"""Mapping the values in files to the levels of a data set: the range that is asked for, and the one that is found.

Only numpy is imported: every decoding process loads this file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipelines.data.decode.headers import BadImage

TOP = 255
"""White, while an image is worked on."""
WIDE_TOP = 65535
"""White of 16 bits."""
NARROW = 8
"""A range of values that uses less than this part of its container's levels is asked about."""
_ROUNDED = ((np.arange(1 << 16, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint16 values / 257, rounded, as uint8 of the same shape. 8-bit values that were widened come back exactly."""
    return _ROUNDED[values]


class Stored(NamedTuple):
    """The values of one image as its file holds them, where these are no 8-bit ones or a range is asked for."""

    top: int
    """The value that is white as the file has it, such as 65,535; 0 for types that say nothing about white."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What ``--value-range`` and ``--bins`` ask for.

    ``low`` becomes black and ``high`` white, on ``bins`` levels. Without a range the values are the levels 0 … bins − 1
    themselves; without either, an image is 8-bit as its container says.
    """

    low: float | None = None
    high: float | None = None
    bins: int | None = None

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self.bins is not None or self.low is not None

    @property
    def span(self) -> tuple[float, float]:
        """The values of black and white, where anything is asked for."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return 0, (self.bins or TOP + 1) - 1

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of any numeric type, within the range, as uint8 0 … 255 of the same shape, rounded.

        Raises ``BadImage`` where a value lies outside the range.
        """
        low, high = self.span
        least, most = values.min(), values.max()
        if not (low <= least and most <= high):
            outside = most if low <= least else least
            asked = f"{exact(low)} … {exact(high)}"
            raise BadImage(f"holds {exact(outside)}, which lies outside of the values {asked} asked for")
        if values.dtype in (np.uint8, np.uint16):
            return _table(low, high, np.iinfo(values.dtype).max)[values]
        return _rounded((values.astype(np.float64) - low) * (TOP / (high - low)))

    def reduce(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 0 … 255 on the levels 0 … bins − 1, rounded; what :meth:`spread` made of such levels comes back."""
        if self.bins in (None, TOP + 1):
            return pixels
        return _reduced(self.bins)[pixels]


def exact(value: float | np.number) -> str:
    """A number without rounding: whole ones have no point, others the digits that their type needs."""
    return str(int(value)) if value == np.floor(value) else str(value)


@functools.lru_cache(4)
def _table(low: float, high: float, most: int) -> np.ndarray:
    """uint8 for each value from 0 to ``most``."""
    return _rounded((np.arange(most + 1) - low) * (TOP / (high - low)))


@functools.lru_cache(4)
def _reduced(bins: int) -> np.ndarray:
    return _rounded(np.arange(TOP + 1) * ((bins - 1) / TOP))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, TOP).astype(np.uint8)


@dataclass(slots=True)
class Seen:
    """The values that were found in some images."""

    low: int = TOP + 1
    """Least level of a decoded pixel; more than the highest where there is none."""
    high: int = -1
    distinct: frozenset[int] | None = frozenset()
    """The levels, as long as they are two at most; else None."""
    stored: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Least and highest value in the files by ``top`` of :class:`Stored`."""
    plain: bool = False
    """Whether there are images of 8 bits whose values are taken as they are."""

    def add(self, stored: Sequence[Stored]) -> None:
        """What is stored of one image."""
        self.plain = self.plain or not stored
        for top, *held in stored:
            low, high = self.stored.get(top, held)
            self.stored[top] = min(low, held[0]), max(high, held[1])

    def add_pixels(self, images: np.ndarray | Sequence[np.ndarray]) -> None:
        """Decoded images: uint8 ``[N, C, H, W]``, or N arrays."""
        for part in (images,) if isinstance(images, np.ndarray) else images:
            if part.size:
                low, high = int(part.min()), int(part.max())
                self.low, self.high = min(self.low, low), max(self.high, high)
                if self.distinct is not None:
                    self.distinct = _two_at_most(self.distinct | {low, high}, part)

    def merge(self, other: Seen) -> None:
        """What was found in other images."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        together = None if self.distinct is None or other.distinct is None else self.distinct | other.distinct
        self.distinct = together if together is not None and len(together) <= 2 else None
        self.plain = self.plain or other.plain
        if other.stored:
            self.add([Stored(top, *held) for top, held in other.stored.items()])


def _two_at_most(levels: frozenset[int], pixels: np.ndarray) -> frozenset[int] | None:
    """``levels`` where they are two at most and no pixel has another one; else None."""
    if len(levels) > 2:
        return None
    start = pixels.reshape(-1)[:4096]  # most images say no in a moment
    for part in (start, pixels):
        if not _all_in(part, levels):
            return None
    return levels


def _all_in(pixels: np.ndarray, levels: Iterable[int]) -> bool:
    one, *other = levels
    fits = pixels == one
    for level in other:
        fits |= pixels == level
    return bool(fits.all())

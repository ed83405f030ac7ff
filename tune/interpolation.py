"""Reading a Pareto front between its points: the size that a level needs, the bits that a size reaches.

Never beyond what was tried. Where a front does not hold the answer it still bounds it, and those
bounds are what is returned: dropping such cases would make every interval too narrow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tune.bootstrap import Floats, Front

LEVEL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where comparison levels lie in a shared range: off its ends, which one single trial sets."""
MIN_BPD_RANGE = 1e-3
"""Bits/dim. Two fronts that share less share one level."""


class Bounds(NamedTuple):
    """Values between ``low`` and ``high``, equal where known exactly; −∞ and ∞ where open."""

    low: Floats
    high: Floats

    def minus(self, other: Bounds) -> Bounds:
        """Bounds of the difference."""
        return Bounds(self.low - other.high, self.high - other.low)

    def median(self) -> Bounds:
        """Bounds of the median over the last axis."""
        return Bounds(np.median(self.low, axis=-1), np.median(self.high, axis=-1))


def log_size_at(front: Front, levels: Floats) -> Bounds:
    """Natural logarithm of the parameters that reach each of ``levels`` ``[K]`` bits/dim.

    Linear in bits/dim between front points. Open above (from the largest front model on) where no
    model reaches the level, open below (up to the smallest) where every model does better.
    """
    log_size = np.interp(levels, front.bpd[::-1], np.log(front.params[::-1]))
    missed, surpassed = levels < front.bpd[-1], levels > front.bpd[0]
    return Bounds(np.where(surpassed, -np.inf, log_size), np.where(missed, np.inf, log_size))


def bits_at(front: Front, sizes: Floats) -> Bounds:
    """Bits/dim within each of ``sizes`` ``[K]`` parameters, linear in log size between front points.

    Beyond the largest front model its own bits/dim, as a larger budget can hold it too. Open above
    for sizes under the smallest.
    """
    bits = np.interp(np.log(sizes), np.log(front.params), front.bpd)
    return Bounds(bits, np.where(sizes < front.params[0], np.inf, bits))


def shared_levels(one: Front, other: Front) -> tuple[Floats, int]:
    """Levels in bits/dim that both fronts cross, descending, and the decimals that tell them apart.

    No level where one front lies below the other.
    """
    low, high = max(one.bpd[-1], other.bpd[-1]), min(one.bpd[0], other.bpd[0])
    if low > high:
        return np.empty(0), 0
    if high - low < MIN_BPD_RANGE:
        return np.array([(low + high) / 2]), 4
    # Round numbers to read; the rounding is smaller than the distance to the range's ends.
    decimals = max(2, int(np.ceil(-np.log10((high - low) * LEVEL_SHARES[0]))))
    return (high - (high - low) * np.array(LEVEL_SHARES)).round(decimals), decimals


def shared_sizes(one: Floats, other: Floats) -> Floats:
    """Sizes within the tried sizes ``[N]`` of both families, ascending; none where these do not overlap."""
    low, high = max(one.min(), other.min()), min(one.max(), other.max())
    if low > high:
        return np.empty(0)
    if low == high:
        return np.array([low])
    return (low * (high / low) ** np.array(LEVEL_SHARES)).round()

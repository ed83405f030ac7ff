"""Bits/dim levels at which two fronts are compared."""

from __future__ import annotations

import numpy as np

from tune.statistics.bootstrap import Floats, Front

LEVEL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where comparison levels lie in a shared range: off its ends, which one single trial sets."""
MIN_BPD_RANGE = 1e-3
"""Bits/dim. Two fronts that share less share one level."""


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

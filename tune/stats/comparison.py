"""Two families' frontiers compared: bits/dim at equal size, sizes at equal bits/dim, and which is better where.

Both frontiers are samples (:mod:`tune.stats.frontiers`), of which none rises with the size: a limit of N
parameters also admits fewer. Bands are pointwise 95% intervals. Ranges of sizes are decided
by a simultaneous band instead, which holds the difference at all sizes in 95% of the samples, made wider by half: the
chance errors of a search are partly common to all of a family's trials. So a difference that is found is seldom wrong,
however many sizes are looked at (``benchmarks/search/calibration.py``).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tune.stats.frontiers import Paths
from tune.stats.pareto import Floats, Front

Answer = Literal["fewer", "more", "same", "undecided"]
"""Whether one family needs fewer parameters than the other, more, the same within :data:`SAME`."""
SAME = 1.1
"""Sizes that differ by at most this factor are the same."""
LEVEL = 0.95
WIDER = 1.5
"""Factor on the band by which ranges are decided; chosen on replayed searches of the digits."""
ENDS = 0.1
"""Share of the shared range of sizes, on a log scale, that is left out at each end: a single trial sets it."""
LEVEL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Positions of the comparison levels in a shared range: off its ends, each of which one trial sets."""
MIN_BPD_RANGE = 1e-3
"""Bits/dim. Two fronts that share less share one level."""


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """Medians and 95% intervals ``[M]``."""

    median: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, samples: Floats) -> Band:
        """Pointwise, of samples ``[S, M]``."""
        low, median, high = np.quantile(samples, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
        return cls(median, low, high)

    def json(self) -> dict[str, list[float]]:
        """``median``, ``low`` and ``high`` as lists."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}


def simultaneous(samples: Floats) -> tuple[Floats, Floats]:
    """Low and high ends ``[M]`` of a band of constant width in standard deviations: ``WIDER`` times the one that holds
    95% of the samples ``[S, M]`` at all sizes."""
    center, spread = np.median(samples, axis=0), np.maximum(samples.std(axis=0), 1e-9)
    furthest = np.abs((samples - center) / spread).max(axis=1)
    reach = WIDER * float(np.quantile(furthest, LEVEL)) * spread
    return center - reach, center + reach


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """One family less another, over the sizes that both have."""

    log_size: Floats
    """log10 ``[M]``."""
    difference: Floats
    """Bits/dim at equal size ``[S, M]``: negative where the first family is better."""
    log_ratio: Floats
    """log10 of the first family's size over the other's, which has ``log_size``, at equal bits/dim ``[S, M]``."""
    outside: NDArray[np.int8]
    """Whether that ratio is only bounded by the first family's smallest (−1) or largest (1) model ``[S, M]``, or is
    not (0)."""

    @classmethod
    def of(cls, one: Paths, other: Paths, points: int = 25) -> Comparison | None:
        """None where the two share no range of sizes."""
        low, high = max(one.log_size[0], other.log_size[0]), min(one.log_size[-1], other.log_size[-1])
        if low >= high:
            return None
        margin = ENDS * (high - low)
        log_size = np.linspace(low + margin, high - margin, points)
        levels = other.at(log_size)
        sizes, outside = one.size_for(levels)
        return cls(log_size, one.at(log_size) - levels, sizes - log_size, outside)

    def ratio_band(self) -> tuple[Floats, Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]:
        """Median, low and high ends of the ratio ``[M]``, and which of both ends are open: they are then the bound."""
        band, tail = Band.of(self.log_ratio), (1 - LEVEL) / 2
        open_low, open_high = (self.outside == -1).mean(axis=0) > tail, (self.outside == 1).mean(axis=0) > tail
        return 10**band.median, 10**band.low, 10**band.high, open_low, open_high

    def answers(self) -> list[Answer]:
        """The answer at each size, by a simultaneous band."""
        low, high = simultaneous(self.difference)
        ratio_low, ratio_high = simultaneous(np.where(self.outside == 0, self.log_ratio, np.sign(self.outside) * 3.0))
        same = (ratio_low >= -np.log10(SAME)) & (ratio_high <= np.log10(SAME))
        return [
            "same" if alike else "fewer" if below < 0 else "more" if above > 0 else "undecided"
            for alike, below, above in zip(same, high, low, strict=True)
        ]

    def ranges(self) -> list[dict[str, Any]]:
        """Neighbouring sizes with one answer: ``from``, ``to`` in parameters, and ``answer``."""
        found: list[dict[str, Any]] = []
        edges = np.concatenate([self.log_size[:1], (self.log_size[1:] + self.log_size[:-1]) / 2, self.log_size[-1:]])
        for place, answer in enumerate(self.answers()):
            if not found or found[-1]["answer"] != answer:
                found.append({"from": float(10 ** edges[place]), "to": 0.0, "answer": answer})
            found[-1]["to"] = float(10 ** edges[place + 1])
        return found


def shared_levels(one: Front, other: Front) -> tuple[Floats, int]:
    """Levels in bits/dim that both fronts cross, descending, and the decimals that distinguish them.

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

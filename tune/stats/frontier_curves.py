"""Curves a + b·N^−α through the trials of each family, fitted by robust least squares, and a trial's typical excess.

The first step of :mod:`tune.stats.stochastic_frontier`, which has the model's formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tune.stats.pareto import Floats

SAFETY = 3.0
"""Factor on the typical excess, by which trials' distances from their curve are taken for larger than they are."""
LEAST_EXCESS = 0.02
"""Bits/dim. The typical excess is at least this."""
EXCESS_TRIALS = 3
"""Weight of all curves' typical excess for each curve, in trials of its own."""
ALPHA, ALPHA_WEIGHT = 0.4, 0.15
"""Prior mean of the α, and the bits/dim that a factor of e in all or in one of them counts for."""
EXPONENTS = (0.1, 0.5, 1.0)
"""α from which the fit begins."""
ROBUST_SCALE = 0.05
"""Bits/dim by which a trial may miss its curve before it has less weight."""


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Positions of trials, or positions at which frontiers are evaluated; arrays ``[N]``."""

    log_size: Floats
    """log10 of the parameters, or of another cost."""
    curve: NDArray[np.int64]
    """A number for each family, or for each of its likelihoods."""
    share: Floats | float = 0.0
    """Share of the parameters in E and G, along which a curve bends as well; a number: the same everywhere."""

    def __len__(self) -> int:
        return len(self.log_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """a + b·N^−α for every curve."""

    a: Floats
    """Asymptote of each curve, bits/dim ``[F]``, as the others are."""
    b: Floats
    """b·N^−α at the middle of all sizes."""
    alpha: Floats
    excess: Floats
    """Typical distance of a trial from its curve at the middle of all sizes, bits/dim."""
    middle: float
    """log10 of that size."""
    names: NDArray[np.int64]
    """The curves' numbers, ascending ``[F]``."""

    def at(self, points: Points) -> Floats:
        """Bits/dim at each point ``[N]``."""
        own = np.searchsorted(self.names, points.curve)
        return np.asarray(self.a[own] + self.b[own] * 10 ** (-self.alpha[own] * (points.log_size - self.middle)))

    def typical(self, points: Points, most: float = math.inf) -> Floats:
        """Typical excess at each point ``[N]``, of each curve at most ``most`` at the middle size: small models, whose
        curve is steep, lie further apart."""
        own = np.searchsorted(self.names, points.curve)
        return np.minimum(self.excess, most)[own] * _steepness(self.alpha[own], points.log_size - self.middle)


def fit_curves(trials: Points, bits: Floats, safety: float = SAFETY) -> Curves:
    """Robust least squares through complete trials, ``a`` and ``b`` at least 0, and how far these lie from it, times
    ``safety``."""
    names, index = np.unique(trials.curve, return_inverse=True)
    count, middle = len(names), float(trials.log_size.mean())
    sizes = trials.log_size - middle

    def residuals(theta: Floats) -> Floats:
        a, b, alpha = np.split(theta, 3)
        common = np.log(alpha).mean()
        prior = ALPHA_WEIGHT * np.append(np.log(alpha) - common, common - math.log(ALPHA))
        return np.append(a[index] + b[index] * 10 ** (-alpha[index] * sizes) - bits, prior)

    lowest = [max(0.0, float(bits[index == place].min()) - 0.2) for place in range(count)]
    bounds = [0.0] * 2 * count + [0.01] * count, [np.inf] * 2 * count + [4.0] * count
    starts = ([*lowest, *[0.2] * count, *[alpha] * count] for alpha in EXPONENTS)
    fits = [least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=ROBUST_SCALE) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost)).x
    a, b, alpha = np.split(best, 3)
    away = np.abs(residuals(best)[: len(bits)]) / _steepness(alpha[index], sizes)
    away *= len(away) / max(1, len(away) - 2 * count)  # curves bend towards their trials: each has used up two
    excess = safety * _typical_excess([away[index == place] for place in range(count)])
    return Curves(a, b, alpha, excess, middle, names)


def _typical_excess(away: Sequence[Floats]) -> Floats:
    """Mean excess of each curve's trials from how far they lie from the curve, each curve's with that of all."""
    # A few that failed to learn are not typical.
    capped = [np.minimum(each, 5 * np.median(each) / math.log(2)) for each in away]
    counts = np.array([len(each) for each in capped])
    means = np.maximum([each.mean() for each in capped], LEAST_EXCESS)
    of_all = math.exp(counts @ np.log(means) / counts.sum())
    # An exponential distribution of mean θ has its median, and its mean distance from it, at θ·log 2.
    return np.asarray((counts * means + EXCESS_TRIALS * of_all) / (counts + EXCESS_TRIALS) / math.log(2))


def _steepness(alpha: Floats, log_size: Floats) -> Floats:
    """How steep a curve is, over how steep it is at the middle of all sizes; nowhere less than a quarter of it."""
    return np.asarray(np.maximum(10 ** (-alpha * log_size), 0.25))

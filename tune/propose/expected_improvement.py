"""Expected hypervolume improvement: by how much a model of known size should enlarge the area that a front dominates.

General searches do not know one of their objectives exactly. Where the size is known, the expected hypervolume
improvement over (size, bits/dim) is a sum of one-dimensional expectations: over each stretch of sizes between two
neighbours of the front, its width times the expected improvement on the bits/dim that the front has there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import ndtr

from tune.stats.pareto import Floats, Point, pareto_front

BEYOND = 2.0
"""How many times the largest size a front's area counts up to, or the largest model would add nothing."""


class Staircase:
    """A front of (log10 parameters, bits/dim) below a reference point: the lowest bits/dim within each size."""

    def __init__(
        self, points: Iterable[Point], reference: Point, counted: Sequence[tuple[float, float]] | None = None
    ) -> None:
        """``points`` need not be a front; those beyond the reference dominate nothing. ``counted``: the stretches of
        log sizes in which an improvement counts; None: all up to the reference."""
        self.reference, self.counted = reference, counted
        inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
        front = [inside[index] for index in pareto_front(inside)]
        # Step i has height heights[i] from starts[i] to starts[i + 1].
        self._starts = np.array([-np.inf, *(size for size, _ in front), reference[0]])
        self._heights = np.array([reference[1], *(bits for _, bits in front)])

    @classmethod
    def of_sizes(
        cls,
        points: Iterable[Point],
        largest: float,
        worst: float,
        *,
        by_size: bool = True,
        counted: Sequence[tuple[float, float]] | None = None,
    ) -> Staircase:
        """The front of ``points`` (size, bits/dim) below ``BEYOND`` times the ``largest`` size and ``worst`` bits/dim.

        Without ``by_size`` the front is the lowest bits/dim alone.
        """
        reference = (float(log_size(largest, by_size)) + math.log10(BEYOND), worst)
        return cls([(float(log_size(size, by_size)), bits) for size, bits in points], reference, counted)

    def area(self, mean: float) -> float:
        """Area between the front and the highest bits/dim on it or of one more model, in decades × bits/dim.

        It does not depend on the reference's bits/dim, which lies far above every model where pixels have many levels.
        """
        sizes, heights = self._starts[1:], self._heights[1:]  # the first step has the reference's height
        return float((np.diff(sizes) * (heights.max(initial=mean) - heights)).sum())

    def height(self, log_size: Floats | float) -> Floats:
        """Lowest bits/dim within a size; the reference's where the front has nothing so small."""
        return self._heights[np.searchsorted(self._starts[:-1], log_size, side="right") - 1]

    def expected_improvement(self, log_size: Floats, mean: Floats, spread: Floats) -> Floats:
        """Expected growth of the dominated area, in decades × bits/dim, by each one of K models, ``[K]``.

        Their bits/dim at the end are normal with ``mean`` and ``spread``; all arrays ``[K]``.
        """
        spread = np.maximum(spread, 1e-9)
        below = self._heights[:, None] - mean  # [steps, K]
        deviations = below / spread
        density = np.exp(-0.5 * deviations**2) / np.sqrt(2 * np.pi)
        gained = below * ndtr(deviations) + spread * density
        begins = np.maximum(log_size, self._starts[:-1, None])  # of what is gained, [steps, K]
        ends = np.maximum(self._starts[1:, None], begins)
        if self.counted is None:
            return ((ends - begins) * gained).sum(axis=0)
        widths = sum(np.clip(ends, low, high) - np.clip(begins, low, high) for low, high in self.counted)
        return np.asarray((widths * gained).sum(axis=0))

    def probability_below(self, log_size: Floats, mean: Floats, spread: Floats) -> Floats:
        """Probability that each of K models reaches less than the front has at its size; all arrays ``[K]``."""
        return ndtr((self.height(log_size) - mean) / np.maximum(spread, 1e-9))


def log_size(size: float | Sequence[float], by_size: bool = True) -> Floats:
    """log10 of one size or of several; 0 where sizes do not count."""
    return np.log10(size) * by_size

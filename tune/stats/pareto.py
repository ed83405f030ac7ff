"""Pareto fronts of parameters against bits/dim, their hypervolume, and the fronts of resampled trials (bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvae.config import FAMILIES
from tune.records.ledger import TrialRecord

Point = tuple[float, float]
Floats = NDArray[np.float64]


class Front(NamedTuple):
    """A Pareto front as arrays ``[F]``: ``params`` ascending, ``bpd`` strictly descending."""

    params: Floats
    bpd: Floats


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, both coordinates minimised.

    Ascending in the first coordinate, hence strictly descending in the second. Of identical points
    the first is kept. Raises ``ValueError`` for a coordinate that is not finite: NaN compares with
    nothing, so it would stay on the front unseen.
    """
    if not all(math.isfinite(coordinate) for point in points for coordinate in point):
        raise ValueError("a Pareto front needs finite points")
    front: list[int] = []
    lowest = math.inf
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < lowest:
            lowest = points[index][1]
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area of the plane that ``points`` dominate, up to ``reference``; both coordinates minimised. Exact.

    Points that are not below the reference in both coordinates add nothing. Raises ``ValueError``
    as :func:`pareto_front` does.
    """
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, ceiling = 0.0, reference[1]
    for index in pareto_front(inside):
        x, y = inside[index]
        area += (reference[0] - x) * (ceiling - y)
        ceiling = y
    return area


def complete_trials(records: Sequence[TrialRecord], family: str | None = None) -> list[TrialRecord]:
    """Fully trained trials, the only ones that fronts, fits and the claim may rest on. Further seeds of one are left
    out: models that happen to be trained more often would have more chances to look good."""
    return [
        record
        for record in records
        if record.status == "complete"
        and record.val_bpd is not None
        and record.replicate_of is None
        and family in (None, record.family)
    ]


def size_and_bits(records: Sequence[TrialRecord]) -> list[Point]:
    """``(parameters, validation bits/dim)`` of complete trials."""
    return [(float(record.params), float(record.val_bpd)) for record in records if record.val_bpd is not None]


def front_trials(records: Sequence[TrialRecord], family: str | None = None) -> list[TrialRecord]:
    """A family's front (of all families together: None), by ascending parameters."""
    trials = complete_trials(records, family)
    return [trials[index] for index in pareto_front(size_and_bits(trials))]


def fronts(records: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """Trial ids on each family's front and on the front of ``all``, by ascending parameters.

    Complete trials only, on (parameters, validation bits/dim).
    """
    return {
        name: [trial.id for trial in front_trials(records, None if name == "all" else name)]
        for name in ("all", *FAMILIES)
    }


def front_of(params: Floats, bpd: Floats) -> Front:
    """The front of trials with ``params`` and ``bpd``, both ``[N]``."""
    return _fronts_of_subsets(params, bpd, np.ones((1, len(params)), dtype=bool))[0]


def resampled_fronts(params: Floats, bpd: Floats, replicates: int, rng: np.random.Generator) -> list[Front]:
    """Fronts of ``replicates`` resamples of the trials, each N draws with replacement out of N.

    A trial drawn twice changes no front, so only whether it was drawn matters.
    """
    drawn = np.zeros((replicates, len(params)), dtype=bool)
    np.put_along_axis(drawn, rng.integers(len(params), size=drawn.shape), True, axis=1)
    return _fronts_of_subsets(params, bpd, drawn)


def _fronts_of_subsets(params: Floats, bpd: Floats, members: NDArray[np.bool_]) -> list[Front]:
    """One front for each row of ``members`` ``[R, N]``, by a running minimum over ascending parameters."""
    order = np.lexsort((bpd, params))
    params, bpd = params[order], bpd[order]
    values = np.where(members[:, order], bpd, np.inf)
    lowest_before = np.full_like(values, np.inf)
    lowest_before[:, 1:] = np.minimum.accumulate(values, axis=1)[:, :-1]
    return [Front(params[on_front], bpd[on_front]) for on_front in values < lowest_before]


def interval95(low: Floats, high: Floats | None = None) -> tuple[float, float]:
    """Percentile interval (2.5 %, 97.5 %) of bootstrap values that may be infinite.

    Values known only to lie between two bounds are given as ``low`` and ``high``: the interval then
    covers whatever they are. Order statistics, outwards: interpolating towards ∞ would give NaN.
    """
    high = low if high is None else high
    lower = np.quantile(low, 0.025, method="lower")
    upper = np.quantile(high, 0.975, method="higher")
    return float(lower), float(upper)

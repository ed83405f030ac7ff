"""Fronts of resampled trials: how much of a front is luck in which trials were run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Front(NamedTuple):
    """A Pareto front as arrays ``[F]``: ``params`` ascending, ``bpd`` strictly descending."""

    params: Floats
    bpd: Floats


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

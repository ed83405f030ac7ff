"""Frontiers of a search's families: samples of the fewest bits/dim that each family can reach at each size.

Every trial counts: a part-trained one by its forecast (:mod:`tune.stats.forecasts`). The model is in
:mod:`tune.stats.stochastic_frontier`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from tune.records.ledger import TrialRecord
from tune.stats.forecasts import Forecasts
from tune.stats.frontier_curves import Points
from tune.stats.pareto import Floats
from tune.stats.stochastic_frontier import SWEEPS, sample_frontiers, seed_spread_of

MIN_TRIALS = 3
"""Complete trials that a family needs for a verdict."""
GRID = 40
"""Sizes at which each frontier is sampled."""
LEAST_VARIANCE = 1e-12
"""(Bits/dim)² of a frontier at one size, below which it is known."""

Cost = Callable[[TrialRecord], float]


def parameters(record: TrialRecord) -> float:
    """Trained parameters."""
    return float(record.params)


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Samples of one frontier over its own sizes."""

    log_size: Floats
    """log10, ascending ``[K]``: from the family's smallest complete trial to its largest."""
    bits: Floats
    """Bits/dim ``[S, K]``, not rising."""

    @classmethod
    def of(cls, log_size: Floats, samples: Floats) -> Paths:
        """Project samples that may rise with the size (Lin and Dunson 2014): on each one's nearest that does not, with
        a weight of each size that is inverse to its variance."""
        weights = 1 / np.maximum(samples.var(axis=0), LEAST_VARIANCE)
        bits = [isotonic_regression(each, weights=weights, increasing=False).x for each in samples]
        return cls(log_size, np.array(bits))

    def at(self, log_size: Floats) -> Floats:
        """Bits/dim at sizes within the family's own ``[S, M]``."""
        return np.array([np.interp(log_size, self.log_size, path) for path in self.bits])

    def size_for(self, bits: Floats) -> tuple[Floats, NDArray[np.int8]]:
        """log10 of the sizes that reach ``bits`` ``[S, M]``, and whether each lies within the family's: −1 where its
        smallest model does better already, 1 where its largest does not, else 0; both ``[S, M]``."""
        sizes = np.empty_like(bits)
        for sample, (path, wanted) in enumerate(zip(self.bits, bits, strict=True)):
            falling = path - 1e-9 * np.arange(len(path))  # np.interp wants no two alike
            sizes[sample] = np.interp(-wanted, -falling, self.log_size)
        outside = np.where(bits > self.bits[:, :1], -1, np.where(bits < self.bits[:, -1:], 1, 0))
        return sizes, outside.astype(np.int8)


def frontiers(
    records: Sequence[TrialRecord], forecasts: Forecasts, cost: Cost, seed: int, *, sweeps: int = SWEEPS
) -> dict[str, Paths]:
    """Samples of the frontier of each family, and of each likelihood of it (``fvae/gaussian``), by what they cost."""
    forecasts.learn(records)
    known = []
    for record in records:
        if record.replicate_of is None and record.status != "failed" and record.history:
            forecast = forecasts.of(record)
            if forecast is not None:
                known.append((record, forecast))
    complete = {curve_of(record) for record, _ in known if record.status == "complete"}
    known = [each for each in known if curve_of(each[0]) in complete]
    names = sorted(complete)
    number = {name: place for place, name in enumerate(names)}
    curve = np.array([number[curve_of(record)] for record, _ in known])
    log_size = np.log10([cost(record) for record, _ in known])
    bits, spreads = np.array([forecast for _, forecast in known]).T
    grids = []
    for name in names:
        own = log_size[(curve == number[name]) & (spreads == 0)]
        grids.append(np.linspace(own.min(), own.max(), GRID))
    where = Points(np.concatenate(grids), np.repeat(np.arange(len(names)), GRID))
    samples = sample_frontiers(
        Points(log_size, curve), bits, spreads, where, seed_spread=seed_spread(records), seed=seed, sweeps=sweeps
    )
    parts = np.split(samples, len(names), axis=1)
    paths = {name: Paths.of(grid, part) for name, grid, part in zip(names, grids, parts, strict=True)}
    families = {_family(name) for name in names}
    return paths | {family: _best_of([paths[name] for name in names if _family(name) == family]) for family in families}


def likelihood_of(record: TrialRecord) -> str:
    """The likelihood of a VAE's or f-VAE's trial; earlier versions had the Gaussian one alone."""
    return str(record.config.get("likelihood", "gaussian"))


def curve_of(record: TrialRecord) -> str:
    """The curve that a trial belongs to: its family, of VAE and f-VAE with the likelihood."""
    return record.family if record.family == "flow" else f"{record.family}/{likelihood_of(record)}"


def _family(name: str) -> str:
    return name.split("/")[0]


def _best_of(several: Sequence[Paths]) -> Paths:
    """The lowest of a family's likelihoods at each size, over the sizes of the best of them: where that was not tried,
    the family has not shown what it can."""
    best = min(several, key=lambda each: float(np.median(each.bits[:, -1])))
    bits = [np.where(best.log_size >= each.log_size[0], each.at(best.log_size), np.inf) for each in several]
    return Paths(best.log_size, np.min(bits, axis=0))


def seed_spread(records: Sequence[TrialRecord]) -> float:
    """Standard deviation of the bits/dim over seeds, from the models that were trained with several."""
    groups: dict[str, list[float]] = {}
    for record in records:
        if record.status == "complete" and record.val_bpd is not None:
            groups.setdefault(record.replicate_of or record.id, []).append(record.val_bpd)
    return seed_spread_of(list(groups.values()))

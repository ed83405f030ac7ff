"""Sizes at which the verdict is still undecided while a search runs: ``--goal decide`` trains there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tune.records.ledger import TrialRecord
from tune.stats.comparison import Comparison
from tune.stats.forecasts import Forecasts
from tune.stats.frontiers import MIN_TRIALS, frontiers, parameters
from tune.stats.pareto import complete_trials

COMPARED = ("fvae", "flow")
SWEEPS = 400
"""Sweeps of the sampler: half of them are kept, enough to see where the answer is open."""


class UndecidedRanges(NamedTuple):
    """Ranges of sizes that are not decided yet."""

    ranges: tuple[tuple[float, float], ...]
    """log10 of the sizes, ascending."""
    family: str
    """The family whose frontier is less certain there."""


class UndecidedSizes:
    """Finds the undecided ranges of a search, again whenever a trial has ended."""

    def __init__(self, forecasts: Forecasts, seed: int) -> None:
        self._forecasts, self._seed = forecasts, seed
        self._known: tuple[frozenset[str], UndecidedRanges | None] = frozenset(), None

    def of(self, records: Sequence[TrialRecord]) -> UndecidedRanges | None:
        """The undecided ranges; None where everything is decided, or where too few trials are complete."""
        ended = [record for record in records if record.status in ("complete", "stopped")]
        if any(len(complete_trials(ended, family)) < MIN_TRIALS for family in COMPARED):
            return None
        key = frozenset(f"{record.id}/{record.epochs}" for record in ended)
        if key != self._known[0]:
            self._known = key, self._find(ended)
        return self._known[1]

    def _find(self, ended: Sequence[TrialRecord]) -> UndecidedRanges | None:
        paths = frontiers(ended, self._forecasts, parameters, self._seed, sweeps=SWEEPS)
        comparison = Comparison.of(paths["fvae"], paths["flow"])
        if comparison is None:
            return None
        ranges = tuple(
            (math.log10(each["from"]), math.log10(each["to"]))
            for each in comparison.ranges()
            if each["answer"] == "undecided"
        )
        if not ranges:
            return None
        inside = np.array([any(low <= size <= high for low, high in ranges) for size in comparison.log_size])
        sizes = comparison.log_size[inside]
        spreads = {family: float(paths[family].at(sizes).std(axis=0).mean()) for family in COMPARED}
        return UndecidedRanges(ranges, max(COMPARED, key=lambda family: spreads[family]))

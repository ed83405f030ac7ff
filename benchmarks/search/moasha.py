"""Syne Tune's MOASHA as a method of the replay. Importing this needs ``benchmarks/search/requirements.txt``."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

from benchmarks.search.curves import Curves
from benchmarks.search.halving import Halving


class Ranks(NonDominatedPriority):
    """Each trial's place in the order of dominance, from 0.

    Version 0.16 sorts the trials of a rung by dominance, and then takes the sorted trials' numbers for their ranks: its
    priority of ``[[1, 1], [2, 2], [3, 3], [0, 0]]`` is ``[3, 0, 1, 2]``, where the ranks are 1, 2, 3, 0. What MOASHA
    decides by that has little to do with the metrics. A priority of one's own is one of its documented parameters.
    """

    def priority_unsafe(self, objectives: np.ndarray) -> np.ndarray:
        """Array ``[trials]`` for objectives ``[trials, metrics]``."""
        order = super().priority_unsafe(objectives)
        ranks = np.empty(len(order), dtype=int)
        ranks[order] = np.arange(len(order))
        return ranks


class SyneTuneMoasha(Halving):
    """Syne Tune's ``MOASHA`` on (bits/dim, log10 parameters); ``repaired``: by :class:`Ranks`."""

    def __init__(
        self,
        curves: Curves,
        seed: int,
        first: Sequence[int] = (),
        *,
        grace_period: int,
        reduction_factor: float,
        repaired: bool,
    ) -> None:
        super().__init__(curves, seed, first)
        self._ranks = Ranks()
        self._scheduler = MOASHA(
            config_space={},  # rows are drawn here: without replacement
            metrics=["val_bpd", "log10_params"],
            time_attr="epoch",
            multiobjective_priority=self._ranks if repaired else None,
            max_t=curves.epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
            random_seed=seed,
        )

    def _add(self, row: int) -> None:
        self._scheduler.on_trial_add(_trial(row))

    def _goes_on(self, row: int, epoch: int) -> bool:
        bits, size = self._metrics(row)
        result = {"epoch": epoch, "val_bpd": bits, "log10_params": size}
        return self._scheduler.on_trial_result(_trial(row), result) != SchedulerDecision.STOP

    def _first(self, rows: list[int]) -> int:
        return rows[int(np.argmin(self._ranks(np.array([self._metrics(row) for row in rows]))))]

    def _metrics(self, row: int) -> tuple[float, float]:
        return self._best[row], math.log10(self._rows[row].params)


def _trial(row: int) -> Trial:
    return Trial(trial_id=row, config={}, creation_time=datetime.datetime.min)

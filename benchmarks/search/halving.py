"""Asynchronous successive halving as methods of the replay: Ray Tune's ASHA here, Syne Tune's MOASHA in its own file.

Configurations are random, as with both by default. What either class sees is the best validation bits/dim so far, the
one of the weights that training keeps. Both stop for good, and a table has no endless supply of new configurations:
so once it is used up, what was stopped goes on from where it was, the furthest first and of those the best by the
class's own order. A search on the table is never worse for that.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from benchmarks.search.curves import Curves
from benchmarks.search.replay import Decision


def random_order(curves: Curves, seed: int, first: Sequence[int] = ()) -> collections.deque[int]:
    """All rows in random order; ``first`` before the others."""
    rng = np.random.default_rng(seed)
    rest = [row for row in rng.permutation(len(curves.rows)).tolist() if row not in first]
    return collections.deque([*rng.permutation(np.array(first, dtype=int)).tolist(), *rest])


class Halving(abc.ABC):
    """Random rows; a class of Tune's or Syne Tune's decides after each epoch which of them go on."""

    def __init__(self, curves: Curves, seed: int, first: Sequence[int] = ()) -> None:
        self._rows, self._last = curves.rows, curves.epochs
        self._untried = random_order(curves, seed, first)
        self._best: dict[int, float] = {}
        self._stopped: dict[int, int] = {}  # row → epochs that it has
        self._let_run: set[int] = set()

    def start(self) -> int | None:
        """The next random row; when there are no more, one of those that were stopped."""
        if self._untried:
            row = self._untried.popleft()
            self._add(row)
            return row
        if not self._stopped:
            return None
        furthest = max(self._stopped.values())
        row = self._first([row for row, epochs in self._stopped.items() if epochs == furthest])
        del self._stopped[row]
        self._let_run.add(row)
        return row

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """What the class decides."""
        self._best[row] = min(val_bpd, self._best.get(row, math.inf))
        if row in self._let_run or self._goes_on(row, epoch) or epoch == self._last:
            return Decision.CONTINUE
        self._stopped[row] = epoch
        return Decision.PAUSE

    def ended(self, row: int, complete: bool) -> None:
        """It needs no more thought: one that is complete was judged at its last rung, one that diverged is gone."""
        self._let_run.discard(row)

    @abc.abstractmethod
    def _add(self, row: int) -> None:
        """Tell the class of a new trial."""

    @abc.abstractmethod
    def _goes_on(self, row: int, epoch: int) -> bool:
        """Ask the class."""

    @abc.abstractmethod
    def _first(self, rows: list[int]) -> int:
        """The best row of those that stopped at the same epoch."""


@dataclasses.dataclass(frozen=True)
class TuneTrial:
    """All that ``AsyncHyperBandScheduler`` reads of a trial."""

    trial_id: str


class TuneAsha(Halving):
    """Ray Tune's ``AsyncHyperBandScheduler`` on bits/dim alone: it takes one metric."""

    def __init__(
        self, curves: Curves, seed: int, first: Sequence[int] = (), *, grace_period: int, reduction_factor: float
    ) -> None:
        super().__init__(curves, seed, first)
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="val_bpd",
            mode="min",
            max_t=curves.epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )

    def _add(self, row: int) -> None:
        self._scheduler.on_trial_add(None, TuneTrial(str(row)))

    def _goes_on(self, row: int, epoch: int) -> bool:
        result = {"epoch": epoch, "val_bpd": self._best[row]}
        return self._scheduler.on_trial_result(None, TuneTrial(str(row)), result) != TrialScheduler.STOP

    def _first(self, rows: list[int]) -> int:
        return min(rows, key=self._best.__getitem__)

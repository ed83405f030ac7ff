"""Early stopping by both objectives: bits/dim, which is measured, and size, which is known beforehand.

The rule, at each rung, for a trial with N parameters (:class:`StoppingRule` has its parameters):

1. What will it reach? A forecast from its own learning curve and from trials of its size, with a spread
   (:mod:`tune.stats.forecasts`).
2. By how much would that enlarge the area that the front dominates? The front is what fully trained trials of its
   family have reached and running ones are forecast to reach. Where rivals of N parameters or less do better than
   it may hope for, that is nothing: size is known, so the expectation is exact given the forecast
   (:mod:`tune.propose.expected_improvement`).
3. It goes on if that is at least a small share of the front's own area (``least_gain``): the area between the front
   and the highest bits/dim on it, or the trial's where that is higher.
4. A trial that has already measured less than every complete trial of its front of its size or less goes on too.
5. Otherwise it is stopped, unless its size would starve: of the trials of its family in a band of sizes (half a
   decade) that reached the rung, one in ``kept`` goes on in any case.

Where families compete for one front (``--goal front``), the trials of its family are those of all families.

What follows. A trial that is forecast to lie clearly on its front is never stopped, and no larger trial and no other
family can stop one by being better (unless families compete for one front). A trial of which little is known yet has
a wide forecast, and is left alone. Being stopped is no verdict: the trial keeps its checkpoint, and the proposer takes
it up again from there once that has become the best use of the next epochs (:mod:`tune.propose.front_proposer`).
Stopped trials enter no front and no fit. No trial waits at a rung (asynchronous): it is compared with the trials that
are there when it arrives.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tune.propose.expected_front import ExpectedFronts
from tune.records.ledger import TrialRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """The stopping rule, and its parameters."""

    rung_shares: tuple[float, ...] = (1 / 15, 1 / 8, 1 / 4, 1 / 2)
    """Shares of the epochs at which a trial may be stopped."""
    least_gain: float = 0.04
    """Share of the front's own area by which a trial must be expected to enlarge it."""
    bands: int = 2
    """Bands of sizes to a decade."""
    kept: int | None = 16
    """One in so many trials of a band goes on from each rung in any case; None: no share is kept."""

    def rungs(self, epochs: int) -> set[int]:
        """The rungs' epochs. A short training has fewer of them, never one at its last epoch."""
        return {epoch for share in self.rung_shares if 0 < (epoch := math.ceil(share * epochs)) < epochs}

    def reason_to_stop(self, expected: ExpectedFronts, record: TrialRecord) -> str | None:
        """One line why a trial that has just reached a rung is stopped, or None where it goes on."""
        forecast = expected.forecast(record, record.epochs)
        assert forecast is not None  # it is at a rung
        rivals = [each for each in expected.trials(record.family, without=record) if each.record.status != "stopped"]
        if not rivals:
            return None
        front = expected.front(rivals, max(record.params, *(each.record.params for each in rivals)))
        size, (mean, spread) = expected.log_size([record.params]), forecast
        gain = float(front.expected_improvement(size, np.array([mean]), np.array([spread]))[0])
        if gain >= self.least_gain * front.area(mean) or self.would_starve(expected, record):
            return None
        smaller = [each for each in rivals if expected.log_size([each.record.params])[0] <= size[0]]
        complete = [each for each in smaller if each.record.status == "complete"]
        lowest = min(point.val_bpd for point in record.history)
        if complete and lowest < min(each.forecast.mean for each in complete):
            return None  # it has passed its front already, whatever it is forecast to reach
        reached = f"epoch {record.epochs}: expected to reach {mean:.3f} ± {spread:.3f} bits/dim"
        if not smaller:
            return f"{reached}, too little for its size"
        rival = min(smaller, key=lambda each: each.forecast.mean)
        does = "reached" if rival.record.status == "complete" else "is expected to reach"
        return f"{reached}; {rival.record.id} {does} {rival.forecast.mean:.3f} with {rival.record.params:,} parameters"

    def would_starve(self, expected: ExpectedFronts, record: TrialRecord) -> bool:
        """Whether too few trials of its size have gone on from this rung."""
        if self.kept is None:
            return False
        here = [
            other
            for other in expected.ledger.records.values()
            if other.epochs >= record.epochs and other.id != record.id and self._same_size(expected, other, record)
        ]
        gone_on = sum(other.epochs > record.epochs or other.status == "running" for other in here)
        return (gone_on + 1) * self.kept <= len(here) + 1

    def _same_size(self, expected: ExpectedFronts, one: TrialRecord, other: TrialRecord) -> bool:
        bands = {math.floor(self.bands * math.log10(each.params)) for each in (one, other)}
        return expected.share_a_front(one, other.family) and len(bands) == 1

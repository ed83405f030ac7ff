"""Forecasts of the bits/dim that part-trained trials will reach, extrapolated from their learning curves.

Two normal distributions of log bits/dim at the end are combined, weighted by their precision:

- Its own learning curve. From epoch e on a trial gains β times what it gained since epoch e/2: with v(e) the lowest
  validation bits/dim up to e and g = log v(e/2) − log v(e), log v(end) = log v(e) − β·g, with a spread in proportion to
  g. The log holds for hundreds of bits/dim after an epoch as for the last hundredths.
- The other trials of its family: a line in log10 parameters through what the fully trained ones reached. A curve that
  falls from hundreds of bits/dim determines little of its end, and then this line determines the forecast.

β, the line and both spreads begin with a prior and are learned from the fully trained trials, β and its spread for each
family and rung by itself; how unsure β is widens the forecasts until then. A trial is read at rungs only: all are then
compared after equal training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

GAIN, GAIN_POWER = 0.27, 0.75
"""β before any trial is complete: GAIN · (E/e − 1)^GAIN_POWER at epoch e of E. So curves go under a cosine-shaped
learning rate on the digits, those of all three families alike (``benchmarks/search/digits.parquet``)."""
GAIN_SPREAD = 0.4
"""Standard deviation of the later gain over the recent one, as a share of β, before any trial is complete."""
MOST_SPREAD = 1.5
"""Upper limit of the latter, whatever a few unusual curves suggest."""
BETWEEN_SETS = 0.5
"""Standard deviation of β itself, as a share of it, before any trial is complete: other images are learned at another
pace."""
PRIOR_TRIALS = 3
"""Weight of a prior, in complete trials."""
TYPICAL_GAIN = 0.1
"""A tenth less. A trial's weight in the regression is its gain squared; the prior's is this."""
LARGE_GAIN = 0.3
"""A larger gain has no more weight: curves that begin far off would determine the forecasts of all others."""
LEAST_GAIN = 0.02
"""A smaller gain is taken for this, where misses are measured in gains."""
LEAST_SPREAD = 0.02
"""Bits/dim. No forecast of a part-trained trial is surer: the noise of some hundred validation images."""
SHARE_OF_UNIFORM, SHARE_SPREAD = 0.75, 0.35
"""Bits/dim at the end over those of a uniform guess, before any trial is complete, and the spread of its log."""
SLOPE, SLOPE_SPREAD = -0.1, 0.1
"""Change of log bits/dim for each decade of parameters, before any trial is complete."""
MIDDLE_SIZE = 5.0
"""log10 parameters at which the line's height and slope are independent of one another, to begin with."""
TRIAL_SPREAD = 0.15
"""How far the log bits/dim of trials of one size lie apart, before any trial is complete."""


class Epoch(Protocol):
    """The part of an epoch's metrics that forecasts read."""

    @property
    def val_bpd(self) -> float:
        """Validation bits/dim after it."""


class Curve(Protocol):
    """The part of a trial that forecasts read, such as a :class:`tune.records.ledger.TrialRecord`."""

    @property
    def id(self) -> str:
        """Id of the trial."""

    @property
    def family(self) -> str:
        """Family of the model: trials of one family are alike."""

    @property
    def params(self) -> float:
        """Trained parameters."""

    @property
    def status(self) -> str:
        """``running``, ``complete``, ``stopped`` or ``failed``."""

    @property
    def epochs(self) -> int:
        """Epochs finished."""

    @property
    def history(self) -> Sequence[Epoch]:
        """All finished epochs."""

    @property
    def val_bpd(self) -> float | None:
        """Bits/dim that a complete trial reached."""


class Forecast(NamedTuple):
    """Validation bits/dim of the weights that a trial keeps at its end."""

    mean: float
    spread: float
    """Standard deviation; 0 where the trial is complete."""


class AtRung(NamedTuple):
    """State of a trial at the last rung that it passed."""

    rung: int
    lowest: float
    """Bits/dim."""
    gain: float
    """Since half the rung's epochs: by how much the natural logarithm of the lowest bits/dim fell."""


class Forecasts:
    """Forecasts of one search's trials; learns from each complete trial that it is shown."""

    def __init__(self, rungs: Iterable[int], epochs: int, uniform_bpd: float) -> None:
        """``rungs``: the epochs at which trials are compared, of all ``epochs``; ``uniform_bpd``: bits/dim of a uniform
        guess, log2 of the levels."""
        self.rungs, self.epochs = sorted(rungs), epochs
        self._learned: set[str] = set()
        self._gains: dict[tuple[str, int], _Gains] = {}
        self._sizes: dict[str, _Sizes] = defaultdict(lambda: _Sizes(math.log(SHARE_OF_UNIFORM * uniform_bpd)))
        self._at_rung: dict[str, tuple[int, AtRung | None]] = {}

    def of(self, record: Curve) -> Forecast | None:
        """What it will reach; None before its first rung, and for a failed trial, whose past is no evidence."""
        if record.status == "failed":
            return None
        if record.status == "complete" and record.val_bpd is not None:
            return Forecast(record.val_bpd, 0.0)
        standing = self._last_rung(record)
        if standing is None:
            return None
        later = self._gains_after(record.family, standing.rung)
        by_curve = math.log(standing.lowest) - later.share * standing.gain
        by_size, size_spread = self._sizes[record.family].at(record.params)
        curve_weight = 1 / max(LEAST_GAIN, later.spread * standing.gain) ** 2
        size_weight = 1 / size_spread**2
        mean = math.exp((curve_weight * by_curve + size_weight * by_size) / (curve_weight + size_weight))
        return Forecast(mean, max(LEAST_SPREAD, mean / math.sqrt(curve_weight + size_weight)))

    def _last_rung(self, record: Curve) -> AtRung | None:
        """State of the trial at its last rung; None before the first."""
        known = self._at_rung.get(record.id)
        if known is None or known[0] != record.epochs:
            passed = [rung for rung in self.rungs if rung <= record.epochs]
            known = record.epochs, _at(record, passed[-1]) if passed else None
            self._at_rung[record.id] = known
        return known[1]

    def learn(self, records: Iterable[Curve]) -> None:
        """Take in what complete trials gained after each rung. One that is known already adds nothing."""
        for record in records:
            if record.status != "complete" or record.val_bpd is None or record.id in self._learned:
                continue
            self._learned.add(record.id)
            self._sizes[record.family].add(record.params, record.val_bpd)
            for rung in (rung for rung in self.rungs if rung <= record.epochs):
                standing = _at(record, rung)
                later = math.log(standing.lowest / record.val_bpd)
                self._gains_after(record.family, rung).add(standing.gain, later)

    def _gains_after(self, family: str, rung: int) -> _Gains:
        if (family, rung) not in self._gains:
            self._gains[family, rung] = _Gains(GAIN * (self.epochs / rung - 1) ** GAIN_POWER)
        return self._gains[family, rung]


class _Gains:
    """Later gain on recent gain, through the origin, with a prior."""

    def __init__(self, prior: float) -> None:
        weight = PRIOR_TRIALS * TYPICAL_GAIN**2
        self._products, self._squares = prior * weight, weight
        self._trials: list[tuple[float, float]] = []
        self._prior = prior
        self.share, self.spread = prior, math.hypot(GAIN_SPREAD, BETWEEN_SETS) * prior

    def add(self, recent: float, later: float) -> None:
        weight = 1 / (1 + (recent / LARGE_GAIN) ** 2)
        self._products += weight * recent * later
        self._squares += weight * recent * recent
        self._trials.append((recent, later))
        self.share = self._products / self._squares
        misses = [((later - self.share * recent) / max(recent, LEAST_GAIN)) ** 2 for recent, later in self._trials]
        of_trials = min(_spread(GAIN_SPREAD * self._prior, misses), MOST_SPREAD)
        of_share = (len(misses) / of_trials**2 + (BETWEEN_SETS * self._prior) ** -2) ** -0.5
        self.spread = math.hypot(of_trials, of_share)


class _Sizes:
    """Log bits/dim at the end on log10 parameters, with a prior."""

    def __init__(self, typical: float) -> None:
        self._prior = np.array([typical, SLOPE])
        self._line, self._spread = self._prior, TRIAL_SPREAD
        self._precision = np.diag([SHARE_SPREAD**-2, SLOPE_SPREAD**-2])
        self._points: list[tuple[float, float]] = []
        self._covariance = np.linalg.inv(self._precision)

    def add(self, params: float, bits: float) -> None:
        self._points.append((math.log10(params), math.log(bits)))
        sizes, ends = np.array(self._points).T
        design = np.stack([np.ones_like(sizes), sizes - MIDDLE_SIZE], axis=1)
        self._covariance = np.linalg.inv(self._precision + design.T @ design / self._spread**2)
        self._line = self._covariance @ (self._precision @ self._prior + design.T @ ends / self._spread**2)
        self._spread = _spread(TRIAL_SPREAD, ((ends - design @ self._line) ** 2).tolist())

    def at(self, params: float) -> tuple[float, float]:
        """Mean and standard deviation of the log bits/dim at the end of a trial of this size."""
        design = np.array([1.0, math.log10(params) - MIDDLE_SIZE])
        return float(design @ self._line), math.sqrt(self._spread**2 + float(design @ self._covariance @ design))


def _spread(prior: float, squared_misses: Sequence[float]) -> float:
    """Standard deviation, in which the prior counts for ``PRIOR_TRIALS`` trials."""
    total = PRIOR_TRIALS * prior**2 + sum(squared_misses)
    return math.sqrt(total / (PRIOR_TRIALS + len(squared_misses)))


def _at(record: Curve, rung: int) -> AtRung:
    lowest = _lowest(record, rung)
    return AtRung(rung, lowest, math.log(_lowest(record, max(1, rung // 2)) / lowest))


def _lowest(record: Curve, epoch: int) -> float:
    return min(point.val_bpd for point in record.history[:epoch])

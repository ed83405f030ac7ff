"""The expected Pareto front of a running search: what each trial is forecast to reach, and the front that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fvae.likelihood import uniform_bits_per_dim
from tune.propose.expected_improvement import Staircase, log_size
from tune.records.ledger import Ledger, TrialRecord
from tune.stats.forecasts import LEAST_SPREAD, Forecast, Forecasts
from tune.stats.pareto import Floats


class TrialForecast(NamedTuple):
    """A trial, and what it will reach."""

    record: TrialRecord
    forecast: Forecast


class ExpectedFronts:
    """Forecasts of the ledger's trials, and the fronts that follow, for the scheduler and the proposer.

    Trials share a front with those of their own family, or with ``compete`` with all. Further seeds of a trial are
    on no front.
    """

    def __init__(
        self,
        ledger: Ledger,
        forecasts: Forecasts,
        *,
        bins: int,
        compete: bool = False,
        by_size: bool = True,
        extrapolate: bool = True,
    ) -> None:
        """
        Args:
            ledger: the search's.
            forecasts: of its trials.
            bins: levels of a pixel; a front's area is counted below the bits/dim of a uniform guess.
            compete: one front for all families.
            by_size: False: bits/dim alone counts, to measure what sizes contribute.
            extrapolate: False: a part-trained trial counts by what it has reached, compared after equal training, to
                measure what forecasts contribute.
        """
        self.ledger, self.forecasts = ledger, forecasts
        self.compete, self.by_size, self.extrapolate = compete, by_size, extrapolate
        self.uniform_bpd = uniform_bits_per_dim(bins)

    def trials(self, family: str, without: TrialRecord | None = None) -> list[TrialForecast]:
        """The trials of a family's front that have a forecast, but ``without``, with which they are compared."""
        records = self.ledger.records.values()
        self.forecasts.learn(records)
        forecasts = []
        for record in records:
            if not self.share_a_front(record, family) or (without is not None and record.id == without.id):
                continue
            forecast = self.forecast(record, without.epochs if without else None)
            if forecast is not None:
                forecasts.append(TrialForecast(record, forecast))
        return forecasts

    def forecast(self, record: TrialRecord, epoch: int | None = None) -> Forecast | None:
        """What a trial will reach, or without extrapolation had reached at ``epoch``; None where that is unknown."""
        if self.extrapolate or (epoch is None and record.status == "complete"):
            return self.forecasts.of(record)
        if epoch is None or record.status == "failed" or record.epochs < epoch:
            return None
        return Forecast(min(point.val_bpd for point in record.history[:epoch]), LEAST_SPREAD)

    def share_a_front(self, record: TrialRecord, family: str) -> bool:
        """Whether a trial shares a front with those of ``family``."""
        return record.replicate_of is None and (self.compete or record.family == family)

    def front(self, trials: Iterable[TrialForecast], largest: int) -> Staircase:
        """What complete trials have reached and running ones will reach: a stopped one holds no place."""
        points = [
            (record.params, forecast.mean) for record, forecast in trials if record.status in ("complete", "running")
        ]
        return Staircase.of_sizes(points, largest, self.uniform_bpd, by_size=self.by_size)

    def log_size(self, params: float | Sequence[int]) -> Floats:
        """log10 parameters; 0 for all where sizes do not count."""
        return log_size(params, self.by_size)

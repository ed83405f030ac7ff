"""Forecasts of a search's end against the truth of simulated searches."""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np
import pytest

from fvae.epoch_metrics import EpochMetrics
from tune.records.attempts import Attempt
from tune.records.ledger import TrialRecord
from tune.run.end_forecast import FIRST, EndForecast, RemainingBudget, forecast_end, wall_seconds

pytestmark = pytest.mark.core

EPOCHS, TRIALS, AT_ONCE = 60, 48, 8
BEGIN = 1_700_000_000_000


@dataclasses.dataclass(frozen=True)
class Trial:
    start: float
    epochs: int
    seconds_per_epoch: float
    flops: int

    @property
    def end(self) -> float:
        return self.start + self.epochs * self.seconds_per_epoch

    def at(self, number: int, moment: float) -> TrialRecord:
        """Its record at a moment."""
        done = min(self.epochs, int((moment - self.start) / self.seconds_per_epoch + 1e-9))
        history = tuple(self.epoch(each) for each in range(1, done + 1))
        ended = done == self.epochs
        attempt = Attempt(
            started_ms=BEGIN + round(1000 * self.start), cpus=1, gpus=0, first_epoch=1, epochs=done, images=done,
            seconds=done * self.seconds_per_epoch, ended="done" if ended else "",
            ended_ms=BEGIN + round(1000 * self.end) if ended else None,
        )  # fmt: skip
        status = "running" if not ended else "complete" if done == EPOCHS else "stopped"
        return TrialRecord(
            id=f"{number:04d}-fvae", family="fvae", config={}, train={}, params=1, flops_per_image=self.flops,
            suggestion={}, status=status, history=history, attempts=(attempt,),  # type: ignore[arg-type]
        )  # fmt: skip

    def epoch(self, number: int) -> EpochMetrics:
        seconds = number * self.seconds_per_epoch
        return EpochMetrics(
            epoch=number, train_bpd=3, val_bpd=3, grad_norm=1, images_per_second=1, images=number, seconds=seconds,
            sigma1=1, sigma2=1, time_ms=BEGIN + round(1000 * (self.start + seconds)),
        )  # fmt: skip


def search(seed: int, *, seconds: float = float("inf")) -> list[Trial]:
    """A whole search: sizes over three decades, half of the trials stopped at one of three rungs."""
    rng = np.random.default_rng(seed)
    free = [0.0] * AT_ONCE
    trials = []
    for _ in range(TRIALS):
        start = heapq.heappop(free)
        if start >= seconds:
            break
        compute = 10 ** rng.uniform(-1, 2)
        per_epoch = 0.5 + compute * rng.lognormal(0, 0.2)
        epochs = next((rung for rung, share in ((8, 0.25), (15, 0.2), (30, 0.2)) if rng.random() < share), EPOCHS)
        trials.append(Trial(start, epochs, per_epoch, round(1e6 * compute)))
        heapq.heappush(free, trials[-1].end)
    return trials


def seen_from(trials: list[Trial], ended: int, left_seconds: float | None = None) -> tuple[float, EndForecast | None]:
    """The moment when so many trials have ended, and the forecast from there."""
    moment = sorted(trial.end for trial in trials)[ended - 1]
    records = [trial.at(number, moment) for number, trial in enumerate(trials) if trial.start <= moment]
    left = RemainingBudget(trials=TRIALS - len(records), seconds=left_seconds)
    return moment, forecast_end(records, epochs=EPOCHS, at_once=AT_ONCE, left=left, now=BEGIN + round(1000 * moment))


@pytest.mark.parametrize(("ended", "factor"), [(FIRST, 2.8), (TRIALS // 4, 2.1), (TRIALS // 2, 2.1)])
def test_the_end_is_forecast_within_a_factor(ended: int, factor: float) -> None:
    """In 60 searches nine in ten ends within the factor, the middle one neither promised too early nor too late, and
    the 80% band right about as often as it should."""
    ratios, covered, complete = [], [], []
    for seed in range(60):
        trials = search(seed)
        moment, made = seen_from(trials, ended)
        assert made is not None
        truth = max(trial.end for trial in trials) - moment
        ratios.append(made.seconds / truth)
        covered.append(0.97 * made.low <= truth <= 1.03 * made.high)
        complete.append(made.complete - sum(trial.epochs == EPOCHS for trial in trials))
        assert made.complete + made.stopped == TRIALS and made.unfinished == 0
    assert np.mean([1 / factor < ratio < factor for ratio in ratios]) >= 0.9
    assert 0.85 < np.median(ratios) < 1.18
    assert 0.7 <= np.mean(covered) <= 0.95
    assert abs(np.mean(complete)) < TRIALS / 10


def test_with_the_quick_trials_alone_the_forecast_would_promise_too_much() -> None:
    """What the running trials add: the first that end are small, or stopped early."""
    naive, made_of = [], []
    for seed in range(60):
        trials = search(seed)
        moment, made = seen_from(trials, FIRST)
        ended = [trial for trial in trials if trial.end <= moment]
        mean = np.mean([trial.end - trial.start for trial in ended])
        truth = max(trial.end for trial in trials) - moment
        assert made is not None
        naive.append(mean * (TRIALS - FIRST) / AT_ONCE / truth)
        made_of.append(made.seconds / truth)
    assert np.median(naive) < 0.4 < np.median(made_of)


def test_a_time_budget_ends_the_forecast_search_too() -> None:
    trials = search(3)
    end = max(trial.end for trial in trials)
    moment, whole = seen_from(trials, TRIALS // 4)
    _, made = seen_from(trials, TRIALS // 4, left_seconds=0.25 * (end - moment))
    assert whole is not None and made is not None
    assert made.seconds <= 0.25 * (end - moment) < whole.seconds
    assert made.complete < whole.complete and made.held_seconds < whole.held_seconds
    assert made.unfinished > 0


def test_hours_of_devices_end_it_likewise() -> None:
    trials = search(3)
    moment = sorted(trial.end for trial in trials)[11]
    records = [trial.at(number, moment) for number, trial in enumerate(trials) if trial.start <= moment]
    spent = sum(wall_seconds(each) for each in records)

    def held(left: RemainingBudget) -> float:
        made = forecast_end(records, epochs=EPOCHS, at_once=AT_ONCE, left=left, now=BEGIN + round(1000 * moment))
        assert made is not None
        return made.held_seconds

    assert held(RemainingBudget(trials=None, held_seconds=3 * spent)) == pytest.approx(4 * spent, rel=0.3)
    assert held(RemainingBudget(trials=2, held_seconds=30 * spent)) < 4 * spent


def test_nothing_is_said_of_too_little() -> None:
    trials = search(0)
    assert seen_from(trials, FIRST - 1)[1] is None
    records = [trial.at(number, 1e9) for number, trial in enumerate(trials)]
    no_limit = RemainingBudget(trials=None)  # patience has no date
    assert forecast_end(records, epochs=EPOCHS, at_once=AT_ONCE, left=no_limit) is None


def test_lost_attempts_count_in_what_a_trial_took() -> None:
    one = search(0)[0].at(0, 1e9)
    (attempt,) = one.attempts
    lost = dataclasses.replace(attempt, seconds=5.0, rest_seconds=None, ended="lost", ended_ms=None)
    assert wall_seconds(dataclasses.replace(one, attempts=(lost, attempt))) == pytest.approx(5 + wall_seconds(one))

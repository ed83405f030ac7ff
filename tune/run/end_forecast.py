"""Forecast of when a search will end, and with how many trials, from those that it has started so far.

What is not known is drawn from what is: how long a trial takes, and at which epoch it is stopped. The rest of the
search is simulated many times, with as many trials at a time as run now, each time with the started trials resampled
(a bootstrap), so that a forecast from few trials has a wide band. What is still running counts too, by its seconds per
epoch (before its first epoch: by its FLOPs) and by what became of the others after its epoch (Kaplan and Meier): the
first trials that end are the short ones, and alone they would give a forecast far too early.

A forecast does not account for models unlike those that were started. Where the next ones are larger, it takes longer.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import least_squares

from tune.records.attempts import now_ms
from tune.records.ledger import TrialRecord

FIRST = 3
"""Trials that must have ended before there is a forecast."""
SIMULATIONS = 40
"""How often the rest of the search is simulated."""
BAND = (5, 95)
"""Percentiles of the simulations that the 80% band takes: in test searches they held four in five truths, as a
bootstrap of few trials varies too little."""
PRIOR = 2
"""Trials that reach every epoch, added to those that did when the share that is stopped there is counted."""
SPEED_TRIALS = 3
"""Trials of different FLOPs before the speed is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndForecast:
    """How a search is expected to end: medians, and the time's 80% band."""

    seconds: float
    """Seconds of wall time that are left."""
    low: float
    """Lower end of their 80% band."""
    high: float
    """Upper end of their 80% band."""
    complete: int
    """Complete trials at the end, those of today among them."""
    stopped: int
    """Stopped and failed ones."""
    unfinished: int
    """Trials that are paused when the budget is used up."""
    held_seconds: float
    """Seconds that trials will have held their devices, in all, from the first one on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemainingBudget:
    """What the budgets have left; None: no such budget."""

    trials: int | None
    """Trials to start."""
    seconds: float | None = None
    """Wall time."""
    held_seconds: float | None = None
    """Seconds of trials on their devices."""


@dataclasses.dataclass(frozen=True)
class _Trial:
    epochs: int
    seconds_per_epoch: float
    ended: bool
    idle: float
    """Seconds since its last epoch, or since it began; where it runs."""


def forecast_end(
    records: Sequence[TrialRecord], *, epochs: int, at_once: int, left: RemainingBudget, now: int | None = None
) -> EndForecast | None:
    """The forecast; None while too little is known, or where no budget but patience ends the search.

    ``epochs``: of a complete trial; ``at_once``: trials side by side; ``now``: milliseconds since 1970, for tests.
    """
    if left.trials is None and left.seconds is None and left.held_seconds is None:
        return None
    ended = [record for record in records if record.status != "running"]
    if sum(bool(record.epochs) for record in ended) < FIRST:
        return None
    moment = now_ms() if now is None else now
    speed = Speed(records)
    trials = [trial for record in records if (trial := _seen(record, speed, moment))]
    rng = np.random.default_rng(0)
    simulated = np.array([_simulate(trials, epochs, at_once, left, rng) for _ in range(SIMULATIONS)])
    seconds, complete, stopped, unfinished, held = simulated.T
    low, high = np.percentile(seconds, BAND)
    before_complete = sum(record.status == "complete" for record in ended)
    coming = round(float(np.median(complete)))
    return EndForecast(
        seconds=float(np.median(seconds)),
        low=float(low),
        high=float(high),
        complete=before_complete + coming,
        stopped=len(ended) - before_complete + round(float(np.median(complete + stopped))) - coming,
        unfinished=round(float(np.median(unfinished))),
        held_seconds=sum(wall_seconds(record) for record in records) + float(np.median(held)),
    )


def wall_seconds(record: TrialRecord) -> float:
    """Seconds that a trial's processes lived for it, as far as they are known, until its last epoch if it runs."""
    total = 0.0
    for attempt in record.attempts:
        end = attempt.ended_ms
        if end is None and not attempt.ended and record.history:
            end = record.history[-1].time_ms
        total += attempt.held_seconds if end is None else max(attempt.held_seconds, (end - attempt.started_ms) / 1000)
    return total if record.attempts else record.seconds


def _seen(record: TrialRecord, speed: Speed, moment: int) -> _Trial | None:
    """A trial as the simulation takes it; None for one that has no process yet, or ended without an epoch."""
    ended = record.status != "running"
    began = record.attempts[-1].started_ms if record.attempts else moment
    last = max(began, record.history[-1].time_ms if record.history else 0)
    idle = 0.0 if ended else max(0.0, (moment - last) / 1000)
    if record.epochs:
        return _Trial(record.epochs, wall_seconds(record) / record.epochs, ended, idle)
    if ended or not speed.known:
        return None
    return _Trial(0, max(idle, speed.seconds(record.flops_per_image, speed.images_per_epoch)), ended, idle)


def _simulate(
    trials: Sequence[_Trial], epochs: int, at_once: int, left: RemainingBudget, rng: np.random.Generator
) -> tuple[float, int, int, int, float]:
    """Simulate the rest once: seconds until the end, complete, stopped and unfinished trials, and device seconds."""
    pool = [trials[index] for index in rng.integers(len(trials), size=len(trials))]
    stops = _stops(pool, epochs)
    typical = [trial for trial in pool if trial.ended] or pool
    mean_seconds = sum(trial.epochs * trial.seconds_per_epoch for trial in typical) / len(typical)

    def new() -> tuple[float, int]:
        trial = pool[rng.integers(len(pool))]
        total = trial.epochs if trial.ended else _total_epochs(trial.epochs, stops, epochs, rng)
        return trial.seconds_per_epoch * total, total

    ends: list[tuple[float, bool]] = []  # of what runs: when, and whether it is complete then
    for trial in trials:
        if not trial.ended:
            total = _total_epochs(trial.epochs, stops, epochs, rng)
            rest = (total - trial.epochs) * trial.seconds_per_epoch - trial.idle
            ends.append((max(0.0, rest), total >= epochs))
    heapq.heapify(ends)
    held, clock, complete, stopped, started = sum(end for end, _ in ends), 0.0, 0, 0, 0

    def may_start() -> bool:
        return (
            (left.trials is None or started < left.trials)
            and (left.seconds is None or clock + mean_seconds <= left.seconds)
            and (left.held_seconds is None or held + mean_seconds <= left.held_seconds)
        )

    while True:
        while len(ends) < at_once and may_start():
            whole, total = new()
            heapq.heappush(ends, (clock + whole, total >= epochs))
            held, started = held + whole, started + 1
        if not ends or (left.seconds is not None and ends[0][0] > left.seconds):
            break
        clock, is_complete = heapq.heappop(ends)
        complete, stopped = complete + is_complete, stopped + (not is_complete)
    if ends and left.seconds is not None:
        held -= sum(end - left.seconds for end, _ in ends)
        clock = left.seconds
    return clock, complete, stopped, len(ends), held


def _stops(trials: Sequence[_Trial], epochs: int) -> list[tuple[int, float]]:
    """Kaplan and Meier: each epoch at which trials were ended before their time, and the share of those that reached
    it which it was."""
    at = sorted({trial.epochs for trial in trials if trial.ended and trial.epochs < epochs})
    return [
        (
            epoch,
            sum(trial.ended and trial.epochs == epoch for trial in trials)
            / (PRIOR + sum(trial.epochs >= epoch for trial in trials)),
        )
        for epoch in at
    ]


def _total_epochs(so_far: int, stops: Sequence[tuple[int, float]], epochs: int, rng: np.random.Generator) -> int:
    """The epoch at which a trial ends that has come ``so_far``."""
    for epoch, share in stops:
        if epoch > so_far and rng.random() < share:
            return epoch
    return epochs


class Speed:
    """Seconds an image = constant + slope · FLOPs an image, both above 0.

    Fitted to the trials' logarithms, so that small models count as much as large ones (their time is overhead, not
    FLOPs), and then scaled so that on average over the trials it is their seconds.
    """

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        """``records``: those without a finished epoch are ignored. ``known`` is whether the rest were enough."""
        trained = [record for record in records if record.history and record.seconds > 0]
        self.known = len({record.flops_per_image for record in trained}) >= SPEED_TRIALS
        if self.known:
            seconds = np.array([record.seconds / _images(record) for record in trained])
            flops = np.array([record.flops_per_image for record in trained], dtype=float)

            def excess(logs: np.ndarray) -> np.ndarray:
                return np.logaddexp(logs[0], logs[1] + np.log(flops)) - np.log(seconds)

            start = np.log([seconds.min() / 2, np.median(seconds / flops) / 2])
            logs = least_squares(excess, start).x
            self.constant, self.slope = np.exp(logs) * np.mean(np.exp(-excess(logs)))
            self.images_per_epoch = trained[0].history[0].images

    def seconds(self, flops_per_image: float, images: float) -> float:
        """Seconds of training and validation; only where the speed is ``known``."""
        return float(self.constant + self.slope * flops_per_image) * images


def _images(record: TrialRecord) -> int:
    """Images that a trial's seconds were spent on."""
    return sum(attempt.images for attempt in record.attempts) or record.history[-1].images

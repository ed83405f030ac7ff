"""The plan of a search and its expected cost, printed before it starts, and the forecast of its end while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fvae.data.images import Dataset
from fvae.flops import TRAINING_FACTOR
from pipelines.cli.quantities import duration
from tune.propose.candidates import Candidate, CandidateSource
from tune.propose.limits import Limits
from tune.records.accounting import devices_per_trial
from tune.records.ledger import Ledger, TrialRecord
from tune.run.budget import Budget
from tune.run.end_forecast import EndForecast, Speed, forecast_end
from tune.settings import SearchSettings

GOALS = {"map": "", "front": ", one front for all families", "decide": ", then where the verdict is open"}
"""Text of each goal in the plan."""
SAMPLE = 64
"""Models of each family that are drawn from the space to estimate what one costs."""
SHARE_OF_TIME = 1 / 50
"""Share of the driver's time that forecasts may take."""
LEAST_SECONDS = 30.0
"""No forecast is printed where less is left."""
CHANGE = 1.5
"""A forecast is printed again where the time left has become longer or shorter than printed by this factor."""


def what_runs(settings: SearchSettings, dataset: Dataset, ledger: Ledger, budget: Budget) -> str:
    """The images, the trials and their budgets, in a few lines."""
    channels, height, width = dataset.shape
    counts = dataset.counts()
    ended, unfinished = len(ledger.ended()), len(ledger.with_status("running"))
    resumed = f" ({ended} done before, {unfinished} to resume)" if ledger.records else ""
    trials = "Trials" if budget.max_trials is None else f"{budget.max_trials} trials"
    one_front = settings.goal == "front"
    idle = "do not move the front" if one_front else "move no family's front"
    lines = [
        f"{dataset.name}: {counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} "
        f"test images of {width}×{height}×{channels}, {dataset.bins} levels",
        f"{trials} over {', '.join(settings.families)}, {settings.epochs} epochs each{resumed}; sampler "
        f"{settings.sampler}{GOALS[settings.goal]}",
    ]
    ends = [
        f"after {settings.time_budget} of training" if settings.time_budget else "",
        f"after {settings.gpu_hours:g} hours of {'GPUs' if budget.on_gpus else 'cores'}" if settings.gpu_hours else "",
        f"after {settings.patience} trials in a row that {idle}" if settings.patience else "",
    ]
    if any(ends):
        before = f", {duration(budget.clock.before)} of them before" if settings.time_budget and ledger.records else ""
        lines.append(f"Ends {' or '.join(filter(None, ends))}{before}")
    limits = [
        f"{settings.max_params:,} parameters" if settings.max_params else "",
        f"{settings.max_flops:g} FLOPs an image" if settings.max_flops else "",
        f"{settings.max_memory} of memory in training" if settings.max_memory else "",
    ]
    if any(limits):
        lines.append(f"No model of more than {' or '.join(filter(None, limits))}")
    if settings.seeds > 1:
        lines.append(f"The fronts' models are then trained with {settings.seeds} seeds")
    lines.append(f"Results in {ledger.root.uri}")
    return "\n".join(lines)


def what_it_costs(
    settings: SearchSettings, dataset: Dataset, ledger: Ledger, budget: Budget, source: CandidateSource,
    limits: Limits, at_once: int,
) -> str:  # fmt: skip
    """Trials at a time, a typical model's compute, and the hours where they follow from earlier trials.

    Roughly: models are drawn uniformly from the space, while the sampler has preferences of its own.
    """
    rng = np.random.default_rng(settings.seed)
    drawn = [
        each for family in settings.families for each in source.draw(family, SAMPLE, rng) if limits.allows_size(each)
    ]
    cores = f"{settings.cpus_per_trial} {'core' if settings.cpus_per_trial == 1 else 'cores'}"
    shared = "as much of a GPU as it needs" if settings.gpus_per_trial == "auto" else f"{settings.gpus_per_trial:g} GPU"
    workers = f" for each of its {settings.workers_per_trial} workers" if settings.workers_per_trial > 1 else ""
    devices = f"{cores} and {shared}" if budget.on_gpus else cores
    lines = [f"{at_once} {'trial' if at_once == 1 else 'trials'} at a time, each with {devices}{workers}"]
    images = settings.epochs * dataset.counts()["train"]
    if drawn:
        flops = [TRAINING_FACTOR * float(each.flops_per_image) * images for each in drawn]
        low, median, high = np.percentile(flops, (5, 50, 95))
        lines[0] += f"; a whole training takes about {median:.0e} FLOPs ({low:.0e} to {high:.0e})"
    seconds = expected_seconds(drawn, list(ledger.records.values()), images)
    if seconds is None:
        lines.append("How long it takes is printed when the first trials have ended")
    elif budget.max_trials is None:
        lines.append(f"A trial takes about {duration(seconds)}, by the trials before")
    else:
        trials = max(0, budget.max_trials - len(ledger.ended()))
        lines.append(
            f"Roughly {duration(seconds * trials / at_once)} for {trials} trials, {duration(seconds)} each, by the "
            "trials before"
        )
    return "\n".join(lines)


def expected_seconds(drawn: Sequence[Candidate], records: Sequence[TrialRecord], images: int) -> float | None:
    """Seconds that a trial of ``drawn`` takes on average on as many ``images``, where it is stopped as early as those
    of ``records`` were; None where these are too few."""
    speed = Speed(records)
    if not drawn or not speed.known:
        return None
    ended = [record for record in records if record.status != "running" and record.epochs]
    share = sum(record.epochs / record.train["epochs"] for record in ended) / len(ended) if ended else 1.0
    return float(np.mean([speed.seconds(each.flops_per_image, images) for each in drawn])) * share


class Forecaster:
    """The forecast of a running search's end, renewed as the search goes on, but never often."""

    def __init__(self, ledger: Ledger, budget: Budget, epochs: int, at_once: int) -> None:
        self.ledger, self.budget, self.epochs, self.at_once = ledger, budget, epochs, at_once
        self._made: EndForecast | None = None
        self._made_at, self._next = time.monotonic(), 0.0
        self._printed_end: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of wall time until every trial is done; None before that is known."""
        made = self.now()
        return None if made is None else max(0.0, made.seconds - (time.monotonic() - self._made_at))

    def now(self) -> EndForecast | None:
        """The newest forecast, at most seconds old."""
        started = time.monotonic()
        if started >= self._next:
            self._made = forecast_end(
                list(self.ledger.records.values()), epochs=self.epochs, at_once=self.at_once,
                left=self.budget.left(self.ledger),
            )  # fmt: skip
            self._made_at = time.monotonic()
            self._next = self._made_at + max(1.0, (self._made_at - started) / SHARE_OF_TIME)
        return self._made

    def news(self) -> str | None:
        """A line where there is a forecast for the first time, or one that differs much from the last one printed."""
        made, left = self.now(), self.seconds_left
        if made is None or left is None or left < LEAST_SECONDS:
            return None
        moment = time.monotonic()
        if self._printed_end is not None:
            printed = max(1.0, self._printed_end - moment)
            if 1 / CHANGE < left / printed < CHANGE:
                return None
        self._printed_end = moment + left
        return self.line(made)

    def line(self, made: EndForecast) -> str:
        """A forecast in words."""
        end = time.strftime("%H:%M", time.localtime(time.time() + made.seconds))
        paused = f", {made.unfinished} paused" if made.unfinished else ""
        return (
            f"Forecast: trained in {duration(made.seconds)} (80%: {duration(made.low)} to {duration(made.high)}), at "
            f"{end}; {made.complete} complete and {made.stopped} stopped trials{paused}, "
            f"{made.held_seconds * self._devices() / 3600:.2g} {'GPU' if self.budget.on_gpus else 'core'} hours in all"
        )

    def _devices(self) -> float:
        """Devices of a trial, on average."""
        return devices_per_trial(self.ledger.records.values(), self.budget.on_gpus)

"""The budget of a search: when no more trials start, and when those that run are paused.

Of several budgets the first that is used up decides. All of them are answered from the ledger and the clock, so a
resumed search goes on where it was, and a larger budget extends it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from fvae.likelihood import uniform_bits_per_dim
from pipelines.cli.quantities import duration
from pipelines.data.datasets import memory_bytes
from tune.records.accounting import core_seconds, devices_per_trial, gpu_seconds
from tune.records.ledger import Ledger, TrialRecord
from tune.records.training_time import SearchClock
from tune.run.end_forecast import RemainingBudget
from tune.settings import SearchSettings
from tune.stats.pareto import Point, hypervolume, pareto_front
from tune.stats.replicates import lacking

LEAST_GROWTH = 1e-3
"""Share of a family's hypervolume by which a trial must enlarge it to count as progress: about what another seed
changes."""


class Budget:
    """``--trials``, ``--time-budget``, ``--gpu-hours`` and ``--patience`` of one search."""

    def __init__(self, settings: SearchSettings, clock: SearchClock, bins: int) -> None:
        """``bins``: levels of the images, for the hypervolume's ceiling."""
        self.max_trials, self.patience = settings.max_trials, settings.patience
        self.time_text, self.seconds = settings.time_budget, settings.time_budget_seconds
        self.device_hours, self.on_gpus = settings.gpu_hours, settings.gpus_per_trial != 0
        self.clock = clock
        self.one_front = settings.goal == "front"
        self._progress = FrontProgress(bins, one_front=self.one_front)
        self._closed: str | None = None

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        """None where another trial may start, else why none does any more, one line.

        A trial that is not expected to end within the time or the hours is not started; before any trial has ended
        nothing is known, and it is. ``replicate``: another seed of a trial, which is beyond --trials and --patience.
        """
        if not replicate:
            started = sum(record.replicate_of is None for record in ledger.records.values())
            if self.max_trials is not None and started >= self.max_trials:
                return f"--trials {self.max_trials}: all started"
            if self._out_of_patience(ledger, started):
                front = "have not moved the front" if self.one_front else "have moved no family's front"
                return f"--patience {self.patience}: the last {self.patience} trials {front}"
        # Once decided it does not change, though the last trials may leave more than they were expected to.
        self._closed = self._closed or self._too_late(ledger)
        return self.over(ledger) or self._closed

    def over(self, ledger: Ledger) -> str | None:
        """None, or why all running trials are paused now, one line."""
        if self.seconds is not None and self.clock.seconds >= self.seconds:
            return f"--time-budget {self.time_text}: used up"
        if self.device_hours is not None and self._device_seconds(ledger.records.values()) >= 3600 * self.device_hours:
            return f"--gpu-hours {self.device_hours:g}: used up"
        return None

    def finished(self, ledger: Ledger, seeds: int = 1) -> str | None:
        """None where there is something to train, else why there is not, one line. ``seeds``: of the fronts' models."""
        if ledger.with_status("running"):
            return self.over(ledger)
        why = self.may_start(ledger)
        if why and lacking(list(ledger.records.values()), seeds) and not self.may_start(ledger, replicate=True):
            return None
        return why

    def left(self, ledger: Ledger) -> RemainingBudget:
        """What is left to spend, for a forecast; patience cannot be forecast."""
        records = list(ledger.records.values())
        started = sum(record.replicate_of is None for record in records)
        held = None
        if self.device_hours is not None:
            spent = self._device_seconds(records)
            held = (3600 * self.device_hours - spent) / devices_per_trial(records, self.on_gpus)
        return RemainingBudget(
            trials=None if self.max_trials is None else max(0, self.max_trials - started),
            seconds=None if self.seconds is None else max(0.0, self.seconds - self.clock.seconds),
            held_seconds=held,
        )

    def _out_of_patience(self, ledger: Ledger, started: int) -> bool:
        """Once true it stays true until more trials are started, or more patience is given."""
        if self.patience is None:
            return False
        known = self.clock.out_of_patience
        if known and known[0] >= self.patience and known[1] == started:
            return True
        if self._progress.idle(ledger.ended()) < self.patience:
            return False
        self.clock.run_out_of_patience(self.patience, started)
        return True

    def _too_late(self, ledger: Ledger) -> str | None:
        ended = [record for record in ledger.ended() if record.epochs]
        if not ended:
            return None
        if self.seconds is not None:
            expected = sum(record.seconds for record in ended) / len(ended)
            left = self.seconds - self.clock.seconds
            if expected > left:
                return f"--time-budget {self.time_text}: {duration(left)} left, a trial takes {duration(expected)}"
        if self.device_hours is not None:
            expected = self._device_seconds(ended) / len(ended)
            running = [self._device_seconds([record]) for record in ledger.with_status("running")]
            promised = sum(max(expected, spent) for spent in running)
            left = 3600 * self.device_hours - self._device_seconds(ledger.ended()) - promised
            if expected > left:
                return (
                    f"--gpu-hours {self.device_hours:g}: {max(left, 0) / 3600:.2g} left, a trial takes "
                    f"{expected / 3600:.2g}"
                )
        return None

    def _device_seconds(self, records: Iterable[TrialRecord]) -> float:
        """Seconds of GPUs; of cores where the search trains on none."""
        seconds = gpu_seconds if self.on_gpus else core_seconds
        return sum(seconds(record) for record in records)


def retry_out_of_memory(ledger: Ledger, budget: Budget, seeds: int) -> None:
    """Let trials go on that failed for want of memory, where the budget lets them and there may be more of it.

    The memory of a cluster's machines is not known before Ray runs: trials that no other one crowded out are tried
    again only where something else is trained too.
    """
    if budget.over(ledger):
        return
    if "RAY_ADDRESS" not in os.environ:
        ledger.retry_out_of_memory(memory_bytes())
    else:
        ledger.retry_out_of_memory(0 if budget.finished(ledger, seeds) else math.inf)


class FrontProgress:
    """How long no family's front has moved, or ``one_front`` of all families, in trials that have ended since. Other
    seeds of a trial do not count.

    In the plane of the map's hypervolumes (log10 parameters, validation bits/dim), with a reference a decade above
    the largest complete model so far: so a larger model that is better counts too.
    """

    def __init__(self, bins: int, *, one_front: bool) -> None:
        self.ceiling, self.one_front = uniform_bits_per_dim(bins), one_front
        self._seen: set[tuple[str, str, int]] = set()
        self._fronts: dict[str, list[Point]] = {}
        self._largest = 0.0
        self._idle = 0

    def idle(self, ended: Iterable[TrialRecord]) -> int:
        """Trials that have ended since the last one that moved a front. ``ended``: all that have, in any order.

        A stopped trial that went on and ended again counts again.
        """
        new = [record for record in ended if _end(record) not in self._seen and record.replicate_of is None]
        for record in sorted(new, key=_ended_at):
            self._seen.add(_end(record))
            self._idle = 0 if self._moves_a_front(record) else self._idle + 1
        return self._idle

    def _moves_a_front(self, record: TrialRecord) -> bool:
        if record.status != "complete" or record.val_bpd is None:
            return False
        point = (math.log10(record.params), record.val_bpd)
        self._largest = max(self._largest, point[0])
        reference = (self._largest + 1, self.ceiling)
        name = "all" if self.one_front else record.family
        front = self._fronts.get(name, [])
        before, after = hypervolume(front, reference), hypervolume([*front, point], reference)
        points = [*front, point]
        self._fronts[name] = [points[index] for index in pareto_front(points)]
        return after - before > LEAST_GROWTH * before


def _end(record: TrialRecord) -> tuple[str, str, int]:
    return record.id, record.status, record.epochs


def _ended_at(record: TrialRecord) -> tuple[int, str]:
    """When its last epoch was measured, in milliseconds since 1970; then by the order of starting."""
    return (record.history[-1].time_ms if record.history else 0, record.id)

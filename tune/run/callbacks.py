"""Callbacks and stopper of Ray Tune: every result goes to the ledger first, then to the display and MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from fvae.config import ModelConfig
from fvae.train_config import TrainConfig
from pipelines.data.datasets import memory_bytes
from pipelines.training import main_memory
from pipelines.training.worker_warnings import raise_trouble
from tune.records.attempts import Attempt, AttemptEnd, Attempts, begin_attempt, end_attempt, now_ms
from tune.records.ledger import Ledger, TrialRecord, changes
from tune.run.budget import Budget
from tune.run.gpu_shares import GpuShares
from tune.run.trial_checkpoint import CHECKPOINT

Watcher = Callable[[TrialRecord], None]

ASK_SECONDS = 0.2
"""Seconds between two checks of the budget."""


class LedgerCallback(tune.Callback):
    """Brings each epoch into the ledger and shows the new record to the watchers (the table).

    ``keepers`` (MLflow) see a record only when it is written: what they keep must not be ahead of the ledger. ``warn``
    gets a line for each retry that the trial's storage needed.
    """

    def __init__(
        self,
        ledger: Ledger,
        watchers: Sequence[Watcher],
        warn: Callable[[str], None],
        keepers: Sequence[Watcher] = (),
        *,
        workers: int = 1,
    ) -> None:
        """``workers``: of each trial."""
        self.ledger, self.workers = ledger, workers
        self.watchers, self.keepers = tuple(watchers), tuple(keepers)
        self.warn = warn
        self._last_result: dict[str, float] = {}  # trial → when its attempt began or last finished an epoch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: Tune pickles its callbacks to restore them, which the ledger makes needless."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has a process: show it."""
        record = self.ledger.records[trial.config["id"]]
        held = trial.placement_group_factory.required_resources  # type: ignore[attr-defined]  # None before it starts
        attempt = Attempt(started_ms=now_ms(), cpus=held.get("CPU", 0.0), gpus=held.get("GPU", 0.0))
        self._last_result[record.id] = time.monotonic()
        self._show(self.ledger.update(record.id, attempts=begin_attempt(record.attempts, attempt)))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, or the trial ended."""
        record = self.ledger.records[trial.config["id"]]
        for line in result.get("warnings", ()):
            self.warn(f"{record.id}: {line}")
        raise_trouble(result)  # ends the search; the trial goes on when the same command finds its storage well
        if "if_crowded" in result and _others_run(trial, trials):
            result = result | {"failure": result["if_crowded"], "memory_room": 0}
        new = changes(record, result)
        if new.get("status") == "failed":  # in the midst of an epoch
            new["attempts"] = self._ended(record, "failed")
        elif "out_of_memory" in result:
            new["attempts"] = self._ended(record, "lost")
        record = self.ledger.update(
            record.id, at_once="status" in new or result.get("checkpoint_follows", False), **new
        )
        self._last_result[record.id] = time.monotonic()
        if record.status in ("complete", "failed"):  # a stopped one may be taken up again
            self.ledger.trial_storage(record.id).delete(CHECKPOINT)
        self._show(record)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial whose process died, and which Tune starts again."""
        record = self.ledger.records[trial.config["id"]]
        self.ledger.update(record.id, attempts=self._ended(record, "lost"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial whose process died more often than Tune starts it again: keep it with its reason."""
        record = self.ledger.records[trial.config["id"]]
        if record.status != "running":
            return  # it had done all: nothing is lost with its process
        error = str(trial.get_error() or "")
        lines = [line.strip() for line in error.splitlines() if line.strip()]
        changed: dict[str, Any] = {"reason": lines[-1] if lines else "its process died"}
        if main_memory.ran_out(error):
            changed = self._ran_out(record, crowded=_others_run(trial, trials))
        attempts = self._ended(record, "failed")
        self._show(self.ledger.update(record.id, status="failed", attempts=attempts, **changed))

    def _ran_out(self, record: TrialRecord, *, crowded: bool) -> dict[str, Any]:
        """What changes in the record of a trial whose process Ray has ended for want of memory."""
        model, train = ModelConfig.from_dict(record.config), TrainConfig.from_dict(record.train)
        here = memory_bytes()
        known = None if "RAY_ADDRESS" in os.environ else here  # the process may have run on another machine
        line = main_memory.why_it_ran_out(model, train, -(-train.batch_size // self.workers), known, crowded=crowded)
        return {"reason": line, "memory_room": 0 if crowded else here}

    def pause_running(self) -> None:
        """Pause the trials that still run at the end: the same command with a larger budget goes on with them."""
        self.ledger.flush()
        for record in self.ledger.with_status("running"):
            if record.id in self._last_result:
                self._show(self.ledger.update(record.id, attempts=self._ended(record, "put aside")))

    def _ended(self, record: TrialRecord, how: AttemptEnd) -> Attempts:
        last = self._last_result.get(record.id)
        return end_attempt(record.attempts, how, None if last is None else time.monotonic() - last)

    def _show(self, record: TrialRecord) -> None:
        for watcher in self.watchers:
            watcher(record)
        if self.ledger.is_written(record.id):
            for keeper in self.keepers:
                keeper(record)


def _others_run(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether other trials have a process, which takes memory, beside that of ``trial``."""
    return any(other is not trial and other.status == Trial.RUNNING for other in trials)


class BudgetStopper(tune.Stopper):
    """Ends the search, and not one trial: Tune stops what runs without a call of searcher, scheduler or callbacks.

    Tune calls it all the time, so it also keeps the search's clock.
    """

    def __init__(self, budget: Budget, ledger: Ledger) -> None:
        self.budget, self.ledger = budget, ledger
        self.why: str | None = None
        """Why the search was ended, one line; None where it was not."""
        self._asked_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: see :class:`LedgerCallback`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped on its own."""
        return False

    def stop_all(self) -> bool:
        """Whether the budget is used up."""
        if self.why is None and time.monotonic() - self._asked_at > ASK_SECONDS:
            self._asked_at = time.monotonic()
            self.budget.clock.tick()
            self.why = self.budget.over(self.ledger)
        return self.why is not None


class PeakMemory(tune.Callback):
    """Reports to the shares what each trial's first epoch took, and which of them did not hold their trial."""

    def __init__(self, shares: GpuShares) -> None:
        self.shares = shares

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, or the trial has given up."""
        configs = trial.config["model"], trial.config["train"]
        if "peak_gpu_bytes" in result:
            self.shares.measured(*configs, result["peak_gpu_bytes"])
        if "out_of_memory" in result:
            held: Any = trial.placement_group_factory
            self.shares.exceeded(*configs, held.bundles[-1]["GPU"])

"""What happens on every result: the ledger first, then whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from tune.ledger import EpochRecord, Ledger, TrialRecord
from tune.trial import CHECKPOINT

Watcher = Callable[[TrialRecord], None]


class LedgerCallback(tune.Callback):
    """Writes each epoch to the ledger and shows the new record to the watchers (table, MLflow)."""

    def __init__(self, ledger: Ledger, watchers: Sequence[Watcher]) -> None:
        self.ledger = ledger
        self.watchers = tuple(watchers)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore of its own, which the ledger makes needless."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process: show it."""
        self._show(self.ledger.records[trial.config["id"]])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, or the trial ended."""
        record = self.ledger.records[trial.config["id"]]
        if "storage_error" in result:
            raise OSError(*result["storage_error"])  # ends the search; the trial goes on when there is room again
        record = self.ledger.update(record.id, **changes(record, result))
        if record.status != "running":
            (self.ledger.trial_dir(record.id) / CHECKPOINT).unlink(missing_ok=True)
        self._show(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The scheduler has put the reason into the ledger."""
        self._show(self.ledger.records[trial.config["id"]])

    def _show(self, record: TrialRecord) -> None:
        for watcher in self.watchers:
            watcher(record)


def changes(record: TrialRecord, result: dict[str, Any]) -> dict[str, Any]:
    """What a result of :class:`tune.trial.TrialProcess` changes in the trial's record."""
    if "failure" in result:
        return {"status": "failed", "reason": result["failure"]}
    new: dict[str, Any] = {}
    # After a crash the epochs since the last checkpoint are trained again; the first record of each stays.
    if result["epoch"] > record.epochs:
        fields = {name: result[name] for name in EpochRecord.__dataclass_fields__ if name != "time_ms"}
        new["history"] = (*record.history, EpochRecord(**fields, time_ms=time.time_ns() // 1_000_000))
        new["val_bpd"] = result["val_bpd"]
    if "best_val_bpd" in result:
        new |= {"status": "complete", "best_epoch": result["best_epoch"], "val_bpd": result["best_val_bpd"]}
    return new

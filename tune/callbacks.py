"""What happens on every result: the ledger first, then whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from pipelines.troubles import raise_trouble
from tune.ledger import Ledger, TrialRecord, changes
from tune.trial_files import CHECKPOINT

Watcher = Callable[[TrialRecord], None]


class LedgerCallback(tune.Callback):
    """Writes each epoch to the ledger and shows the new record to the watchers (table, MLflow).

    ``warn`` gets a line for each retry that the trial's storage needed.
    """

    def __init__(self, ledger: Ledger, watchers: Sequence[Watcher], warn: Callable[[str], None]) -> None:
        self.ledger = ledger
        self.watchers = tuple(watchers)
        self.warn = warn

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
        for line in result.get("warnings", ()):
            self.warn(f"{record.id}: {line}")
        raise_trouble(result)  # ends the search; the trial goes on when the same command finds its storage well
        record = self.ledger.update(record.id, **changes(record, result))
        if record.status != "running":
            self.ledger.trial_storage(record.id).delete(CHECKPOINT)
        self._show(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died more often than Tune starts it again: keep it with its reason."""
        if self.ledger.records[trial.config["id"]].status != "running":
            return  # it had done all: nothing is lost with its process
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
        reason = lines[-1] if lines else "its process died"
        self._show(self.ledger.update(trial.config["id"], status="failed", reason=reason))

    def _show(self, record: TrialRecord) -> None:
        for watcher in self.watchers:
            watcher(record)

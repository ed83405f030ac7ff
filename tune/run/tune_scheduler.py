"""Tune's scheduler: at each rung the stopping rule (:mod:`tune.stopping`) decides, and the ledger keeps why."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.propose.expected_front import ExpectedFronts
from tune.records.ledger import changes
from tune.run.resources import Resources, placement
from tune.stopping import StoppingRule

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class FrontScheduler(FIFOScheduler):
    """First in, first out; at each rung the rule decides. Decisions go to the ledger."""

    def __init__(self, expected: ExpectedFronts, rule: StoppingRule | None = None) -> None:
        """``rule``: by default the one that searches use; its rungs are those of ``expected.forecasts``."""
        super().__init__()
        self.expected, self.rule = expected, rule or StoppingRule()

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue, after every epoch."""
        ledger = self.expected.ledger
        record = ledger.records[trial.config["id"]]
        if result["epoch"] not in self.expected.forecasts.rungs or record.replicate_of is not None:
            return TrialScheduler.CONTINUE
        news = changes(record, result)
        if "history" not in news:  # a crash came between: the epoch is trained again, and was judged the first time
            return TrialScheduler.CONTINUE
        reason = self.rule.reason_to_stop(self.expected, dataclasses.replace(record, **news))
        if reason is None:
            return TrialScheduler.CONTINUE
        # The epoch and the decision in one write: a crash leaves both or neither.
        ledger.update(record.id, **news, status="stopped", reason=reason)
        return TrialScheduler.STOP


class PlacingScheduler(FrontScheduler):
    """Gives each trial its resources when it comes, by what is known of the GPUs' memory by then.

    Not through ``tune.with_resources``: Tune asks a copy of what it gets there, which learns nothing.
    """

    def __init__(self, expected: ExpectedFronts, resources: Resources) -> None:
        super().__init__(expected)
        self.resources = resources
        self._placed: set[str] = set()

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Place a new trial, or one to try again, which keeps its resources: Tune counts it by them."""
        if trial.trial_id not in self._placed:
            self._placed.add(trial.trial_id)
            gpus = self.resources.gpus(trial.config["model"], trial.config["train"])
            trial.update_resources(placement(self.resources.settings, gpus))
        super().on_trial_add(tune_controller, trial)

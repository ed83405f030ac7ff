"""Tune's scheduler: at each rung the stopping rule (:mod:`tune.stopping`) decides, and the ledger keeps why."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.propose.expected_front import Standings
from tune.records.ledger import changes
from tune.stopping import Rule

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class FrontScheduler(FIFOScheduler):
    """First in, first out; at each rung the rule decides. Decisions go to the ledger."""

    def __init__(self, standings: Standings, rule: Rule | None = None) -> None:
        """``rule``: by default the one that searches use; its rungs are those of the standings' forecasts."""
        super().__init__()
        self.standings, self.rule = standings, rule or Rule()

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue, after every epoch."""
        ledger = self.standings.ledger
        record = ledger.records[trial.config["id"]]
        if result["epoch"] not in self.standings.forecasts.rungs or record.replicate_of is not None:
            return TrialScheduler.CONTINUE
        news = changes(record, result)
        if "history" not in news:  # a crash came between: the epoch is trained again, and was judged the first time
            return TrialScheduler.CONTINUE
        reason = self.rule.reason_to_stop(self.standings, dataclasses.replace(record, **news))
        if reason is None:
            return TrialScheduler.CONTINUE
        # The epoch and the decision in one write: a crash leaves both or neither.
        ledger.update(record.id, **news, status="stopped", reason=reason)
        return TrialScheduler.STOP

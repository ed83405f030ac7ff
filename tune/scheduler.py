"""Early stopping that knows both objectives: bits/dim as it is measured, and size, known beforehand.

The rule. At a rung (an eighth, a quarter, half of the epochs) a trial is compared with the trials of
its family that have its size or less and have passed the same rung. It is stopped if at least
``VOTES`` of them were clearly better there: by more than a margin that the trial's own learning curve
sets, half of what it gained since half the rung's epoch, and never less than ``LEAST_MARGIN``. So a
trial that still learns fast is left alone. Nothing else stops it: a larger model cannot, another
family cannot, and a trial with fewer than ``VOTES`` smaller rivals always goes on. So the smallest
models of every family are always fully trained.
"""

from __future__ import annotations

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.ledger import Ledger, TrialRecord, changes

RUNGS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the epochs at which a trial may be stopped."""
VOTES = 2
"""Smaller rivals that must be clearly better before a trial is stopped."""
LEAST_MARGIN = 0.03
"""Bits/dim that always count as no clear difference: about three standard errors of the paired
difference between two models on some hundred validation images."""


def rungs(epochs: int) -> set[int]:
    """The rungs' epochs. A short training has fewer of them, never one at its last epoch."""
    return {epoch for share in RUNGS if 0 < (epoch := math.ceil(share * epochs)) < epochs}


def best_until(record: TrialRecord, epoch: int) -> float | None:
    """Lowest validation bits/dim up to ``epoch``; None where the trial has not come so far."""
    if record.epochs < epoch:
        return None
    return min((point.val_bpd for point in record.history if point.epoch <= epoch), default=None)


def margin(record: TrialRecord, epoch: int, val_bpd: float) -> float:
    """By how many bits/dim a rival must be better, for a trial that stands at ``val_bpd`` at ``epoch``."""
    halfway = best_until(record, epoch // 2)
    if halfway is None:
        return math.inf  # too early to know how fast it learns
    return max(LEAST_MARGIN, (halfway - val_bpd) / 2)


def reason_to_stop(ledger: Ledger, record: TrialRecord, epoch: int, val_bpd: float) -> str | None:
    """One line why a trial at a rung is stopped, or None where it goes on.

    ``val_bpd`` is the trial's lowest validation bits/dim so far.
    """
    needed = val_bpd - margin(record, epoch, val_bpd)
    better = []
    for rival in ledger.records.values():
        if rival.id == record.id or rival.family != record.family or rival.params > record.params:
            continue
        if rival.status == "failed":
            continue  # what it had reached before it diverged is no evidence
        at_rung = best_until(rival, epoch)
        if at_rung is not None and at_rung < needed:
            better.append((at_rung, rival))
    if len(better) < VOTES:
        return None
    best, rival = min(better, key=lambda pair: pair[0])
    return (
        f"epoch {epoch}: {val_bpd:.3f} bits/dim, where {len(better)} {record.family} models of its size or smaller "
        f"had less than {needed:.3f} (best {best:.3f} by {rival.id} with {rival.params:,} parameters)"
    )


class FrontScheduler(FIFOScheduler):
    """First in, first out; at each rung :func:`reason_to_stop` decides. Decisions go to the ledger."""

    def __init__(self, ledger: Ledger, epochs: int) -> None:
        super().__init__()
        self.ledger = ledger
        self.rungs = rungs(epochs)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue, after every epoch."""
        epoch = result["epoch"]
        if epoch not in self.rungs:
            return TrialScheduler.CONTINUE
        record = self.ledger.records[trial.config["id"]]
        val_bpd = min([result["val_bpd"], *(point.val_bpd for point in record.history if point.epoch < epoch)])
        reason = reason_to_stop(self.ledger, record, epoch, val_bpd)
        if reason is None:
            return TrialScheduler.CONTINUE
        # The epoch and the decision in one write: a crash leaves both or neither.
        self.ledger.update(record.id, **changes(record, result), status="stopped", reason=reason)
        return TrialScheduler.STOP

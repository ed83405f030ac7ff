"""Where more parameters stop helping a family, and why, as far as its trials show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune.records.ledger import TrialRecord
from tune.statistics.pareto import complete_trials, front_trials

LARGER = 1.25
"""Times the parameters of its front's largest model, beyond which a complete trial shows that more do not help."""
EARLY = 0.8
"""A trial whose best epoch came within this share of its epochs overfits: more training made it worse."""


def saturation(records: Sequence[TrialRecord], family: str) -> dict[str, Any] | None:
    """Complete trials that are larger than the family's front and reach no fewer bits/dim; None where there are none.

    ``params`` of the front's largest model; of the ``larger`` trials their number, the ``largest``'s parameters, how
    many ``overfit``, the earliest ``best_epoch`` of these (None: of none), and the ``epochs`` of a training.
    """
    front = front_trials(records, family)
    larger = [each for each in complete_trials(records, family) if front and each.params > LARGER * front[-1].params]
    if not larger:
        return None
    overfit = [each.best_epoch for each in larger if each.best_epoch and each.best_epoch <= EARLY * each.epochs]
    return {
        "params": front[-1].params,
        "larger": len(larger),
        "largest": max(each.params for each in larger),
        "overfit": len(overfit),
        "best_epoch": min(overfit, default=None),
        "epochs": larger[0].epochs,
    }

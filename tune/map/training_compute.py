"""Training compute: FLOPs and seconds that a trial spent, and the best bits/dim that a family had reached by then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from fvae.epoch_metrics import EpochMetrics
from fvae.flops import TRAINING_FACTOR
from tune.records.ledger import TrialRecord
from tune.stats.pareto import pareto_front

Axis = Literal["flops", "seconds"]


class ComputeCurve(NamedTuple):
    """Bits/dim against compute: ``compute`` ascending."""

    compute: list[float]
    bpd: list[float]


def training_flops(flops_per_image: int, images: int) -> float:
    """FLOPs of training on ``images`` images, forward and backward; validation not counted."""
    return float(TRAINING_FACTOR * flops_per_image * images)


def spent(record: TrialRecord, epoch: EpochMetrics, axis: Axis) -> float:
    """What ``record`` had spent by the end of ``epoch``."""
    return epoch.seconds if axis == "seconds" else training_flops(record.flops_per_image, epoch.images)


def trial_curve(record: TrialRecord, axis: Axis) -> ComputeCurve:
    """Validation bits/dim after each epoch."""
    return ComputeCurve([spent(record, epoch, axis) for epoch in record.history], [e.val_bpd for e in record.history])


def best_so_far(records: Sequence[TrialRecord], axis: Axis) -> ComputeCurve:
    """The lowest validation bits/dim that any one of ``records`` had reached within each compute.

    Compute is that single run's own, not the search's: what a user spends who trains the right model.
    """
    points = [(spent(record, epoch, axis), epoch.val_bpd) for record in records for epoch in record.history]
    front = [points[index] for index in pareto_front(points)]
    return ComputeCurve([compute for compute, _ in front], [bpd for _, bpd in front])

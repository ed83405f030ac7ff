"""Trials with given learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvae.epoch_metrics import EpochMetrics
from tune.records.ledger import Status, TrialRecord

REST = {"train_bpd": 1.0, "grad_norm": 1.0, "images_per_second": 1.0, "sigma1": 0.1, "sigma2": 0.1, "time_ms": 0}


def trial(
    number: int, params: int, curve: Sequence[float], family: str = "flow", status: Status = "running", **more: Any
) -> TrialRecord:
    """A trial whose validation bits/dim after each epoch is ``curve``."""
    history = tuple(
        EpochMetrics(epoch=epoch, val_bpd=bits, images=epoch, seconds=float(epoch), **REST)  # type: ignore[arg-type]
        for epoch, bits in enumerate(curve, start=1)
    )
    fields: dict[str, Any] = {"config": {}, "train": {}, "flops_per_image": 1, "suggestion": {}} | more
    if status == "complete":
        fields["val_bpd"] = min(curve)
    return TrialRecord(
        id=f"{number:04d}-{family}", family=family, params=params, status=status, history=history, **fields
    )


def falling(end: float, gain: float, epochs: int, until: int | None = None) -> list[float]:
    """The first ``until`` epochs of a curve that falls like 1/epoch, to ``end`` after ``epochs`` epochs.

    Were there no end, what is still to come from any epoch e would be just what was gained since e/2.
    """
    return [end + gain * (epochs / epoch - 1) for epoch in range(1, (until or epochs) + 1)]

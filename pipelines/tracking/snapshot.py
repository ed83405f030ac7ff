"""Snapshots of a trial or a training, which the trackers of :mod:`pipelines.tracking.tracker` write to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fvae.config import fields_in_use, scales_in_bins
from fvae.epoch_metrics import EpochMetrics
from pipelines.tracking.artifacts import Artifact

MODEL_ARTIFACT = "model"
"""The artifact that is registered."""


class EpochSnapshot(NamedTuple):
    """What one epoch measured."""

    epoch: int
    """Epochs finished, from 1: MLflow's step."""
    time_ms: int
    """When it was measured: milliseconds since 1970. The same at every replay."""
    metrics: Mapping[str, float]
    """For example ``train/bpd``, ``val/bpd``, ``system/cpu_utilization_percentage``; the first is in every epoch."""


@dataclass(frozen=True, kw_only=True)
class TrialSnapshot:
    """One trial, or one training of its own, as it is now.

    Raises ``ValueError`` for final metrics of a trial that is not complete, or of the same name as an epoch's, and
    for a complete one that is to be registered and has no artifact ``model``.
    """

    id: str
    """The trial's name, unique within its search."""
    family: str
    """Model family; logged as the param ``family``."""
    status: Literal["running", "complete", "stopped", "failed"]
    """Logged as the tag ``status``. As MLflow's run status: RUNNING, FINISHED, KILLED, FAILED."""
    reason: str = ""
    """Why it was stopped or failed: the tag ``reason``."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Flat, with their prefixes (``model.``, ``train.``, ``data.``). ``None`` means absent: it is not logged."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Metrics known before training, logged once at step 0: ``size/params``, ``size/flops_per_image``."""
    history: Sequence[EpochSnapshot] = ()
    """Every epoch so far, in order."""
    final: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the kept weights, complete trials only, at the last epoch's step: ``best/val_bpd``, ``test/bpd``."""
    artifacts: tuple[Artifact, ...] = ()
    """Files and folders to upload under their own names once the trial has ended."""
    registered_as: str | None = None
    """Once complete, its artifact ``model``, an MLflow model, is one version of the registered model of this name."""

    def __post_init__(self) -> None:
        if self.final and self.status != "complete":
            raise ValueError(f"trial {self.id} is {self.status}: only a complete trial has final metrics")
        repeated = set(self.final).intersection(self.history[-1].metrics if self.history else ())
        if repeated:
            raise ValueError(f"trial {self.id}: {', '.join(sorted(repeated))} in its history and its final metrics")
        has_model = any(artifact.name == MODEL_ARTIFACT for artifact in self.artifacts)
        if self.registered_as and self.status == "complete" and not has_model:
            raise ValueError(f"trial {self.id} is to be registered, but has no artifact {MODEL_ARTIFACT!r}")


def run_params(model: Mapping[str, Any], train: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's params under the product's names: ``model.*`` (its family's), ``train.*`` and ``data.*``."""
    parts = {"model": fields_in_use(model), "train": train, "data": dataset}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def epoch_snapshot(
    measured: EpochMetrics, model: Mapping[str, Any], system: Mapping[str, float] | None = None
) -> EpochSnapshot:
    """Return an epoch of ``model`` (its config's fields) under the product's metric names, and with the metrics of its
    machines (``system/…``)."""
    in_bins = scales_in_bins(model, measured.sigma1, measured.sigma2)
    metrics = {
        "train/bpd": measured.train_bpd,
        "val/bpd": measured.val_bpd,
        "sigma1": measured.sigma1,
        "sigma2": measured.sigma2,
        **{name: value for name, value in in_bins.items() if value is not None},
        "grad_norm": measured.grad_norm,
        "images_per_second": measured.images_per_second,
        "seconds": measured.seconds,
    }
    return EpochSnapshot(measured.epoch, measured.time_ms, metrics | dict(system or {}))

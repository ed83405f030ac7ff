"""A training job's files: what it trains, which never changes, and how it ended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from fvae.config import ConfigError, from_fields
from fvae.data.images import Dataset
from fvae.data.streaming import StreamedDataset
from fvae.epoch_metrics import EpochMetrics
from fvae.train_config import identity_of_any_version
from pipelines.cli.run_settings import as_run_name
from pipelines.data.datasets import describe
from pipelines.storage import Storage
from pipelines.storage.json_objects import read_json
from pipelines.tracking.artifacts import Artifact
from pipelines.training.configs import TrainConfigs
from pipelines.training.model_files import MODEL, PICTURES

JOB, RESULT = "job.json", "result.json"
FORMAT = 1
"""Raised whenever checkpoints or figures of an earlier version would no longer compare."""
MLFLOW = "mlflow"
"""The folder with the model as MLflow serves it."""
WHOLE = "whole"
"""In it, once every file of it is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a job ended."""

    status: Literal["complete", "failed"]
    reason: str = ""
    """Why it failed: one line."""
    history: tuple[EpochMetrics, ...]
    """Every epoch."""
    best_epoch: int | None = None
    """The epoch whose weights were kept: the lowest validation bits/dim."""
    best_val_bpd: float | None = None
    """Validation bits/dim of those weights, k = 1."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainResult:
        """Raises ``ConfigError`` for a field it does not know."""
        history = tuple(from_fields(EpochMetrics, epoch) for epoch in values.get("history", ()))
        return from_fields(cls, values | {"history": history})


def identity(dataset: Dataset, configs: TrainConfigs) -> dict[str, Any]:
    """What a job is: the data set, and what is trained on it. Workers and machines are no part of it."""
    return {
        "format": FORMAT,
        "dataset": describe(dataset),
        "streamed": isinstance(dataset, StreamedDataset),  # which is another order of the same images
        "model": configs.model.to_dict(),
        "train": configs.train.to_dict(),
    }


def default_name(job: dict[str, Any]) -> str:
    """The same for the same job: data set, family, and 6 hex digits of all that it is."""
    return f"{as_run_name(job['dataset']['name'])}-{job['model']['family']}-{job_digest(job)[:6]}"


def job_digest(job: dict[str, Any]) -> str:
    """SHA-256 (hex) of all that a job is: the same, whichever version asks for it."""
    return hashlib.sha256(json.dumps(identity_of_any_version(job), sort_keys=True).encode()).hexdigest()


def open_job(run: Storage, job: dict[str, Any]) -> bool:
    """Make the job's place, or check it as :func:`check_job` does. Returns whether it was made."""
    if check_job(run, job):
        return False
    run.write(JOB, (json.dumps(job, indent=1) + "\n").encode())
    return True


def check_job(run: Storage, job: dict[str, Any]) -> bool:
    """Whether the job lies there; nothing is written. Raises ``ConfigError`` where another job does."""
    try:
        theirs = read_json(run, JOB)
    except FileNotFoundError:
        if run.exists("search.json"):
            raise ConfigError(f"{run.uri}: holds a search; give another --name") from None
        return False
    old, new = identity_of_any_version(theirs), identity_of_any_version(job)
    for part in job:
        if old.get(part) != new[part]:
            raise ConfigError(f"{run.uri}: holds another training ({_difference(old, new, part)}); give another --name")
    return True


def read_result(run: Storage) -> TrainResult | None:
    """How the job ended; None while it has not."""
    try:
        return TrainResult.from_dict(read_json(run, RESULT))
    except FileNotFoundError:
        return None


def write_result(run: Storage, result: TrainResult) -> None:
    """The last thing that a job writes."""
    run.write(RESULT, (json.dumps(dataclasses.asdict(result), indent=1) + "\n").encode())


def write_mlflow_model(run: Storage, dataset_name: str) -> None:
    """The kept model as an MLflow model, beside it, unless that is there."""
    place = run.child(MLFLOW)
    if place.exists(WHOLE):
        return
    from pipelines.tracking.model_folder import write_model_folder  # imports MLflow

    if run.local_path is not None and place.local_path is not None:
        write_model_folder(run.local_path / MODEL, place.local_path / MODEL, dataset_name=dataset_name)
    else:
        with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
            plain, made = Path(folder) / "plain" / MODEL, Path(folder) / MODEL
            run.download(MODEL, plain)
            write_model_folder(plain, made, dataset_name=dataset_name)
            place.upload(made, MODEL)
    place.write(WHOLE, b"")


def artifacts(run: Storage) -> tuple[Artifact, ...]:
    """What a complete job left for MLflow."""
    present = {info.key for info in run.list() if "/" not in info.key}
    return (*(Artifact(run, name) for name in (JOB, *PICTURES) if name in present), Artifact(run.child(MLFLOW), MODEL))


def _difference(theirs: dict[str, Any], mine: dict[str, Any], part: str) -> str:
    """The first thing in ``part`` that is not the same, in a few words."""
    if not (isinstance(theirs.get(part), dict) and isinstance(mine[part], dict)):
        return f"{part} {theirs.get(part)}, not {mine[part]}"
    names = [*mine[part], *theirs[part]]
    name = next(name for name in names if theirs[part].get(name) != mine[part].get(name))
    return f"{part} {name}={theirs[part].get(name, 'its default')}, not {mine[part].get(name, 'its default')}"

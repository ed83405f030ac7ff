"""Searches to be tracked, on any storage, and what MLflow holds of them."""

from __future__ import annotations

from pathlib import Path

from pipelines.storage import Storage, open_storage
from pipelines.tracking import Artifact, EpochSnapshot, SearchTracker, TrialSnapshot, default_tracking_uri

START_MS = 1_790_000_000_000


def storage_of(runs: Path | Storage) -> Storage:
    return runs if isinstance(runs, Storage) else open_storage(runs)


def open_tracker(runs: Path | Storage, start: bool = True, **changes) -> SearchTracker:
    settings = {"storage": storage_of(runs), "dataset_name": "digits", "search_name": "digits-0"}
    settings |= {"write_interval": 3600.0}
    tracker = SearchTracker(**settings | {"params": {"seed": 0}, "tags": {"trials": "4"}} | changes)
    if start:
        tracker.start()
    return tracker


def history(epochs: int, offset: float = 0.0) -> tuple[EpochSnapshot, ...]:
    return tuple(
        EpochSnapshot(
            epoch,
            START_MS + 1000 * epoch,
            {
                "val/bpd": 3 + offset + (epoch - 3) ** 2 / 10,
                "train/bpd": 4 - epoch / 10,
                "grad_norm": 1.5,
                "sigma1": 0.1,
            },
        )
        for epoch in range(1, epochs + 1)
    )


def make_trial(number: int, status: str, epochs: int, runs: Path | Storage, family: str = "fvae") -> TrialSnapshot:
    trial_id = f"{number:04d}-{family}"
    storage = storage_of(runs).child("digits-0").child("trials").child(trial_id)
    for name in ("samples.png", "model/config.json"):
        storage.create(name, trial_id.encode())
    complete = status == "complete"
    return TrialSnapshot(
        id=trial_id,
        family=family,
        status=status,
        reason={"stopped": "models of its size are better", "failed": "step 7: the loss is nan"}.get(status, ""),
        params={
            "model.flow_depth": 4 + number,
            "model.encoder_width": None if family == "flow" else 32,
            "train.learning_rate": 1e-3,
            "data.bins": 17,
        },
        constants={"size/params": 10.0 ** (4 + number), "size/flops_per_image": 2e6},
        history=history(epochs, offset=number),
        final={"best/val_bpd": 3.0 + number, "test/bpd": 3.1 + number, "test/bpd_iwae64": 3.05} if complete else {},
        artifacts=tuple(Artifact(storage, name) for name in ("samples.png", "model")),
    )


def a_search(runs: Path | Storage) -> list[TrialSnapshot]:
    return [
        make_trial(0, "complete", 5, runs, "fvae"),
        make_trial(1, "stopped", 2, runs, "flow"),
        make_trial(2, "failed", 0, runs, "vae"),
    ]


def client(runs: Path | Storage):
    from mlflow import MlflowClient

    return MlflowClient(default_tracking_uri(storage_of(runs)))


def runs_of(runs: Path | Storage) -> dict:
    """Every run of the experiment by name; two of one name fail the test."""
    experiment = client(runs).get_experiment_by_name("fvae/digits")
    found = client(runs).search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def points(runs: Path | Storage, run, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(runs).get_metric_history(run.info.run_id, key)]


def content(runs: Path | Storage) -> dict:
    """All that MLflow holds of a search, less what differs between any two searches: ids and times."""
    found = {}
    for name, run in runs_of(runs).items():
        keep = {
            key: value for key, value in run.data.tags.items() if key in {"status", "reason", "trials", "fvae.epochs"}
        }
        curves = {key: points(runs, run, key) for key in run.data.metrics}
        artifacts = sorted(file.path for file in client(runs).list_artifacts(run.info.run_id))
        found[name] = (run.info.status, run.data.params, keep, curves, artifacts)
    return found

"""Searches and trainings that are tracked, the kinds of place that they are tracked in, and what MLflow holds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.storage import Storage, open_storage
from pipelines.tracking.database import database_path
from pipelines.tracking.settings import quiet_mlflow
from pipelines.tracking.tracker import (
    Artifact,
    EpochSnapshot,
    RunTracker,
    SearchTracker,
    TrialSnapshot,
    default_tracking_uri,
)
from tests.pipelines.tracking.mlflow_server import Server

quiet_mlflow()

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Run  # noqa: E402

KINDS = ("folder", "S3", "server")
"""A folder with MLflow's database in it; a bucket with a copy of the database; a folder beside an MLflow server."""
SEARCH, TRIALS, TRAINING = "digits-0", ("0000-fvae", "0001-flow", "0002-vae"), "train-digits"
START_MS = 1_790_000_000_000

Tracker = SearchTracker | RunTracker


def flushed(tracker: Tracker) -> None:
    assert tracker.flush(), tracker.problems


def ended(tracker: Tracker, *artifacts: Artifact) -> None:
    """A search has its result and a training is over; MLflow holds all of it."""
    if isinstance(tracker, SearchTracker):
        tracker.finish(artifacts)
    tracker.close()
    assert tracker.problems == []


def history(epochs: int, offset: float = 0.0, later_ms: int = 0) -> tuple[EpochSnapshot, ...]:
    """``later_ms``: how much later than the first time, as when epochs are trained again."""
    return tuple(
        EpochSnapshot(
            epoch,
            START_MS + 1000 * epoch + later_ms,
            {"val/bpd": 3 + offset + (epoch - 3) ** 2 / 10, "train/bpd": 4 - epoch / 10, "system/memory": 50.0 + epoch},
        )
        for epoch in range(1, epochs + 1)
    )


class Held(NamedTuple):
    """What MLflow holds of a run, less what differs between any two places: ids and times."""

    status: str
    parent: str | None
    params: dict[str, str]
    tags: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]
    artifacts: list[str]
    versions: list[tuple[int, str]]  # of the registered model, each with its source


class Runs:
    """A place for runs, with what may be tracked in it and what MLflow holds of that."""

    def __init__(self, storage: Storage, machine: Callable[[str], Any] = str) -> None:
        """``machine("B")``: what follows happens on machine B, as far as the place knows machines."""
        self.storage, self.machine = storage, machine
        self.dataset = storage.uri.rpartition("/")[2]
        """Names the experiment and the model. No other runs have it: those of a server share the server."""
        self._written: set[str] = set()

    @classmethod
    def below(cls, folder: Path, empty_database: Path) -> Runs:
        """New runs in a folder."""
        return cls(open_storage(folder / f"runs-{uuid.uuid4().hex[:8]}"))._with_tables(empty_database)

    @classmethod
    def of_kind(cls, kind: str, request: pytest.FixtureRequest) -> Runs:
        """New runs in one of ``KINDS``, on machine A."""
        fixture = request.getfixturevalue
        fixture("machine")("A")
        if kind == "folder":
            return cls.below(fixture("tmp_path") / "100% of them", fixture("empty_database"))
        if kind == "S3":
            runs = cls(open_storage(f"{fixture('bucket')}/team a/runs"), fixture("machine"))
            return runs._with_tables(fixture("empty_database"))
        fixture("monkeypatch").setenv("MLFLOW_TRACKING_URI", fixture("server").url)
        return cls(open_storage(fixture("tmp_path") / f"runs-{uuid.uuid4().hex[:8]}"))

    def _with_tables(self, empty_database: Path) -> Runs:
        """Spares this machine the seconds that it takes MLflow to make its tables."""
        path = database_path(self.storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(empty_database, path)
        return self

    # --- what is tracked -----------------------------------------------------------------------------------

    def search_tracker(self, start: bool = True, **changes: Any) -> SearchTracker:
        settings = {"storage": self.storage, "dataset_name": self.dataset, "write_interval": 3600.0}
        settings |= {"search_name": SEARCH, "params": {"seed": 0}, "tags": {"trials": "4"}}
        tracker = SearchTracker(**settings | changes)
        if start:
            tracker.start()
        return tracker

    def run_tracker(self, **changes: Any) -> RunTracker:
        settings = {"storage": self.storage, "dataset_name": self.dataset, "write_interval": 3600.0}
        tracker = RunTracker(**settings | {"run_name": TRAINING, "tags": {"workers": "2"}} | changes)
        tracker.start()
        return tracker

    def trial(
        self, number: int, status: Any, epochs: int, family: str = "fvae", later_ms: int = 0, **changes: Any
    ) -> TrialSnapshot:
        """A trial of the search, whose artifacts are written the first time."""
        trial_id = f"{number:04d}-{family}"
        storage = self.storage.child(SEARCH).child("trials").child(trial_id)
        if trial_id not in self._written:
            for name in ("samples.png", "model/config.json"):
                storage.create(name, trial_id.encode())
            self._written.add(trial_id)
        final = {"best/val_bpd": 3.0 + number, "test/bpd": 3.1 + number, "test/bpd_iwae64": 3.05}
        snapshot = TrialSnapshot(
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
            history=history(epochs, offset=number, later_ms=later_ms),
            final=final if status == "complete" else {},
            artifacts=tuple(Artifact(storage, name) for name in ("samples.png", "model")),
        )
        return dataclasses.replace(snapshot, **changes)

    def training(self, status: str, epochs: int, later_ms: int = 0) -> TrialSnapshot:
        """The first trial again, whose model is registered."""
        changes = {"id": TRAINING, "registered_as": f"model-{self.dataset}"}
        return self.trial(0, status, epochs, later_ms=later_ms, **changes)

    def trials(self, later_ms: int = 0) -> list[TrialSnapshot]:
        """One that ended in each way."""
        ends = (("complete", 5, "fvae"), ("stopped", 2, "flow"), ("failed", 0, "vae"))
        return [self.trial(number, *end, later_ms) for number, end in enumerate(ends)]

    def whole_search(self, later_ms: int = 0, settle: Callable[[Tracker], None] = flushed) -> SearchTracker:
        """A search from its begin to its end; ``settle`` waits until MLflow holds what was recorded."""
        tracker = self.search_tracker()
        for snapshot in self.trials(later_ms):
            tracker.record_trial(snapshot)
        settle(tracker)
        self.storage.create(f"{SEARCH}/tradeoff.html", b"<p>the map")
        ended(tracker, Artifact(self.storage, f"{SEARCH}/tradeoff.html"))
        return tracker

    def whole_training(
        self, later_ms: int = 0, settle: Callable[[Tracker], None] = flushed, **changes: Any
    ) -> RunTracker:
        """A training from its begin to its end, in several rounds."""
        tracker = self.run_tracker(**changes)
        for status, epochs in (("running", 0), ("running", 2), ("running", 4), ("complete", 5)):
            tracker.record(self.training(status, epochs, later_ms))
            settle(tracker)
        ended(tracker)
        return tracker

    # --- what MLflow holds ---------------------------------------------------------------------------------

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(self.storage))

    @property
    def all(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name(f"fvae/{self.dataset}")
        return list(self.client.search_runs([experiment.experiment_id]))

    @property
    def held(self) -> dict[str, Run]:
        """Every run by name; two of one name fail the test."""
        found = self.all
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found)
        return by_name

    @property
    def ids(self) -> dict[str, str]:
        return {name: run.info.run_id for name, run in self.held.items()}

    @property
    def statuses(self) -> dict[str, str]:
        return {name: run.info.status for name, run in self.held.items()}

    def points(self, name: str, key: str) -> list[tuple[int, float]]:
        return self._points(self.held[name], key)

    def _points(self, run: Run, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, key)]

    def artifact(self, name: str, path: str, folder: Path) -> bytes:
        """What any client of MLflow reads, with no variable of MLflow's own."""
        return Path(self.client.download_artifacts(self.ids[name], path, str(folder))).read_bytes()

    def content(self) -> dict[str, Held]:
        """All that MLflow holds, by the runs' names."""
        mlflow, held = self.client, self.held
        names = {run.info.run_id: name for name, run in held.items()}
        kept = {"status", "reason", "trials", "workers", "fvae.epochs", "mlflow.note.content"}
        found = {}
        for name, run in held.items():
            run_id, place = run.info.run_id, run.info.artifact_uri
            versions = mlflow.search_model_versions(f"run_id = '{run_id}'")
            found[name] = Held(
                run.info.status,
                names.get(run.data.tags.get("mlflow.parentRunId", "")),
                run.data.params,
                {key: value for key, value in run.data.tags.items() if key in kept},
                {key: self._points(run, key) for key in run.data.metrics},
                sorted(file.path for below in (None, "model") for file in mlflow.list_artifacts(run_id, below)),
                [(int(version.version), version.source.replace(place, "ARTIFACTS")) for version in versions],
            )
        return found

    def exactly(self) -> dict[str, Any]:
        """All that MLflow holds, with ids and times, and every object beside the runs with the time of its writing."""
        found: dict[str, Any] = {info.key: (info.size, info.version, info.modified) for info in self.storage.list()}
        for run in self.all:
            curves = {key: self.client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            times = {key: [(at.step, at.value, at.timestamp) for at in curve] for key, curve in curves.items()}
            found[run.info.run_id] = (dict(run.info), run.data.params, run.data.tags, times)
        return found


class Subject:
    """A search with one trial, or a training: what both trackers promise is tested with it."""

    def __init__(self, what: str, runs: Runs) -> None:
        self.is_search, self.runs = what == "search", runs
        self.name = TRIALS[0] if self.is_search else TRAINING
        """The run that has the epochs."""
        self.whole = runs.whole_search if self.is_search else runs.whole_training

    def start(self) -> Tracker:
        return self.runs.search_tracker() if self.is_search else self.runs.run_tracker()

    def record(self, tracker: Any, status: str, epochs: int, later_ms: int = 0) -> None:
        if self.is_search:
            tracker.record_trial(self.runs.trial(0, status, epochs, later_ms=later_ms))
        else:
            tracker.record(self.runs.training(status, epochs, later_ms))

    @property
    def run(self) -> Run:
        return self.runs.held[self.name]

    @property
    def epochs(self) -> list[int]:
        return [step for step, _ in self.runs.points(self.name, "val/bpd")]


def undisturbed(folder: Path, empty_database: Path) -> dict[str, dict[str, Held]]:
    """What MLflow holds of a whole search and of a whole training."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for what in ("search", "training"):
            subject = Subject(what, Runs.below(folder, empty_database))
            subject.whole()
            found[what] = subject.runs.content()
    return found


@contextlib.contextmanager
def running_server(folder: Path, empty_database: Path) -> Iterator[Server]:
    """An MLflow server."""
    server = Server(folder)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    server.start()
    yield server
    server.kill()

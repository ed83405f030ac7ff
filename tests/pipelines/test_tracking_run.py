"""A training as one MLflow run: never two, every epoch once and in order, one model version, whatever dies when.

Real MLflow throughout: on SQLite, and a real server.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fvae import ConfigError
from pipelines import background_tracker
from pipelines.registry import model_location
from pipelines.storage import Storage, open_storage
from pipelines.tracking import EpochSnapshot, RunTracker, TrialSnapshot
from tests.fault_proxy import FaultProxy
from tests.pipelines.mlflow_server import Server
from tests.pipelines.searches import client, history, make_trial, open_tracker, points, runs_of, storage_of

pytestmark = pytest.mark.core

PROJECT = Path(__file__).resolve().parents[2]
NAME, MODEL = "train-digits", "fvae-digits"


@pytest.fixture
def runs_dir(tmp_path, empty_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def run_tracker(runs: Path | Storage, **changes) -> RunTracker:
    settings = {"storage": storage_of(runs), "dataset_name": "digits", "run_name": NAME, "write_interval": 3600.0}
    tracker = RunTracker(**settings | {"tags": {"workers": "2"}} | changes)
    tracker.start()
    return tracker


def training(runs: Path | Storage, status: str, epochs: int, later_ms: int = 0) -> TrialSnapshot:
    """Its epochs have system metrics, and are ``later_ms`` later than the first time."""
    snapshot = make_trial(0, status, epochs, runs)
    system = tuple(
        EpochSnapshot(epoch, time_ms + later_ms, {**values, "system/cpu_utilization_percentage": 50.0 + epoch})
        for epoch, time_ms, values in history(epochs)
    )
    return dataclasses.replace(snapshot, id=NAME, history=system, registered_as=MODEL)


def train(runs: Path | Storage, later_ms: int = 0) -> RunTracker:
    """The whole of it, with MLflow up to date after epochs 0, 2, 4 and at the end."""
    tracker = run_tracker(runs)
    for epochs in (0, 2, 4):
        tracker.record(training(runs, "running", epochs, later_ms))
        tracker.flush()
    tracker.record(training(runs, "complete", 5, later_ms))
    tracker.close()
    assert tracker.problems == []
    return tracker


def check_finished(runs: Path | Storage, mlflow=None) -> None:
    """One run with all there is to it, one version of its model."""
    mlflow = mlflow or client(runs)
    experiment = mlflow.get_experiment_by_name("fvae/digits")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["status"]) == (NAME, "FINISHED", "complete")
    assert run.data.params["model.encoder_width"] == "32"
    for key in ("val/bpd", "grad_norm", "system/cpu_utilization_percentage", "best/val_bpd_so_far"):
        assert [point.step for point in mlflow.get_metric_history(run.info.run_id, key)] == [1, 2, 3, 4, 5]
    for key in ("best/val_bpd", "test/bpd", "size/params"):
        assert len(mlflow.get_metric_history(run.info.run_id, key)) == 1
    assert sorted(file.path for file in mlflow.list_artifacts(run.info.run_id)) == ["model", "samples.png"]
    (version,) = mlflow.search_model_versions(f"name = '{MODEL}'")
    assert (version.run_id, int(version.version)) == (run.info.run_id, 1)
    assert version.source == f"{run.info.artifact_uri}/model"


def test_one_run_of_its_own(runs_dir):
    tracker = run_tracker(runs_dir)
    assert tracker.flush()
    run_id = tracker.run_id
    run = runs_of(runs_dir)[NAME]
    assert (run.info.run_id, run.info.status) == (run_id, "RUNNING")
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["workers"] == "2"
    for epochs in (0, 1, 1, 3):
        tracker.record(training(runs_dir, "running", epochs))
        assert tracker.flush()
    assert [step for step, _ in points(runs_dir, run, "val/bpd")] == [1, 2, 3]
    assert tracker.model_version is None
    tracker.record(training(runs_dir, "complete", 5))
    tracker.close()
    assert (tracker.run_id, tracker.model_version, tracker.problems) == (run_id, 1, [])
    check_finished(runs_dir)
    again = train(runs_dir)
    assert (again.run_id, again.model_version) == (run_id, 1)
    check_finished(runs_dir)


@pytest.mark.parametrize(("interrupted", "status"), [(True, "KILLED"), (False, "FAILED")])
def test_a_training_that_breaks_off_goes_on_in_its_run(runs_dir, interrupted, status):
    tracker = run_tracker(runs_dir)
    tracker.record(training(runs_dir, "running", 2))
    tracker.close(interrupted=interrupted)
    run = runs_of(runs_dir)[NAME]
    assert (run.info.status, run.data.tags["status"]) == (status, "interrupted")
    tracker = run_tracker(runs_dir)
    tracker.record(training(runs_dir, "running", 3))
    assert tracker.flush()
    assert (runs_of(runs_dir)[NAME].info.status, tracker.run_id) == ("RUNNING", run.info.run_id)
    tracker.record(training(runs_dir, "complete", 5))
    tracker.close()
    check_finished(runs_dir)


def test_another_training_is_another_run_and_another_version(runs_dir):
    first = train(runs_dir)
    tracker = run_tracker(runs_dir, run_name="train-again")
    tracker.record(training(runs_dir, "complete", 5))
    tracker.close()
    assert tracker.run_id != first.run_id
    assert (first.model_version, tracker.model_version) == (1, 2)


def test_a_run_nested_under_a_trials_search(runs_dir):
    search = open_tracker(runs_dir, dataset_name="photos")
    search.finish()
    search.close()
    mlflow = client(runs_dir)
    experiment = mlflow.get_experiment_by_name("fvae/photos")
    (parent,) = mlflow.search_runs([experiment.experiment_id])
    for _ in range(2):
        tracker = run_tracker(runs_dir, parent_run_id=parent.info.run_id)
        tracker.record(training(runs_dir, "complete", 5))
        tracker.close()
        assert tracker.problems == []
    run = mlflow.get_run(tracker.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert len(mlflow.search_runs([experiment.experiment_id])) == 2
    assert mlflow.get_experiment_by_name("fvae/digits") is None


def test_a_parent_that_is_not_there_is_a_problem(runs_dir):
    tracker = run_tracker(runs_dir, parent_run_id="0" * 32)
    assert not tracker.flush()
    assert "0" * 32 in tracker.problems[0]
    tracker.close(timeout=1)
    assert tracker.run_id is None


def test_a_model_to_be_registered_must_be_there(runs_dir):
    complete = training(runs_dir, "complete", 2)
    with pytest.raises(ValueError, match="no artifact 'model'"):
        dataclasses.replace(complete, artifacts=())


def test_on_s3_the_model_is_registered_where_it_lies(machine, bucket, empty_database):
    from pipelines.tracking_database import database_path

    machine("A")
    runs = open_storage(f"{bucket}/runs")
    database_path(runs).parent.mkdir(parents=True)
    shutil.copyfile(empty_database, database_path(runs))
    train(runs)
    check_finished(runs)
    (version,) = client(runs).search_model_versions(f"name = '{MODEL}'")
    assert version.source.startswith(f"{bucket}/runs/mlartifacts/")
    machine("B")
    assert train(runs).model_version == 1
    check_finished(runs)


DYING_TRAINING = """
import pathlib, sys
sys.path[:0] = {paths!r}
from tests.pipelines.dying import die_at
import test_tracking_run

die_at({owner!r}, {name!r}, {call!r}, {when!r})
test_tracking_run.train(pathlib.Path({runs_dir!r}))
"""

KILLS = {
    "run made": ("client", "create_run", 1, "after"),
    "metrics without tags": ("store", "_set_tags", 3, "before"),
    "half uploaded": ("client", "log_artifact", 1, "after"),
    "version made": ("client", "create_model_version", 1, "after"),
}


@pytest.fixture(scope="module")
def killed_trainings(tmp_path_factory, empty_database):
    """For each of ``KILLS`` the runs directory that a killed driver left."""

    def train_until_killed(point: str) -> Path:
        owner, name, call, when = KILLS[point]
        runs_dir = tmp_path_factory.mktemp("killed")
        shutil.copyfile(empty_database, runs_dir / "mlflow.db")
        paths = [str(PROJECT), str(Path(__file__).parent)]
        script = DYING_TRAINING.format(
            paths=paths, owner=owner, name=name, call=call, when=when, runs_dir=str(runs_dir)
        )
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        return runs_dir

    with ThreadPoolExecutor(max_workers=3) as pool:
        return dict(zip(KILLS, pool.map(train_until_killed, KILLS), strict=True))


@pytest.mark.parametrize("point", KILLS)
def test_the_driver_killed_at_any_point_then_the_same_again(killed_trainings, point, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(killed_trainings[point], later_ms=77)  # what had not been counted is trained again
    check_finished(killed_trainings[point])


@pytest.fixture
def server(tmp_path, empty_database):
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


def test_a_server_killed_and_answers_lost_in_the_middle(server, tmp_path, monkeypatch):
    """The answers to the run's, the model's and its version's creation never arrive; it dies as an epoch arrives."""
    from mlflow import MlflowClient

    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,) * 5)
    creations = ("runs/create", "registered-models/create", "model-versions/create")
    deadly: list[str] = []

    def counted(method: str, path: str) -> bool:
        if deadly and path.endswith(deadly[0]):
            deadly.clear()
            server.kill()
        return path.endswith(creations)

    with FaultProxy(server.url, {1: "reset", 2: "reset", 4: "reset"}, counted=counted) as proxy:
        tracker = run_tracker(tmp_path, tracking_uri=proxy.url)
        tracker.flush()
        assert proxy.faults  # the run is there, but nobody was told
        for epochs in (1, 2):
            tracker.record(training(tmp_path, "running", epochs))
            assert tracker.flush()
        deadly.append("runs/log-batch")
        tracker.record(training(tmp_path, "running", 3))
        assert not tracker.flush()
        assert tracker.problems
        tracker.record(training(tmp_path, "running", 4))
        assert not tracker.flush()
        server.start()
        assert tracker.flush()
        assert tracker.problems == []
        tracker.record(training(tmp_path, "complete", 5))
        tracker.close()
        assert tracker.problems == []
        assert [Path(request.path).parent.name for request in proxy.faults] == [
            "runs",
            "registered-models",
            "model-versions",
        ]
    assert tracker.model_version == 1
    check_finished(tmp_path, MlflowClient(server.url))
    with (
        pytest.raises(ConfigError, match="model.safetensors is missing"),  # it was no model, but it was fetched
        model_location(f"models:/{MODEL}/1", server.url),
    ):
        pass

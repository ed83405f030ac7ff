"""Retrainings that are killed, meet each other, or lose MLflow, S3 or their search on the way: nothing is half done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipelines.retraining import registered_model as registered_module
from pipelines.retraining.promotion import Promoter
from pipelines.retraining.registered_model import CHAMPION, RegisteredModel
from pipelines.storage import open_storage
from pipelines.tracking.database import database_path
from pipelines.training.events import EpochDone, Event
from pipelines.training.run import Training
from tests.pipelines import forked_commands
from tests.pipelines.forks import Fork
from tests.pipelines.retraining.retrainings import (
    MODEL,
    MOMENTS,
    ROOT,
    Registry,
    called,
    command,
    config_file,
    data_set,
    options_of,
    pixels,
    retrain,
)
from tests.pipelines.tracking.mlflow_server import Server
from tests.pipelines.training.one_process import without_ray
from tests.pipelines.training.training_cluster import make_room
from tests.s3 import FaultProxy
from tests.waiting import ended, until

pytestmark = pytest.mark.faults

BETTER = {"epochs": 6}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default places are in ``tmp_path``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(tmp_path: Path, empty_database: Path) -> Path:
    """A place for runs, with MLflow's tables made."""
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "runs/mlflow.db")
    return tmp_path / "runs"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray: commands in this process train in it."""
    without_ray(monkeypatch)


@pytest.fixture
def room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a worker on the cluster, which commands use."""
    make_room(cluster, 1, monkeypatch)


def first_champion(storage: str | Path, data: str, folder: Path) -> None:
    said = called(storage, "--dataset", data, "--config", config_file(folder / "first.json"))
    assert said.status == 0, said


def test_killed_again_and_again_the_job_is_done_once(alone: None, runs: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path, pixels(500))
    first_champion(runs, data, tmp_path)
    data_set(tmp_path, pixels(800))
    options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))
    registry = Registry.of(runs)
    said = {}
    for moment in MOMENTS:
        fork = Fork(tmp_path / f"said-{moment}", forked_commands.retrain, options_of(runs, *options), moment)
        assert fork.end() == -signal.SIGKILL, fork.said()
        said[moment] = fork.said()
        assert registry.alias() == (2 if moment == "moved" else 1)
        finished = [run for run in registry.decisions() if run.info.status == "FINISHED"]
        assert [run.data.tags["decision"] for run in finished] == ["promoted"]
    done = called(runs, *options)
    assert done.status == 0, done
    assert "Completing a decision that was interrupted: promoted: version 2" in done.out
    assert registry.alias() == 2 and registry.outcomes() == ["promoted", "promoted"]
    trainings = registry.trainings()
    assert len(trainings) == 2 and registry.versions() == [1, 2]
    (second,) = [run for run in trainings if run.data.params["train.epochs"] == "6"]
    epochs = registry.client.get_metric_history(second.info.run_id, "val/bpd")
    assert sorted(metric.step for metric in epochs) == [1, 2, 3, 4, 5, 6]
    assert "goes on from step" in said["trained"]
    for moment in ("reading", "alias"):  # it was trained already
        assert not [line for line in said[moment].splitlines() if line.startswith("epoch ")]
    # Of the three readings of 200 test images the first was kept.
    assert "Measuring the challenger, version 2: 400 samples" in said["alias"]
    assert "Measuring the champion, version 1: 600 samples" in said["alias"]
    assert not (runs / f"retrain-{MODEL}" / "decision" / "pending.json").exists()
    again = called(runs, *options)
    assert again.status == 0 and registry.outcomes()[-1] == "unchanged"


def test_ctrl_c_leaves_a_job_that_goes_on(
    room: None, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set(tmp_path, pixels(500))
    options = ("--dataset", data, "--config", config_file(tmp_path / "long.json", {"epochs": 60}))
    hear = Training._on_event

    def hearing(self: Training, event: Event) -> None:
        hear(self, event)
        if isinstance(event, EpochDone) and event.metrics.epoch == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_on_event", hearing)
        done = called(runs, *options)
    assert done.status == 1, done
    assert "Interrupted. The same command goes on where it stopped" in done.out
    assert Registry.of(runs).decisions() == []
    without_ray(monkeypatch)
    again = called(runs, *options)
    assert again.status == 0 and "goes on from step" in again.out.replace("\n", " "), again
    (training,) = Registry.of(runs).trainings()
    logged = Registry.of(runs).client.get_metric_history(training.info.run_id, "val/bpd")
    assert sorted(metric.step for metric in logged) == list(range(1, 61))
    assert Registry.of(runs).outcomes() == ["promoted"]


def test_of_two_at_once_one_waits_and_finds_nothing_to_do(runs: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path, pixels(500))
    options = options_of(runs, "--dataset", data, "--config", config_file(tmp_path / "first.json"))
    first = Fork(tmp_path / "first", forked_commands.slow_retrain, options, tmp_path)
    until((tmp_path / "begun").exists, "the first trains")
    second = Fork(tmp_path / "second", forked_commands.retrain, options)
    until(lambda: "Waiting for another retraining of fvae-scans: " in second.said(), "the second waits")
    (tmp_path / "go").touch()
    assert (first.end(), second.end()) == (0, 0), first.said() + second.said()
    assert "promoted: version 1" in first.said() and "Waiting" not in first.said()
    assert "unchanged: version 1" in second.said()
    assert Registry.of(runs).outcomes() == ["promoted", "unchanged"]
    assert len(Registry.of(runs).trainings()) == 1


# --- MLflow and S3 ----------------------------------------------------------------------------------------------------


def test_a_server_of_mlflow_that_is_away(
    alone: None, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    shutil.copyfile(empty_database, tmp_path / "server/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    pending = runs / f"retrain-{MODEL}" / "decision" / "pending.json"
    better = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))

    def without_server(*options: str) -> None:
        """The command gives MLflow up after half a second, and says so in one line."""
        with monkeypatch.context() as patch:
            patch.setattr(registered_module, "PATIENCE", 0.5)
            said = called(runs, *options)
        assert said.status == 1, said
        (line,) = said.err.splitlines()
        assert line.startswith("error: ") and server.url in line
        assert not [line for line in said.out.splitlines() if line.startswith("epoch ")]

    try:
        without_server("--dataset", data, "--config", config_file(tmp_path / "first.json"))
        server.start()
        first_champion(runs, data, tmp_path)
        registry = Registry(server.url)
        assert registry.alias() == 1
        place = registry.client.get_experiment_by_name("fvae/scans").artifact_location
        assert place.startswith("mlflow-artifacts:")  # the models go through the server too

        data_set(tmp_path, pixels(800))
        with monkeypatch.context() as patch:  # when all is measured
            carry_out = Promoter.carry_out

            def lost(self: Promoter, decision: Any, check: Any) -> Any:
                server.kill()
                patch.setattr(registered_module, "PATIENCE", 0.5)
                return carry_out(self, decision, check)

            patch.setattr(Promoter, "carry_out", lost)
            said = called(runs, *better)
        assert said.status == 1 and len(said.err.splitlines()) == 1, said
        assert not pending.exists()

        server.start()
        assert registry.alias() == 1 and registry.outcomes() == ["promoted"]
        with monkeypatch.context() as patch:  # when the decision is written and the alias is about to move
            set_alias = RegisteredModel.set_alias

            def lost_again(self: RegisteredModel, alias: str, number: int) -> None:
                if alias == CHAMPION:
                    server.kill()
                    patch.setattr(registered_module, "PATIENCE", 0.5)
                set_alias(self, alias, number)

            patch.setattr(RegisteredModel, "set_alias", lost_again)
            said = called(runs, *better)
        assert said.status == 1 and len(said.err.splitlines()) == 1, said
        assert f"error: {MODEL}@champion: {server.url}" in said.err
        assert "starting" not in said.out and pending.exists()
        assert not [line for line in said.out.splitlines() if line.startswith("epoch ")]  # it was trained already
        without_server(*better)
        assert pending.exists()

        server.start()
        assert registry.alias() == 1
        said = called(runs, *better)
        assert said.status == 0, said
        assert "Completing a decision that was interrupted: promoted: version 2" in said.out
        assert registry.alias() == 2 and registry.outcomes() == ["promoted", "promoted"]
        assert len(registry.trainings()) == 2 and not pending.exists()
    finally:
        server.kill()


def test_a_store_that_is_away(
    alone: None, s3: str, bucket: str, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, data = f"{bucket}/runs", data_set(tmp_path, pixels(500), f"{bucket}/data")
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.dead = True
        said = called(runs, "--dataset", data, "--config", config_file(tmp_path / "first.json"))
        assert said.status == 1 and said.err.startswith("error: s3://"), said
        proxy.dead = False
        first_champion(runs, data, tmp_path)
        registry = Registry(f"sqlite:///{database_path(open_storage(runs))}")
        assert registry.alias() == 1

        data_set(tmp_path, pixels(800), data)
        options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))
        with monkeypatch.context() as patch:
            carry_out = Promoter.carry_out

            def lost(self: Promoter, decision: Any, check: Any) -> Any:
                proxy.dead = True
                return carry_out(self, decision, check)

            patch.setattr(Promoter, "carry_out", lost)
            said = called(runs, *options)
        assert said.status == 1 and said.err.startswith("error: s3://"), said
        proxy.dead = False
        assert registry.alias() == 1 and registry.outcomes() == ["promoted"]

        # Another machine takes it up: it has neither the files nor the database.
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        said = called(runs, *options)
        assert said.status == 0, said
        there = Registry(f"sqlite:///{database_path(open_storage(runs))}")
        assert there.alias() == 2 and there.outcomes() == ["promoted", "promoted"]
        store = open_storage(runs)
        assert not store.child(f"retrain-{MODEL}").exists("decision/pending.json")

        # What the last step needs is in the store: the alias of a reader on a third machine has moved.
        third = tmp_path / "third"
        third.mkdir()
        monkeypatch.chdir(third)
        assert "unchanged: version 2" in called(runs, "--dataset", data).out


# --- the search -------------------------------------------------------------------------------------------------------


def test_a_search_that_lost_its_parent_ends_and_the_next_job_goes_on_with_it(
    room: None, runs: Path, tmp_path: Path
) -> None:
    data = data_set(tmp_path, pixels(500))
    words = "--search-options=--trials 2 --families flow --epochs 60 --concurrent 1"
    options = ("--dataset", data, "--search", "20m", words, "--max-params", "3000")
    with (tmp_path / "output").open("w") as output:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command(runs, *options), env=environment, stdout=output, stderr=output)

    def trials() -> list[Path]:
        assert process.poll() is None, (tmp_path / "output").read_text()
        return list(runs.glob("retrain-search-scans-*/trials/*/trial.json"))

    try:
        until(lambda: len(trials()) > 0, "a trial")
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    finally:
        process.kill()
        process.wait()
    until(lambda: ended(child), "the search ends")
    done = retrain(runs, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    registry = Registry.of(runs)
    assert registry.alias() == 1 and registry.outcomes() == ["promoted"]
    assert len(list(runs.glob("retrain-search-scans-*/trials/*"))) == 2
    tags = registry.decisions()[0].data.tags
    assert "of the search retrain-search-scans-" in tags["config"]
    assert " on validation images" in tags["config"]
    assert registry.decisions()[0].data.metrics["size/params"] <= 3000

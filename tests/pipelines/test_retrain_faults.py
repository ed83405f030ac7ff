"""Retrainings that are killed, meet each other, or lose MLflow, S3 or the champion on the way: nothing is half done."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from pipelines.retraining import registered as registered_module
from pipelines.retraining.desk import Desk
from pipelines.retraining.weighing import Scales
from pipelines.storage import open_storage
from pipelines.tracking_database import database_path
from tests.pipelines.mlflow_server import Server
from tests.pipelines.retrainings import (
    MODEL,
    ROOT,
    Registry,
    called,
    command,
    config_file,
    data_set,
    pixels,
    retrain,
)
from tests.pipelines.training_cluster import HASTE, grow
from tests.s3 import FaultProxy

pytestmark = pytest.mark.faults

BETTER = {"epochs": 6}


@pytest.fixture(autouse=True)
def ready(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room for a worker, whatever the test before has lost; one thread for what is measured here."""
    grow(cluster, 1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name, value in HASTE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dying(moment: str, storage: str | Path, *options: str) -> str:
    """The command, killed at a moment; what it said."""
    script = [sys.executable, str(ROOT / "tests/pipelines/retrainings.py"), moment]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = command(storage, *options)[3:]
    done = subprocess.run([*script, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return done.stdout


def first_champion(storage: str | Path, data: str, folder: Path) -> None:
    said = called(storage, "--dataset", data, "--config", config_file(folder / "first.json"))
    assert said.status == 0, said


def test_killed_again_and_again_the_job_is_done_once(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    first_champion(runs, data, tmp_path)
    data_set(tmp_path, pixels(800))
    options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))
    registry = Registry.of(runs)
    said = {}
    for moment in ("epoch", "reading", "alias"):
        said[moment] = dying(moment, runs, *options)
        assert registry.alias() == 1
        finished = [run for run in registry.decisions() if run.info.status == "FINISHED"]
        assert [run.data.tags["decision"] for run in finished] == ["promoted"]
    done = retrain(runs, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completing a decision that was interrupted: promoted: version 2" in done.stdout
    assert registry.alias() == 2 and registry.outcomes() == ["promoted", "promoted"]
    trainings = registry.trainings()
    assert len(trainings) == 2 and registry.versions() == [1, 2]
    (second,) = [run for run in trainings if run.data.params["train.epochs"] == "6"]
    epochs = registry.client.get_metric_history(second.info.run_id, "val/bpd")
    assert sorted(metric.step for metric in epochs) == [1, 2, 3, 4, 5, 6]
    assert "goes on from step" in said["reading"]
    assert not [line for line in said["alias"].splitlines() if line.startswith("epoch ")]
    # Of the three readings of 200 test images the first was kept.
    assert "Measuring the challenger, version 2: 400 samples" in said["alias"]
    assert "Measuring the champion, version 1: 600 samples" in said["alias"]
    assert not (runs / f"retrain-{MODEL}" / "decision" / "pending.json").exists()
    again = called(runs, *options)
    assert again.status == 0 and registry.outcomes()[-1] == "unchanged"


def test_ctrl_c_leaves_a_job_that_goes_on(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    options = ("--dataset", data, "--config", config_file(tmp_path / "long.json", {"epochs": 150}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(runs, *options), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.split()[:2] == ["epoch", "3/150"]:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 1, said
    assert "Interrupted. The same command goes on where it stopped" in said
    assert Registry.of(runs).decisions() == []
    again = called(runs, *options)
    assert again.status == 0 and "goes on from step" in again.out.replace("\n", " "), again
    (training,) = Registry.of(runs).trainings()
    logged = Registry.of(runs).client.get_metric_history(training.info.run_id, "val/bpd")
    assert sorted(metric.step for metric in logged) == list(range(1, 151))
    assert Registry.of(runs).outcomes() == ["promoted"]


def test_of_two_at_once_one_waits_and_finds_nothing_to_do(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    options = ("--dataset", data, "--config", config_file(tmp_path / "first.json", {"epochs": 30}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    first, second = (
        subprocess.Popen(
            command(runs, *options), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    )
    said = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], said
    waited, trained = sorted(said, key=lambda text: "Waiting for another retraining of fvae-scans: " not in text)
    assert "Waiting for another retraining of fvae-scans: " in waited and "unchanged: version 1" in waited, said
    assert "promoted: version 1" in trained and "Waiting" not in trained, said
    assert Registry.of(runs).outcomes() == ["promoted", "unchanged"]
    assert len(Registry.of(runs).trainings()) == 1


def test_who_waits_too_long_gives_up(tmp_path: Path) -> None:
    from pipelines.lease import exclusive

    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(100))
    with exclusive(open_storage(runs).child(f"retrain-{MODEL}")):
        said = called(runs, "--dataset", data, "--wait", "1s")
    assert said.status == 1
    assert "error: another retraining of fvae-scans still runs after 1s of waiting" in said.err


# --- a hand in the registry -------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, tuple[str, ...], Registry]:
    """Runs with version 1 in service and version 2, which is much better, on the shelf; a job whose data has grown."""
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    first_champion(runs, data, tmp_path)
    data_set(tmp_path, pixels(800))
    long = config_file(tmp_path / "long.json", {"epochs": 25})
    assert called(runs, "--dataset", data, "--config", long).status == 0
    assert called(runs, "--rollback").status == 0
    data_set(tmp_path, pixels(900))
    options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))
    registry = Registry.of(runs)
    assert registry.alias() == 1
    return runs, options, registry


def test_a_champion_set_by_hand_meanwhile_is_what_the_challenger_must_beat(
    two: tuple[Path, tuple[str, ...], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, options, registry = two
    weigh, calls = Scales.weigh, []

    def weighing(self: Scales, model: Any, what: str) -> Any:
        calls.append(what)
        if len(calls) == 2:  # while the champion is measured
            registry.client.set_registered_model_alias(MODEL, "champion", "2")
        return weigh(self, model, what)

    monkeypatch.setattr(Scales, "weigh", weighing)
    said = called(runs, *options)
    assert said.status == 0, said
    assert "Somebody else has changed the champion meanwhile: deciding again" in said.out
    assert calls == ["challenger, version 3", "champion, version 1", "challenger, version 3", "champion, version 2"]
    assert said.out.count("Training ") == 1
    last = registry.decisions()[-1].data
    assert registry.outcomes() == ["promoted", "promoted", "rolled-back", "kept"]
    assert registry.alias() == 2 and last.tags["champion.before"] == last.tags["champion.after"] == "2"
    assert last.metrics["difference/low"] > 0

    # Somebody who never stops changing it is left alone.
    calls.clear()
    carry_out = Desk.carry_out

    def interfering(self: Desk, decision: Any, check: Any) -> Any:
        now = registry.alias()
        registry.client.set_registered_model_alias(MODEL, "champion", "1" if now == 2 else "2")
        return carry_out(self, decision, check)

    monkeypatch.setattr(Desk, "carry_out", interfering)
    said = called(runs, *options, "--again")
    assert said.status == 1
    assert "the champion was changed 3 times while this was decided, and is left as it is" in said.err
    assert registry.outcomes() == ["promoted", "promoted", "rolled-back", "kept"]


# --- MLflow and S3 ----------------------------------------------------------------------------------------------------


def test_a_server_of_mlflow_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setattr(registered_module, "PATIENCE", 0.5)
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    try:
        said = called(runs, "--dataset", data, "--config", config_file(tmp_path / "first.json"))
        assert said.status == 1 and "epoch" not in said.out
        (line,) = said.err.splitlines()
        assert line.startswith("error: ") and server.url in line
        monkeypatch.setattr(registered_module, "PATIENCE", 60.0)
        server.start()
        first_champion(runs, data, tmp_path)
        registry = Registry(server.url)
        assert registry.alias() == 1
        place = registry.client.get_experiment_by_name("fvae/scans").artifact_location
        assert place.startswith("mlflow-artifacts:")  # the models go through the server too

        data_set(tmp_path, pixels(800))
        options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", BETTER))
        with monkeypatch.context() as patch:  # when all is weighed
            carry_out = Desk.carry_out

            def lost(self: Desk, decision: Any, check: Any) -> Any:
                server.kill()
                return carry_out(self, decision, check)

            patch.setattr(Desk, "carry_out", lost)
            patch.setattr(registered_module, "PATIENCE", 0.5)
            said = called(runs, *options)
        assert said.status == 1 and len(said.err.splitlines()) == 1, said
        server.start()
        assert registry.alias() == 1 and registry.outcomes() == ["promoted"]
        said = called(runs, *options)
        assert said.status == 0 and "starting" not in said.out, said
        assert not [line for line in said.out.splitlines() if line.startswith("epoch ")]  # it was trained already
        assert registry.alias() == 2 and registry.outcomes() == ["promoted", "promoted"]
        assert len(registry.trainings()) == 2
    finally:
        server.kill()


def test_a_store_that_is_away(
    s3: str, bucket: str, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            carry_out = Desk.carry_out

            def lost(self: Desk, decision: Any, check: Any) -> Any:
                proxy.dead = True
                return carry_out(self, decision, check)

            patch.setattr(Desk, "carry_out", lost)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    words = "--search-options=--trials 2 --families flow --epochs 60 --concurrent 1"
    options = ("--dataset", data, "--search", "5m", words, "--max-params", "3000")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(runs, *options), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    (search,) = wait_for(lambda: list(runs.glob("retrain-search-scans-*")), process)
    wait_for(lambda: list(search.glob("trials/*/trial.json")), process)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]:
            break
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    done = retrain(runs, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    registry = Registry.of(runs)
    assert registry.alias() == 1 and registry.outcomes() == ["promoted"]
    assert len(list(runs.glob("retrain-search-scans-*/trials/*"))) == 2
    tags = registry.decisions()[0].data.tags
    assert "of the search retrain-search-scans-" in tags["config"]
    assert " on validation images" in tags["config"]
    assert registry.decisions()[0].data.metrics["size/params"] <= 3000


def wait_for(found: Any, process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if got := found():
            return got
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])

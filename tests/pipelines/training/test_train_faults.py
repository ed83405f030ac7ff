"""Training jobs that lose a worker, a machine, the driver, MLflow or S3 at five moments each, and end all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

import pipelines.training.ray_environment  # noqa: F401
from fvae import Trainer, load
from pipelines.storage import open_storage
from pipelines.tracking.settings import default_tracking_uri
from pipelines.train import main
from pipelines.training import worker as train_worker
from pipelines.training.settings import TrainSettings
from tests.commands import Called, call
from tests.pipelines import forked_commands
from tests.pipelines.forks import ROOT, Fork
from tests.pipelines.tracking.mlflow_server import Server
from tests.pipelines.training.faulty_training import STEPS, Faults, faulty
from tests.pipelines.training.training_cluster import make_room
from tests.pipelines.training.trainings import EPOCHS, OPTIONS, uninterrupted
from tests.s3 import FaultProxy
from tests.waiting import DEADLINE, until

pytestmark = pytest.mark.faults

MOMENTS = ("step:1", f"step:{STEPS + 5}", "write:3", "evaluation:3", "end")
"""Before the first checkpoint, in mid-epoch, while a checkpoint is written, in a validation, when all is trained."""


@pytest.fixture(scope="module")
def whole() -> Trainer:
    """The same training by fvae alone, uninterrupted."""
    return uninterrupted()


@pytest.fixture
def room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster with room for two workers, which commands in this process and those started from it use."""
    make_room(cluster, 2, monkeypatch)
    return cluster


class Job:
    """One job and the faults that come to it. Every start of it goes on with the faults that have not come yet."""

    def __init__(
        self, folder: Path, loss: str, *options: str, storage: str | None = None, moments: tuple[str, ...] = MOMENTS
    ) -> None:
        self.folder, self.storage, self.moments = folder, storage or str(folder / "runs"), moments
        self.plan = [[moment, loss] for moment in moments]
        where = ("--storage", self.storage, "--name", "job", "--checkpoint-minutes", "0.0003")
        self.options = [*OPTIONS, *where, *options]
        self._forks = 0

    def here(self, patch: pytest.MonkeyPatch) -> Called:
        """The command in this process, its workers on the cluster."""
        patch.setattr(train_worker, "train", faulty(Faults(self.folder, self.plan, os.getpid())))
        return call(main, TrainSettings, *self.options)

    def start(self) -> subprocess.Popen[str]:
        """The command in a process of its own, its workers on the cluster; its output is in the file ``output``."""
        script = [sys.executable, str(ROOT / "tests/pipelines/training/faulty_training.py"), str(self.folder)]
        with (self.folder / "output").open("w") as output:
            return subprocess.Popen(
                [*script, json.dumps(self.plan), *self.options],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
                text=True,
            )

    def fork(self) -> Fork:
        """The command in a fork, which is its only worker too."""
        self._forks += 1
        log = self.folder / f"said-{self._forks}"
        return Fork(log, forked_commands.train, self.folder, self.plan, self.options)

    def output(self) -> str:
        """What the command that was started has printed."""
        return (self.folder / "output").read_text()

    def log(self) -> list[dict[str, Any]]:
        """Where workers began and faults came."""
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    @contextmanager
    def outside(self, deed: Callable[[str], None]) -> Iterator[None]:
        """Within the block, ``deed(moment)`` is done whenever the job has come to a moment, where it then waits."""

        def serve() -> None:
            left = list(self.moments)
            while left and not over.wait(0.02):
                for moment in [each for each in left if (self.folder / each).exists()]:
                    deed(moment)
                    left.remove(moment)

        over = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def go_on(self, moment: str) -> None:
        """Let the job go on from a moment at which it waits."""
        (self.folder / f"{moment}.done").touch()


def check(job: Job, whole: Trainer, to_the_bit: bool = True, tracking_uri: str | None = None) -> None:
    """All faults came; nothing but time was lost."""
    storage = open_storage(job.storage)
    run = storage.child("job")
    result = json.loads(run.read("result.json"))
    assert result["status"] == "complete"
    measured = [(each["epoch"], each["train_bpd"], each["val_bpd"]) for each in result["history"]]
    expected = [(each.epoch, each.train_bpd, each.val_bpd) for each in whole.history]
    assert [each[0] for each in measured] == list(range(1, EPOCHS + 1))

    downloaded = job.folder / "downloaded"
    run.download("model", downloaded)
    weights, theirs = load(downloaded).state_dict(), whole.best_model().state_dict()
    if to_the_bit:
        assert measured == expected
        assert all(torch.equal(weights[name], theirs[name]) for name in theirs)
    else:
        assert [value for each in measured for value in each[1:]] == pytest.approx(
            [value for each in expected for value in each[1:]], abs=1e-3
        )
    assert not [info.key for info in run.list() if "/." in f"/{info.key}" and not info.key.endswith(".lock")]

    client = MlflowClient(tracking_uri or default_tracking_uri(storage))
    (experiment,) = [each for each in client.search_experiments() if each.name == "fvae/digits"]
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert mlflow_run.info.status == "FINISHED"
    logged = sorted(client.get_metric_history(mlflow_run.info.run_id, "val/bpd"), key=lambda metric: metric.timestamp)
    assert [metric.step for metric in logged] == list(range(1, EPOCHS + 1))
    assert [metric.value for metric in logged] == [each[2] for each in measured]
    assert "model" in {artifact.path for artifact in client.list_artifacts(mlflow_run.info.run_id)}

    log = [line for line in job.log() if line.get("rank", 0) == 0]
    faults = [line["fault"] for line in log if "fault" in line]
    assert sorted(faults) == sorted(job.moments)  # writing is in the background, so their order may be another


def check_losses(job: Job) -> None:
    """After each loss the job went on from the last checkpoint: at most an interval before it."""
    log = [line for line in job.log() if line.get("rank", 0) == 0]
    before_the_end = [moment for moment in job.moments if ":" in moment]
    assert len([line for line in log if "begin" in line]) > len(before_the_end)
    for index, line in enumerate(log):
        later = [each["begin"] for each in log[index:] if "begin" in each]
        if "fault" in line and later:  # none is after the end: nothing was left to train
            assert line["step"] - STEPS <= later[0] <= line["step"]


def test_the_worker_is_killed(room: Cluster, whole: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, "worker")
    done = job.here(monkeypatch)
    assert done.status == 0, done
    check(job, whole)
    check_losses(job)
    assert done.out.count("goes on") == len(job.moments)


@pytest.mark.timeout(1200)
def test_whole_machines_are_killed(room: Cluster, whole: Trainer, tmp_path: Path) -> None:
    # Workers may be started on a machine before Ray has missed it: how many failures a loss is depends on the clock.
    job = Job(tmp_path, "node", "--workers", "2", "--max-failures", "100")
    process = job.start()
    replaced: set[str] = set()
    try:
        deadline = time.monotonic() + 2 * DEADLINE
        while process.poll() is None and time.monotonic() < deadline:
            for moment in job.moments:
                if moment not in replaced and (tmp_path / moment).exists():
                    replaced.add(moment)
                    room.add_node(wait=False, num_cpus=1)  # in this thread, says Ray
            time.sleep(0.05)
        assert process.poll() == 0, job.output()
    finally:
        process.kill()
        process.wait()
    check(job, whole, to_the_bit=False)
    check_losses(job)


def test_the_driver_is_killed(room: Cluster, whole: Trainer, tmp_path: Path) -> None:
    job = Job(tmp_path, "driver", moments=(MOMENTS[1],))
    assert job.start().wait(DEADLINE) == -signal.SIGKILL, job.output()
    assert job.start().wait(DEADLINE) == 0, job.output()
    check(job, whole)
    check_losses(job)


def test_the_process_of_driver_and_worker_is_killed(whole: Trainer, empty_database: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "runs/mlflow.db")
    job = Job(tmp_path, "driver", moments=(*MOMENTS, "result", "told"))
    for _ in job.moments:
        fork = job.fork()
        assert fork.end() == -signal.SIGKILL, fork.said()
    fork = job.fork()
    assert fork.end() == 0, fork.said()
    check(job, whole)
    check_losses(job)


def test_the_mlflow_server_is_killed(
    whole: Trainer, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    shutil.copyfile(empty_database, tmp_path / "server/mlflow.db")
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    job = Job(tmp_path, "outside")

    def kill(moment: str) -> None:
        server.kill()
        job.go_on(moment)
        server.start()

    try:
        with job.outside(kill):
            fork = job.fork()
            assert fork.end() == 0, fork.said()
        fork = job.fork()  # whatever MLflow still lacks, the same command brings it
        assert fork.end() == 0 and "warning" not in fork.said(), fork.said()
        check(job, whole, tracking_uri=server.url)
    finally:
        server.kill()


def test_s3_is_away_for_a_while(
    room: Cluster, whole: Trainer, s3: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the job keeps its working copy of MLflow's database
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        job = Job(tmp_path, "outside", storage=bucket)

        def away(moment: str) -> None:
            before = len(proxy.requests)
            proxy.dead = True
            job.go_on(moment)
            until(lambda: len(proxy.requests) > before + 1, f"two requests while S3 is away at {moment}")
            proxy.dead = False

        with job.outside(away):
            done = job.here(monkeypatch)
    assert done.status == 0, done
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    check(job, whole)
    assert "attempt" in done.out  # it says that it tries again

"""Training jobs that lose a worker, a machine, the driver, MLflow or S3 at five moments each, and end all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

import pipelines.ray_environment  # noqa: F401
from fvae import Trainer, load
from pipelines.mlflow_settings import default_tracking_uri
from pipelines.storage import open_storage
from tests.pipelines.mlflow_server import Server
from tests.pipelines.training_cluster import HASTE, grow
from tests.pipelines.trainings import EPOCHS, OPTIONS, uninterrupted
from tests.s3 import FaultProxy

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
STEPS = 10
"""Of an epoch."""
MOMENTS = ("step:1", f"step:{STEPS + 5}", "write:3", "evaluation:3", "end")
"""Before the first checkpoint, in mid-epoch, while a checkpoint is written, in a validation, when all is trained."""
USUAL = {"driver": (1, 4), "node": (0, 3), "mlflow": (2, 4), "s3": (1, 2)}
"""Which of them, where ``--every-moment`` is not given; a worker is lost at all of them."""


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> Callable[[str], tuple[str, ...]]:
    """When something of this kind is lost."""

    def of(kind: str) -> tuple[str, ...]:
        usual = MOMENTS if kind == "worker" else tuple(MOMENTS[number] for number in USUAL[kind])
        return MOMENTS if request.config.getoption("--every-moment") else usual

    return of


@pytest.fixture(scope="module")
def whole() -> Trainer:
    """The same training by fvae alone, uninterrupted."""
    return uninterrupted()


Moments = Callable[[str], tuple[str, ...]]


class Job:
    """One job and the faults that come to it."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        storage: str,
        loss: str,
        moments: tuple[str, ...],
        *options: str,
        **environment: str,
    ) -> None:
        grow(cluster, 2)
        self.folder, self.storage, self.moments, self.options = folder, storage, moments, options
        self.faults = json.dumps([[moment, loss] for moment in moments])
        self.environment = {**os.environ, **HASTE, "RAY_ADDRESS": cluster.address, **environment}

    def start(self) -> subprocess.Popen[str]:
        script = [sys.executable, str(ROOT / "tests/pipelines/faulty_training.py"), str(self.folder), self.faults]
        where = ["--storage", self.storage, "--name", "job", "--checkpoint-minutes", "0.0003"]
        return subprocess.Popen(
            [*script, *OPTIONS, *where, *self.options],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        """Exit status, and what it said."""
        process = self.start()
        try:
            said = process.communicate(timeout=550)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(process.communicate()[0]) from None
        return process.returncode, said

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def outside(self, deed: Callable[[], None]) -> threading.Event:
        """Do something whenever the job has come to a moment, while it waits, until the event is set."""

        def serve() -> None:
            left = set(self.moments)
            while left and not over.wait(0.02):
                for moment in [each for each in left if (self.folder / each).exists()]:
                    deed()
                    (self.folder / f"{moment}.done").touch()
                    left.remove(moment)

        over = threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        return over


def check(job: Job, whole: Trainer, to_the_bit: bool = True, tracking_uri: str | None = None) -> None:
    """All five faults came; nothing but time was lost."""
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


def check_losses(job: Job) -> None:
    """After each loss the job went on from the last checkpoint: at most an interval before it."""
    log = [line for line in job.log() if line.get("rank", 0) == 0]
    faults = [index for index, line in enumerate(log) if "fault" in line]
    assert sorted(log[index]["fault"] for index in faults) == sorted(job.moments)  # writing is in the background
    assert len([line for line in log if "begin" in line]) >= len(job.moments)
    for index in faults:
        later = [line["begin"] for line in log[index:] if "begin" in line]
        if later:  # none is after the end: nothing was left to train
            assert log[index]["step"] - STEPS <= later[0] <= log[index]["step"]


def test_the_worker_is_killed(cluster: Cluster, whole: Trainer, moments: Moments, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, str(tmp_path / "runs"), "worker", moments("worker"))
    status, said = job.run()
    assert status == 0, said
    check(job, whole)
    check_losses(job)
    assert said.count("goes on") == len(job.moments)


def test_the_driver_is_killed(cluster: Cluster, whole: Trainer, moments: Moments, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, str(tmp_path / "runs"), "driver", moments("driver"))
    assert [job.run()[0] for _ in job.moments] == [-signal.SIGKILL] * len(job.moments)
    status, said = job.run()
    assert status == 0, said
    check(job, whole)
    check_losses(job)


def test_whole_machines_are_killed(cluster: Cluster, whole: Trainer, moments: Moments, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, str(tmp_path / "runs"), "node", moments("node"), "--workers", "2")
    process = job.start()
    lost = 0
    while process.poll() is None:
        if len([moment for moment in job.moments if (tmp_path / moment).exists()]) > lost:
            lost += 1
            cluster.add_node(num_cpus=1)  # in this thread, says Ray
        time.sleep(0.05)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    check(job, whole, to_the_bit=False)
    check_losses(job)


def test_the_mlflow_server_is_killed(cluster: Cluster, whole: Trainer, moments: Moments, tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.start()
    job = Job(tmp_path, cluster, str(tmp_path / "runs"), "outside", moments("mlflow"), MLFLOW_TRACKING_URI=server.url)
    busy = threading.Lock()

    def start_again() -> None:
        with busy:
            server.start()

    def kill() -> None:
        with busy:
            server.kill()
        threading.Thread(target=start_again, daemon=True).start()

    over = job.outside(kill)
    try:
        status, said = job.run()
        assert status == 0, said
        with busy:
            status, said = job.run()
        assert status == 0 and "warning" not in said, said
        check(job, whole, tracking_uri=server.url)
    finally:
        over.set()
        with busy:
            server.kill()


def test_s3_is_away_for_a_while(
    cluster: Cluster,
    whole: Trainer,
    moments: Moments,
    s3: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the job keeps its working copy of MLflow's database
    seconds = 60.0 if request.config.getoption("--every-moment") else 2.0
    with FaultProxy(s3) as proxy:
        job = Job(tmp_path, cluster, bucket, "outside", moments("s3"), AWS_ENDPOINT_URL=proxy.url)

        def locked_lately() -> bool:
            """The store answered when the job last renewed its lock: no two outages may cost it its lease."""
            renewals = [each for each in proxy.requests if each.method == "PUT" and "/.lock" in each.path]
            return not proxy.dead and bool(renewals) and not renewals[-1].fault

        def away() -> None:
            while not locked_lately() and not over.is_set():
                time.sleep(0.05)
            proxy.dead = True
            threading.Timer(seconds, lambda: setattr(proxy, "dead", False)).start()

        over = job.outside(away)
        status, said = job.run()
        over.set()
    assert status == 0, said
    check(job, whole)
    assert "attempt" in said  # it says that it tries again

"""A spot machine is taken back in mid-epoch: the training on it checkpoints first, and goes on elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.cluster.aws_account import ROOT
from tests.cluster.metadata_server import metadata_server

DEADLINE = 240.0
OURS, OTHERS = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"
TRAINING = (
    "--dataset digits --name taken --model.family flow --model.flow-depth 6 --model.coupling-width 48 "
    "--train.batch-size 8 --train.epochs 3 --checkpoint-minutes 60 --keep-checkpoints 20"
)
SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def until(holds: Callable[[], Any], what: str, process: subprocess.Popen[bytes], log: Path) -> Any:
    """What ``holds`` returns, once that is true; the training must not end before."""
    end = time.monotonic() + DEADLINE
    while not (found := holds()):
        assert process.poll() is None, f"{what}: the training has ended before\n{log.read_text()}"
        assert time.monotonic() < end, f"not within {DEADLINE:.0f} s: {what}\n{log.read_text()}"
        time.sleep(0.1)
    return found


def step_of(checkpoint: str) -> int:
    """The number in a checkpoint's name."""
    return int(checkpoint.removesuffix(".safetensors").split("-")[1])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def add_machine(cluster: Cluster, instance: str) -> Any:
    """One with that EC2 instance id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_CLOUD_INSTANCE_ID", instance)
        return cluster.add_node(num_cpus=2)


def test_training_checkpoints_before_its_machine_goes_and_ends_on_another(cluster: Cluster, tmp_path: Path) -> None:
    taken = add_machine(cluster, OURS)
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
    command = [sys.executable, "-m", "pipelines.train", *TRAINING.split(), "--storage", str(tmp_path / "runs")]
    log, checkpoints = tmp_path / "log", tmp_path / "runs" / "taken" / "checkpoints"

    def saved() -> list[str]:
        return sorted(path.name for path in checkpoints.glob("step-*.safetensors")) if checkpoints.exists() else []

    with log.open("wb") as file:
        training = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
    try:
        first = until(saved, "the first epoch's checkpoint", training, log)
        with metadata_server(OURS) as service:
            service.give_notice(120)
            watching = [sys.executable, "-m", "pipelines.cluster.spot_watcher", "--address", cluster.address]
            watcher = subprocess.Popen(
                watching, cwd=ROOT, env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}
            )
            try:
                noticed = time.monotonic()
                within = until(
                    lambda: [name for name in saved() if "-val-" not in name],
                    "a checkpoint within an epoch",
                    training,
                    log,
                )
                seconds = time.monotonic() - noticed
            finally:
                watcher.kill()
                watcher.wait()
        assert seconds < 60, f"EC2 gives two minutes; this took {seconds:.0f} s"
        print(f"checkpoint {within[0]} {seconds:.1f} s after the notice")
        add_machine(cluster, OTHERS)
        cluster.remove_node(taken, allow_graceful=False)
        assert training.wait(DEADLINE) == 0, log.read_text()
    finally:
        training.kill()
        training.wait()
    result = json.loads((tmp_path / "runs" / "taken" / "result.json").read_text())
    assert result["status"] == "complete", result
    step, epoch = step_of(within[0]), step_of(first[0])
    assert f"goes on from step {step - epoch} of epoch 2" in log.read_text(), "nothing before the notice was lost"

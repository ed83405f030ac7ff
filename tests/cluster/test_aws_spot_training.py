"""A spot machine is taken back in mid-epoch: the training on it checkpoints first, and goes on elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
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

pytestmark = pytest.mark.faults

DEADLINE = 200.0
OURS, OTHERS = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"
TRAINING = (
    "--dataset digits --name taken --model.family flow --model.flow-depth 8 --model.coupling-width 64 "
    "--train.batch-size 4 --train.epochs 1000 --checkpoint-minutes 60 --keep-checkpoints 1000"
)
STEPS = 315
"""Of an epoch: the digits in batches of 4."""
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


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, while the block runs."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


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


def test_training_checkpoints_before_its_machine_goes_and_goes_on_on_another(cluster: Cluster, tmp_path: Path) -> None:
    taken = add_machine(cluster, OURS)
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
    command = [sys.executable, "-m", "pipelines.train", *TRAINING.split(), "--storage", str(tmp_path / "runs")]
    log, checkpoints = tmp_path / "log", tmp_path / "runs" / "taken" / "checkpoints"

    def saved() -> list[str]:
        return sorted(path.name for path in checkpoints.glob("step-*.safetensors")) if checkpoints.exists() else []

    with contextlib.ExitStack() as stack:
        service = stack.enter_context(metadata_server(OURS))
        watcher_log = tmp_path / "watcher.log"
        watch = [
            sys.executable,
            "-m",
            "pipelines.cluster.spot_watcher",
            "--address",
            cluster.address,
            "--seconds",
            "0.1",
        ]
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}
        stack.enter_context(running(watch, ROOT, os.environ | endpoint, watcher_log))
        training = stack.enter_context(running(command, tmp_path, environment, log))
        until(saved, "the first epoch's checkpoint", training, log)
        service.give_notice(120)
        noticed = time.monotonic()

        def within_epochs() -> list[str]:
            return [name for name in saved() if "-val-" not in name]

        (taken_at, *_) = until(within_epochs, "a checkpoint within an epoch", training, log)
        seconds = time.monotonic() - noticed
        assert seconds < 100, f"EC2 gives two minutes; this took {seconds:.0f} s\n{watcher_log.read_text()}"
        print(f"checkpoint {taken_at} {seconds:.1f} s after the notice")
        add_machine(cluster, OTHERS)
        cluster.remove_node(taken, allow_graceful=False)
        newest = step_of(saved()[-1])
        until(lambda: " goes on from step " in log.read_text(), "another machine goes on", training, log)
        until(lambda: step_of(saved()[-1]) > newest, "it trains there", training, log)
    goes_on = re.search(r"goes on from step (\d+) of epoch (\d+)", log.read_text())
    assert goes_on
    position = int(goes_on[1]) + (int(goes_on[2]) - 1) * STEPS
    assert position >= step_of(taken_at), "nothing from before the notice is trained again"

"""A spot machine is taken back in mid-epoch: the training on it checkpoints first, and goes on elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_POLL_INTERVAL_S

from pipelines.cluster.spot_watcher import WatcherSettings
from pipelines.training.checkpoint_clock import LOOK_SECONDS
from tests.cluster.aws_account import ROOT
from tests.cluster.metadata_server import metadata_server
from tests.pipelines.training import training_cluster
from tests.processes import running
from tests.waiting import until

pytestmark = pytest.mark.faults

OURS, OTHERS = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"
TRAINING = (
    "--dataset digits --name taken --model.family flow --model.flow-depth 8 --model.coupling-width 64 "
    "--train.batch-size 4 --train.epochs 1000 --checkpoint-minutes 60 --keep-checkpoints 1000"
)
STEPS = 315
"""Of an epoch: the digits in batches of 4."""


def step_of(checkpoint: str) -> int:
    """The number in a checkpoint's name."""
    return int(checkpoint.removesuffix(".safetensors").split("-")[1])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room."""
    cluster = training_cluster.start()
    yield cluster
    cluster.shutdown()


def add_machine(cluster: Cluster, instance: str) -> Any:
    """One with that EC2 instance id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_CLOUD_INSTANCE_ID", instance)
        return training_cluster.add_machine(cluster, num_cpus=2)


def test_training_checkpoints_before_its_machine_goes_and_goes_on_on_another(cluster: Cluster, tmp_path: Path) -> None:
    taken = add_machine(cluster, OURS)
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
    command = [sys.executable, "-m", "pipelines.train", *TRAINING.split(), "--storage", str(tmp_path / "runs")]
    log, checkpoints = tmp_path / "log", tmp_path / "runs" / "taken" / "checkpoints"

    def saved() -> list[str]:
        return sorted(path.name for path in checkpoints.glob("step-*.safetensors")) if checkpoints.exists() else []

    def until_there_is(what: str, holds: Callable[[], Any]) -> None:
        def there() -> bool:
            assert training.poll() is None, f"{what}: the training has ended before\n{log.read_text()}"
            return bool(holds())

        until(there, f"{what} ({log})")

    with contextlib.ExitStack() as stack:
        service = stack.enter_context(metadata_server(OURS))
        watcher_log = tmp_path / "watcher.log"
        watch = [sys.executable, "-m", "pipelines.cluster.spot_watcher", "--address", cluster.address]
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}
        stack.enter_context(running([*watch, "--seconds", "0.1"], ROOT, os.environ | endpoint, watcher_log))
        training = stack.enter_context(running(command, tmp_path, environment, log))
        until_there_is("the first epoch's checkpoint", saved)
        service.give_notice(1200)  # a busy machine takes longer than EC2's two minutes

        def within_epochs() -> list[str]:
            return [name for name in saved() if "-val-" not in name]

        until_there_is("a checkpoint within an epoch", within_epochs)
        taken_at = within_epochs()[0]
        add_machine(cluster, OTHERS)
        cluster.remove_node(taken, allow_graceful=False)
        newest = step_of(saved()[-1])
        until_there_is("training on another machine", lambda: " goes on from step " in log.read_text())
        until_there_is("a later checkpoint", lambda: step_of(saved()[-1]) > newest)
    goes_on = re.search(r"goes on from step (\d+) of epoch (\d+)", log.read_text())
    assert goes_on
    position = int(goes_on[1]) + (int(goes_on[2]) - 1) * STEPS
    assert position >= step_of(taken_at), "nothing from before the notice is trained again"


def test_all_that_is_waited_for_after_a_notice_leaves_time_for_the_checkpoint() -> None:
    """EC2 gives two minutes."""
    assert WatcherSettings(address="head:6379").seconds + DEFAULT_PREEMPTION_POLL_INTERVAL_S + LOOK_SECONDS <= 30

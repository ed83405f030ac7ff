"""A spot machine that is about to be lost, and a watcher that is: on a real Ray and with a real supervisord."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from tests.cluster.aws_account import ROOT
from tests.cluster.metadata_server import MetadataServer, metadata_server
from tests.processes import running

pytestmark = pytest.mark.faults

DEADLINE = 540.0
OURS, OTHERS = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"


@pytest.fixture
def service() -> Iterator[MetadataServer]:
    """The metadata service of our instance."""
    with metadata_server(OURS) as service:
        yield service


def until(holds: Callable[[], Any], what: str) -> Any:
    """What ``holds`` returns, once that is true."""
    end = time.monotonic() + DEADLINE
    while not (found := holds()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def watcher(service: MetadataServer, address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The watcher as a process of its own."""
    command = [sys.executable, "-m", "pipelines.cluster.spot_watcher", "--address", address, "--seconds", "0.1"]
    environment = os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}
    with running(command, ROOT, environment, log) as process:
        yield process


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room and two machines, which know their instance ids as the autoscaler gives them."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for instance in (OURS, OTHERS):
        monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", instance)
        cluster.add_node(num_cpus=2)
    monkeypatch.delenv("RAY_CLOUD_INSTANCE_ID")
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote(num_cpus=1)
class Holder:
    """Work under way."""

    def where(self) -> str:
        """The Ray node it runs on."""
        return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
def where() -> str:
    """The Ray node that a task was given to."""
    return ray.get_runtime_context().get_node_id()


def test_a_noticed_machine_is_drained_and_gets_no_new_work(
    cluster: Cluster, service: MetadataServer, tmp_path: Path
) -> None:
    gcs = GcsClient(address=cluster.address)
    nodes = {info.instance_id: info.node_id.hex() for info in gcs.get_all_node_info(timeout=DEADLINE).values()}
    stays = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes[OURS], soft=False)
    holder = Holder.options(scheduling_strategy=stays).remote()
    assert ray.get(holder.where.remote()) == nodes[OURS], "work under way, or Ray would end the machine's node at once"
    log = tmp_path / "log"
    with watcher(service, cluster.address, log) as process:
        until(lambda: "watching" in log.read_text(), "the watcher runs")
        assert gcs.get_draining_nodes() == {}
        assert {ray.get(where.remote()) for _ in range(4)} <= set(nodes.values())
        service.give_notice(3600)
        until(gcs.get_draining_nodes, "Ray drains the machine")
        draining = {(key if isinstance(key, str) else key.hex()): end for key, end in gcs.get_draining_nodes().items()}
        assert list(draining) == [nodes[OURS]]
        given = datetime.fromisoformat(json.loads(service.texts["spot/instance-action"])["time"])
        assert draining[nodes[OURS]] == given.timestamp() * 1000, "with the time that EC2 gave"
        tasks = ray.get([where.remote() for _ in range(6)], timeout=DEADLINE)
        assert set(tasks) == {nodes[OTHERS]}, "new work goes elsewhere"
        assert ray.get(holder.where.remote(), timeout=DEADLINE) == nodes[OURS], "old work may finish"
        assert process.poll() is None, "it goes on until the machine's time is up"
    assert "drained: Ray gives i-0aaaaaaaaaaaaaaaa no new work" in log.read_text()


def test_supervisord_starts_a_killed_watcher_again(service: MetadataServer, tmp_path: Path) -> None:
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_HEAD_IP": "127.0.0.1",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url,
    }
    config = ROOT / "pipelines" / "cluster" / "spot_watcher.conf"

    def control(*words: str) -> str:
        command = ["supervisorctl", "-c", str(config), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()

    def pid() -> int:
        said = control("pid", "spot-watcher")
        return int(said) if said.isdigit() else 0

    log = tmp_path / "spot-watcher.log"
    subprocess.run(["supervisord", "-c", str(config)], env=environment, check=True)
    try:
        first = until(pid, "supervisord starts the watcher")
        until(lambda: log.exists() and "watching" in log.read_text(), "it watches")
        until(lambda: "RUNNING" in control("status"), "supervisord calls it running")
        os.kill(first, signal.SIGKILL)
        until(lambda: pid() not in (0, first), "another one is started")
        until(lambda: log.read_text().count("watching") == 2, "it watches too")
        assert (tmp_path / ".spot-watcher.sock").stat().st_mode & 0o077 == 0
    finally:
        control("shutdown")
        until(lambda: not (tmp_path / ".spot-watcher.pid").exists(), "supervisord ends")

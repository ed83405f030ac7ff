"""A Ray cluster of several nodes on this machine, for training jobs."""

from __future__ import annotations

from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.waiting import DEADLINE

HASTE = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
"""How often Ray Train looks after its workers, as commands set it."""


SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A machine that is gone is missed after 2 s, not half a minute."""


def start() -> Cluster:
    """A head without room for workers; :func:`grow` adds machines."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM, "wait": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    _wait_for(cluster, cluster.head_node)
    return cluster


def grow(cluster: Cluster, workers: int) -> None:
    """See that there is room for so many workers, a machine for each. In the main thread only, says Ray."""
    alive = [node for node in cluster.worker_nodes if node.remaining_processes_alive()]
    for _ in range(workers - len(alive)):
        add_machine(cluster)


def make_room(cluster: Cluster, workers: int, patch: pytest.MonkeyPatch) -> None:
    """As :func:`grow`; commands in this process and those started from it use the cluster while the patch lasts."""
    grow(cluster, workers)
    patch.setenv("RAY_ADDRESS", cluster.address)
    for name, value in HASTE.items():
        patch.setenv(name, value)


def add_machine(cluster: Cluster, num_cpus: int = 1) -> Any:
    """One more machine, once it is there."""
    node = cluster.add_node(wait=False, num_cpus=num_cpus)
    _wait_for(cluster, node)
    return node


def _wait_for(cluster: Cluster, node: Any) -> None:
    """Ray's own ``wait=True`` gives a node half a minute, which is not enough on a busy machine."""
    cluster._wait_for_node(node, DEADLINE)

"""A Ray cluster of several nodes on this machine, for training jobs."""

from __future__ import annotations

from ray.cluster_utils import Cluster

HASTE = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
"""Ray Train looks after its workers more often than every 2 s."""


SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A machine that is gone is missed after 2 s, not half a minute."""


def start() -> Cluster:
    """A head without room for workers; :func:`grow` adds machines."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM}
    return Cluster(initialize_head=True, head_node_args=head)


def grow(cluster: Cluster, workers: int) -> None:
    """See that there is room for so many workers, a machine for each. In the main thread only, says Ray."""
    alive = [node for node in cluster.worker_nodes if node.remaining_processes_alive()]
    for _ in range(workers - len(alive)):
        cluster.add_node(num_cpus=1)

"""Waits for the machines that a cluster's autoscaler is about to start."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # missing in Ray's own stub
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.util.placement_group import placement_group, remove_placement_group

DECIDING_SECONDS = 20.0
"""How long an autoscaler may take to begin to start a machine: it looks every 5 s."""
LOOK_SECONDS = 1.0

log = logging.getLogger("pipelines.storage")  # what the commands show


def await_machines(bundles: Sequence[Mapping[str, float]], enough: Callable[[], bool]) -> None:
    """Ask for ``bundles`` of resources, each on one machine, and wait until ``enough()``.

    Returns without them where the cluster has no autoscaler, or none is starting: the caller reports what is lacking.
    The request is withdrawn, also when this process is killed.
    """
    if enough() or _autoscaling() is None:
        return
    log.warning("Waiting for machines (%s) …", _description(bundles))
    asked = placement_group([dict(bundle) for bundle in bundles])
    try:
        deadline = time.monotonic() + DECIDING_SECONDS
        while not enough() and time.monotonic() < deadline:
            state = _autoscaling()
            if state and (state.pending_instance_requests or state.pending_instances):
                deadline = time.monotonic() + DECIDING_SECONDS
            time.sleep(LOOK_SECONDS)
    finally:
        remove_placement_group(asked)


def _autoscaling() -> AutoscalingState | None:
    """The state of the autoscaler; None where the cluster has none."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply.autoscaling_state if reply.autoscaling_state.autoscaler_state_version else None


def _description(bundles: Sequence[Mapping[str, float]]) -> str:
    """The bundles in words, equal ones counted: ``2 × 4 CPU and 1 GPU, 8 CPU``."""
    counts = collections.Counter(
        " and ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount) for bundle in bundles
    )
    return ", ".join(f"{count} × {text}" if count > 1 else text for text, count in counts.items())

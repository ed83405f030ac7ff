"""Waiting for machines that a cluster's autoscaler is about to bring."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # missing in Ray's own stub
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.util.placement_group import placement_group, remove_placement_group

DECIDING_SECONDS = 20.0
"""How long an autoscaler may take to begin to bring what is asked for: it looks every 5 s."""
LOOK_SECONDS = 1.0

log = logging.getLogger("pipelines.storage")  # what the commands show


def await_machines(bundles: Sequence[Mapping[str, float]], enough: Callable[[], bool]) -> None:
    """Ask for ``bundles`` of resources, each on one machine, and wait until ``enough()``.

    Returns without it where no autoscaler is there to bring machines, or none is on its way: the caller says what is
    lacking. What was asked for is withdrawn, also when this process is killed.
    """
    if enough() or _autoscaling() is None:
        return
    log.warning("Waiting for machines (%s) …", ", ".join(_text(bundle, bundles) for bundle in _different(bundles)))
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
    """What the autoscaler is about; None where there is none."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply.autoscaling_state if reply.autoscaling_state.autoscaler_state_version else None


def _different(bundles: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    return [bundle for place, bundle in enumerate(bundles) if bundle not in bundles[:place]]


def _text(bundle: Mapping[str, float], bundles: Sequence[Mapping[str, float]]) -> str:
    count = sum(each == bundle for each in bundles)
    return f"{count} × " * (count > 1) + " and ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount)

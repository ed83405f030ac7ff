"""What workers need, in the words of messages, and the machines that an autoscaler starts for them."""

from __future__ import annotations

import pytest
from ray._raylet import InnerGcsClient
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from pipelines.training import autoscaler
from pipelines.training.worker_resources import each_worker

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("cpus", "gpus", "words"),
    [(1, 0, "1 CPU"), (2, 0, "2 CPUs"), (1, 1, "1 CPU and 1 GPU"), (4, 0.5, "4 CPUs and 0.5 GPUs")],
)
def test_what_a_worker_needs(cpus: float, gpus: float, words: str) -> None:
    assert each_worker(cpus, gpus) == words


def test_equal_machines_are_counted() -> None:
    worker, head = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 0.0}
    assert autoscaler._description([worker]) == "4 CPU and 1 GPU"
    assert autoscaler._description([worker, head, dict(worker)]) == "2 × 4 CPU and 1 GPU, 8 CPU"


def test_ray_s_autoscaler_has_the_fields_that_are_read() -> None:
    """Private parts of Ray: where this fails, Ray has changed, and so must ``autoscaler.py``."""
    fields = AutoscalingState.DESCRIPTOR.fields_by_name
    assert {"autoscaler_state_version", "pending_instance_requests", "pending_instances"} <= set(fields)
    assert callable(InnerGcsClient.get_cluster_status)  # GcsClient passes its calls on to it

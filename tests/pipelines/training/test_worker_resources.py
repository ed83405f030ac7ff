"""What workers need, in the words of messages."""

from __future__ import annotations

import pytest

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

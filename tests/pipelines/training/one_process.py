"""Training jobs whose only worker is the process of the command itself, for the tests of what surrounds a training.

Ray Train itself runs the workers in ``test_train_command.py``, ``test_retrain.py`` and ``test_train_faults.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import ray.train
import torch

from fvae.data.images import Dataset
from pipelines.training import worker as train_worker
from pipelines.training import worker_group
from pipelines.training.events import Event, Events
from pipelines.training.worker_loop import carry_out
from pipelines.training.worker_resources import WorkerResources


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone, a training starts no Ray: its loop runs in the thread that starts the job."""
    patch.setattr(worker_group, "job_session", lambda dataset, resources: contextlib.nullcontext())
    patch.setattr(worker_group, "ray_images", _images)
    patch.setattr(worker_group, "run_job", _run_job)
    patch.setattr(train_worker, "get_device", lambda: torch.device("cpu"))
    patch.setattr(ray.train, "get_preemption_info", lambda: None)


class Direct(Events):
    """Events that need no queue and no Ray Train: each is handed over at once."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.put = on_event  # type: ignore[method-assign]

    def report(self, event: Event, metrics: Mapping[str, Any]) -> None:
        self.put(event)


def _images(dataset: Dataset, splits: Sequence[str]) -> dict[str, Any]:
    return {split: dataset.images(split) for split in splits}


def _run_job(
    loop: Callable[[Any, Any], Any],
    config: Any,
    *,
    name: str,
    resources: WorkerResources,
    max_failures: int,
    on_event: Callable[[Event], None],
    resize_seconds: float = 0.0,
) -> Any:
    """:func:`pipelines.training.worker_group.run_job` with one worker, which is not started again."""

    threads = torch.get_num_threads()
    torch.set_num_threads(resources.cpus)
    try:
        return carry_out(loop, config, Direct(on_event))
    finally:
        torch.set_num_threads(threads)

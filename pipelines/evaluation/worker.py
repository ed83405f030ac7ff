"""What every worker of an evaluation does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import ray
from ray.train.torch import get_device
from torch import Tensor

from fvae import ModelConfig, build
from fvae.workers import Workers
from pipelines.evaluation.image_scores import Reading, measure
from pipelines.training.worker_group import Events, SentImages, fetched

SAY_SECONDS = 1.0
"""Between two words of how much a worker has done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What a worker is told, the same for all of them. Picklable."""

    model: ModelConfig
    weights: ray.ObjectRef[Mapping[str, Tensor]]
    """The model's state in Ray's object store."""
    images: SentImages
    readings: tuple[Reading, ...]
    seed: int
    split: str


def evaluate_task(task: EvaluationTask, events: Events) -> None:
    """Take every reading of ``task`` together with the other workers.

    Events: from every worker ``samples`` (how many it has done since it last said so); from worker 0 ``measured``, a
    reading's fields.
    """
    workers = Workers.of_process_group()
    model = build(task.model)
    model.load_state_dict(ray.get(task.weights))
    model.to(get_device())
    done, said = 0, time.monotonic()

    def tell() -> None:
        nonlocal done, said
        events.put({"samples": done})
        done, said = 0, time.monotonic()

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        if time.monotonic() - said >= SAY_SECONDS:
            tell()

    images = fetched(task.images)
    readings = measure(model, images, task.readings, seed=task.seed, split=task.split, workers=workers, advance=advance)
    for measured in readings:
        tell()
        if workers.rank == 0:
            events.put({"measured": tuple(measured)})

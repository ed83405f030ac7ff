"""The evaluation loop of every worker: measures its share of each reading."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import ray
from ray.train.torch import get_device
from torch import Tensor

from fvae import ModelConfig, build
from fvae.workers import Workers
from pipelines.evaluation.image_scores import Measured, Reading, measure
from pipelines.training.events import Event, Events
from pipelines.training.worker_group import SentImages, fetched

SEND_SECONDS = 1.0
"""From one event of a worker's progress to the next."""


@dataclasses.dataclass(frozen=True)
class SamplesDone(Event):
    """Progress of one worker within a reading."""

    count: int
    """Samples since its last such event."""


@dataclasses.dataclass(frozen=True)
class ReadingDone(Event):
    """A reading that is complete. Reported by all workers."""

    measured: Measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What the workers measure, the same for all of them. Picklable."""

    model: ModelConfig
    weights: ray.ObjectRef[Mapping[str, Tensor]]
    """The model's state in Ray's object store."""
    images: SentImages
    readings: tuple[Reading, ...]
    seed: int
    split: str


def evaluate_task(task: EvaluationTask, events: Events) -> None:
    """Take every reading of ``task`` together with the other workers.

    Events: ``SamplesDone`` of every worker, and ``ReadingDone``.
    """
    workers = Workers.of_process_group()
    model = build(task.model)
    model.load_state_dict(ray.get(task.weights))
    model.to(get_device())
    done, sent = 0, time.monotonic()

    def send() -> None:
        nonlocal done, sent
        events.put(SamplesDone(done))
        done, sent = 0, time.monotonic()

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        if time.monotonic() - sent >= SEND_SECONDS:
            send()

    images = fetched(task.images)
    readings = measure(model, images, task.readings, seed=task.seed, split=task.split, workers=workers, advance=advance)
    for measured in readings:
        send()
        figures = {"reading": measured.reading.column, "bits_per_dim": float(measured.bits.mean())}
        events.report(ReadingDone(measured), figures | {"seconds": measured.seconds})

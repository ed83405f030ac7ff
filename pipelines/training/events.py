"""Events: what the workers of a job send to the driver while they run. Ray is not imported: the driver shows what is
done without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fvae.epoch_metrics import EpochMetrics

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from pipelines.training.job import TrainResult


@dataclasses.dataclass(frozen=True)
class Event:
    """The base class of all events. Picklable."""


@dataclasses.dataclass(frozen=True)
class Notice(Event):
    """A line for the user: a retry of the storage, or an error after which the workers may start again."""

    line: str


@dataclasses.dataclass(frozen=True)
class TrainingStarted(Event):
    """The workers of a training begin, or begin again. Sent by worker 0."""

    history: tuple[EpochMetrics, ...]
    """The epochs that the checkpoint holds from which they continue."""
    workers: int
    step: int
    """Steps that are done."""


@dataclasses.dataclass(frozen=True)
class StepDone(Event):
    """Progress within an epoch. Sent by worker 0."""

    step: int


@dataclasses.dataclass(frozen=True)
class EpochDone(Event):
    """The metrics of an epoch. Reported by all workers, sent by worker 0."""

    metrics: EpochMetrics
    system: dict[str, float]
    """System metrics of the workers, by MLflow's names."""


@dataclasses.dataclass(frozen=True)
class TrainingDone(Event):
    """A training has ended, and its model is kept. Sent by worker 0, which may be lost before Ray Train looks."""

    result: TrainResult


class Events:
    """Sends events from a worker, or from Ray Train's controller, to the driver.

    They do not travel in Ray Train's own reports, which are a collective call that the controller collects every now
    and then: a report that waits there is lost with the workers, or when one of them fails.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def put(self, event: Event) -> None:
        """Send ``event`` at once, from any thread; returns when it has arrived. Raises ``RayError`` without driver."""
        self._queue.put(event)

    def report(self, event: Event, metrics: Mapping[str, Any]) -> None:
        """Send worker 0's ``event``, and then call :func:`ray.train.report` with ``metrics``.

        Every worker calls it at the same point of its loop. Without a checkpoint: the workers write their own, which
        are verified.

        Args:
            event: of the same kind on every worker.
            metrics: numbers and words by name, for Ray's own callbacks and logs.
        """
        import ray.train

        if ray.train.get_context().get_world_rank() == 0:
            self.put(event)
        ray.train.report(dict(metrics))

"""Events: what the workers of a job send to the driver while they run. Ray is not imported: the driver shows what is
done without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fvae.epoch_metrics import EpochMetrics

if TYPE_CHECKING:
    from ray.util.queue import Queue

EVENT = "event"
"""Key of the event among the metrics of a report."""


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
    """The metrics of an epoch. Reported by all workers."""

    metrics: EpochMetrics
    system: dict[str, float]
    """System metrics of the workers, by MLflow's names."""


class Events:
    """Sends events from a worker, or from Ray Train's controller, to the driver.

    Epochs and the like go through :meth:`report`, which Ray Train knows too. It is a collective call that keeps one
    report at a time, so it serves neither progress within an epoch nor warnings, which come from any thread of any
    worker: these go through :meth:`put`.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def put(self, event: Event) -> None:
        """Send ``event`` at once, from any thread; returns when it has arrived. Raises ``RayError`` without driver."""
        self._queue.put(event)

    def report(self, event: Event, metrics: Mapping[str, Any]) -> None:
        """Send ``event`` with :func:`ray.train.report`, which every worker calls at the same point of its loop.

        The driver receives worker 0's, after those that it sent before. Without a checkpoint: the workers write
        their own, which are verified.

        Args:
            event: of the same kind on every worker.
            metrics: numbers and words by name, for Ray's own callbacks and logs.
        """
        import ray.train

        ray.train.report({**metrics, EVENT: event})

"""An evaluation on several workers, through Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ray
from torch import Tensor

from fvae.data.images import Dataset
from fvae.model import Model
from pipelines.evaluation.image_scores import Measured, Reading
from pipelines.evaluation.worker import EvaluationTask, ReadingDone, SamplesDone, evaluate_task
from pipelines.storage import StorageError
from pipelines.training.events import Event, Notice
from pipelines.training.train_controller import JobFailed
from pipelines.training.worker_group import job_session, ray_images, run_job
from pipelines.training.worker_resources import WorkerResources

STARTS = 4
"""How often workers are started before the evaluation has failed."""


class EvaluationJob:
    """Readings by several workers. What is measured outlives a worker: the next start takes what is left."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        readings: Sequence[Reading],
        *,
        seed: int,
        split: str,
        resources: WorkerResources,
        keep: Callable[[Measured], None],
        advance: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        """``keep`` is called with each reading as it is done, ``advance`` with the number of samples that were measured
        (negative for those that were lost with a worker), ``say`` with each notice."""
        self._model, self._dataset, self._left = model, dataset, list(readings)
        self._seed, self._split, self._resources = seed, split, resources
        self._keep, self._advance, self._say = keep, advance, say
        self._unkept = 0

    def run(self) -> None:
        """Take all readings.

        Raises ``NonFiniteError``; ``ConfigError`` where there is no room for the workers; ``StorageError`` where
        they fail again and again.
        """
        with job_session(self._dataset, self._resources):
            images = ray_images(self._dataset, (self._split,))[self._split]
            weights: ray.ObjectRef[Mapping[str, Tensor]] = ray.put(
                {name: tensor.cpu() for name, tensor in self._model.state_dict().items()}
            )
            for start in range(1, STARTS + 1):
                task = EvaluationTask(
                    model=self._model.config,
                    weights=weights,
                    images=images,
                    readings=tuple(self._left),
                    seed=self._seed,
                    split=self._split,
                )
                try:
                    run_job(
                        evaluate_task,
                        task,
                        name=f"evaluate-{self._dataset.name}",
                        resources=self._resources,
                        max_failures=0,
                        on_event=self._on_event,
                    )
                except JobFailed as failed:
                    if self._left:
                        self._start_again(start, failed)
                if not self._left:
                    return

    def _on_event(self, event: Event) -> None:
        match event:
            case Notice(line):
                self._say(line)
            case SamplesDone(count):
                self._advance(count)
                self._unkept += count
            case ReadingDone(measured):
                self._keep(measured)
                self._left.remove(measured.reading)
                self._unkept -= measured.reading.k * len(measured.bits)

    def _start_again(self, start: int, failed: JobFailed) -> None:
        if start == STARTS:
            raise StorageError(
                f"workers failed {STARTS} times, the last with: {failed}; the same command goes on where they stopped"
            ) from failed
        self._say(f"workers failed ({failed}); they start again")
        self._advance(-self._unkept)
        self._unkept = 0

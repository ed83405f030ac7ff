"""One loop on several workers at once, through Ray Train: starts them, watches them, and starts them again."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import ray
from ray.train.torch import TorchConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fvae.config import require
from fvae.data.images import Dataset, ImageSource
from pipelines.training.autoscaler import await_machines
from pipelines.training.events import Event, Events, Notice
from pipelines.training.ray_session import ray_session
from pipelines.training.rendezvous import MEETING
from pipelines.training.train_controller import ErrorFilter, JobTrainer, RestartWatcher, job_error
from pipelines.training.worker_loop import on_worker
from pipelines.training.worker_resources import WorkerResources, each_worker, workers_on

if TYPE_CHECKING:  # which classes `ray.train` has depends on a variable that mypy does not read
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
else:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

Config = TypeVar("Config")
Result = TypeVar("Result")
SentImages: TypeAlias = "ray.ObjectRef[np.ndarray] | ImageSource"
"""A split's images on the way to a worker: :func:`ray_images` makes them, :func:`fetched` undoes it."""

LOOK_SECONDS = 0.5
"""How often the driver looks whether the job has ended, while no event comes."""
RESIZE_SECONDS = 60.0
"""How often, at most, an elastic job considers taking more workers."""
SILENCE_SECONDS = 30.0
"""How long no event may come from workers that are starting before a notice says what they wait for."""


def room_for(resources: WorkerResources) -> int:
    """How many such workers the cluster's nodes hold, if nothing else runs on them."""
    return sum(workers_on(node["Resources"], resources.cpus, resources.gpus) for node in ray.nodes() if node["Alive"])


def require_room(resources: WorkerResources) -> None:
    """Raise ``ConfigError`` where the cluster's nodes have no room for the workers. Ray would wait for ever."""
    room = room_for(resources)
    each = each_worker(resources.cpus, resources.gpus)
    require(
        room >= resources.workers,
        f"--workers={resources.workers}: each needs {each}, and there is room for {room}; use fewer, or more machines",
    )


@contextlib.contextmanager
def job_session(dataset: Dataset, resources: WorkerResources) -> Iterator[None]:
    """A Ray with room for the workers. Raises ``ConfigError`` where there is none."""
    needed = {"CPU": ("--cpus-per-worker", float(resources.cpus)), "GPU": ("--gpus-per-worker", resources.gpus)}
    with ray_session(dataset.held_bytes(), needed):
        if "RAY_ADDRESS" in os.environ:
            each = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
            await_machines([each] * resources.workers, lambda: room_for(resources) >= resources.workers)
        require_room(resources)
        yield


def scaling(resources: WorkerResources, resize_seconds: float) -> ScalingConfig:
    """``resources`` as Ray Train's ``ScalingConfig``."""
    return ScalingConfig(
        num_workers=resources.workers
        if resources.most_workers is None
        else (resources.workers, resources.most_workers),
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        elastic_resize_monitor_interval_s=max(RESIZE_SECONDS, resize_seconds),
    )


def ray_images(dataset: Dataset, splits: Sequence[str]) -> dict[str, SentImages]:
    """Each split for a job's config: arrays go to Ray's memory, once per machine; sources read for themselves."""
    images = {split: dataset.images(split) for split in splits}
    return {split: ray.put(each) if isinstance(each, np.ndarray) else each for split, each in images.items()}


def fetched(images: SentImages) -> np.ndarray | ImageSource:
    """On a worker: what :func:`ray_images` made of a split."""
    return ray.get(images) if isinstance(images, ray.ObjectRef) else images


def run_job(
    loop: Callable[[Config, Events], Result],
    config: Config,
    *,
    name: str,
    resources: WorkerResources,
    max_failures: int,
    on_event: Callable[[Event], None],
    resize_seconds: float = RESIZE_SECONDS,
) -> Result:
    """Run ``loop(config, events)`` on every worker until all have returned. Returns what worker 0's returned.

    On each worker ``torch.distributed`` is ready (NCCL on GPUs, else Gloo) and torch has ``cpus`` threads. When a
    worker or its node is lost, all start again, which counts as one failure; a node that announces that it will go (a
    spot machine) does not count.

    Args:
        loop: picklable; the same on every worker.
        config: picklable; may hold references to objects that ``ray.put`` stored.
        name: of the job, for Ray's own pages.
        resources: of the workers.
        max_failures: how often they may start again.
        resize_seconds: between two times that an elastic job may take more workers, for which all start again.
        on_event: called with every event of the loop, and with each ``Notice``, in a thread of its own, since Ray
            Train keeps the caller's until the job has ended. What it raises ends the job.

    To be called in the main thread. Raises :class:`JobFailed`, what ``on_event`` raises, and the ``OSError``,
    ``ConfigError`` or ``NonFiniteError`` that a worker's loop ended with: starting again would not help.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray Train's callbacks run in the controller, which is another process, and carry nothing between reports.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # as long as the driver lives
    events = Events(queue)
    callbacks: list[Any] = [ErrorFilter(), RestartWatcher(events)]  # Ray's type has UserCallbacks alone
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # the one line of JobFailed is enough
    with tempfile.TemporaryDirectory(prefix="fvae-train-", ignore_cleanup_errors=True) as scratch:
        trainer = JobTrainer(
            on_worker,
            train_loop_config={"loop": loop, "config": config, "events": events, "threads": resources.cpus},
            scaling_config=scaling(resources, resize_seconds),
            torch_config=TorchConfig(
                backend="nccl" if resources.gpus else "gloo", timeout_s=int(MEETING.total_seconds())
            ),
            run_config=RunConfig(
                name=name,
                storage_path=scratch,  # checkpoints are the loop's own: see pipelines.training.checkpoints
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=callbacks,
            ),
        )
        listener = _Listener(queue, on_event, resources, trainer.end)
        listener.start()
        try:
            result: Any = trainer.fit()  # mypy sees the result of Ray Train's first version, without return_value
        except Exception as error:
            listener.stop()
            raise listener.error or job_error(error, max_failures) from error
        except BaseException:  # Ctrl-C
            trainer.end()
            listener.stop()  # before Ray ends: a later call from its thread would start a new one
            raise
        listener.stop()
        if listener.error:
            raise listener.error
        return result.return_value


class _Listener(threading.Thread):
    """Passes the workers' events on, beside Ray Train's own loop. What ``on_event`` raises ends the job."""

    def __init__(
        self, queue: Queue, on_event: Callable[[Event], None], resources: WorkerResources, end: Callable[[], None]
    ) -> None:
        super().__init__(name="events", daemon=True)
        self.queue, self.on_event, self.resources, self.end = queue, on_event, resources, end
        self.error: BaseException | None = None
        self._over = threading.Event()

    def run(self) -> None:
        last, noticed = time.monotonic(), False
        try:
            while not self._over.is_set():
                if self._pass_on(LOOK_SECONDS):
                    last, noticed = time.monotonic(), False
                elif not noticed and time.monotonic() - last > SILENCE_SECONDS:
                    noticed = True
                    if room_for(self.resources) < self.resources.workers:
                        self.on_event(Notice(f"waiting for room for {self.resources.workers} workers"))
            self._pass_on(0)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.error = error
            self.end()

    def stop(self) -> None:
        """Pass on what is left, and end."""
        self._over.set()
        self.join()

    def _pass_on(self, seconds: float) -> int:
        """Pass on all events of the queue, waiting so long for the first. Returns how many there were."""
        count = 0
        try:
            while True:
                event = self.queue.get(timeout=seconds) if seconds and not count else self.queue.get_nowait()
                count += 1
                self.on_event(event)
        except Empty:
            return count

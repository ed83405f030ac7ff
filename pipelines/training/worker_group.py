"""One function on several workers at once, through Ray Train: it starts them, watches them, and starts them again."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fvae.config import ConfigError, require
from fvae.data.images import Dataset, ImageSource
from fvae.evaluation import NonFiniteError
from fvae.workers import Workers
from pipelines.cli.quantities import format_bytes
from pipelines.data.datasets import memory_bytes
from pipelines.training import main_memory
from pipelines.training.autoscaler import await_machines
from pipelines.training.ray_environment import START_SECONDS
from pipelines.training.ray_session import ray_session
from pipelines.training.rendezvous import MEETING, have_met
from pipelines.training.worker_resources import WorkerResources, each_worker, workers_on
from pipelines.training.worker_warnings import LOGGER, raise_trouble, trouble

if TYPE_CHECKING:  # which class `ray.train` has depends on a variable that mypy does not read
    from ray.train.v2.api.config import ScalingConfig
else:
    from ray.train import ScalingConfig

Config = TypeVar("Config")
SentImages: TypeAlias = "ray.ObjectRef[np.ndarray] | ImageSource"
"""A split's images on the way to a worker: :func:`ray_images` makes them, :func:`fetched` undoes it."""

LOOK_SECONDS = 0.5
"""How often the driver looks whether the job has ended, while nothing is heard from it."""
RESIZE_SECONDS = 60.0
"""How often, at most, an elastic job considers taking more workers."""
SILENCE_SECONDS = 30.0
"""How long nothing may be heard of workers that are starting before it is said what they wait for."""


class JobFailed(RuntimeError):
    """Workers failed more often than they may. One line says how the last one ended."""


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
    """``resources`` as Ray Train says it."""
    return ScalingConfig(
        num_workers=resources.workers
        if resources.most_workers is None
        else (resources.workers, resources.most_workers),
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        elastic_resize_monitor_interval_s=max(RESIZE_SECONDS, resize_seconds),
    )


class Events:
    """What workers tell the driver, in the order in which each of them does."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def put(self, event: dict[str, Any]) -> None:
        """Send ``event``; waits until it has arrived."""
        self._queue.put(event)


def ray_images(dataset: Dataset, splits: Sequence[str]) -> dict[str, SentImages]:
    """Each split for a job's config: arrays go to Ray's memory, once per machine; sources read for themselves."""
    images = {split: dataset.images(split) for split in splits}
    return {split: ray.put(each) if isinstance(each, np.ndarray) else each for split, each in images.items()}


def fetched(images: SentImages) -> np.ndarray | ImageSource:
    """On a worker: what :func:`ray_images` made of a split."""
    return ray.get(images) if isinstance(images, ray.ObjectRef) else images


def run_job(
    loop: Callable[[Config, Events], None],
    config: Config,
    *,
    name: str,
    resources: WorkerResources,
    max_failures: int,
    on_event: Callable[[dict[str, Any]], None],
    resize_seconds: float = RESIZE_SECONDS,
) -> None:
    """Run ``loop(config, events)`` on every worker until all have returned.

    On each worker ``torch.distributed`` is ready (NCCL on GPUs, else Gloo) and torch has ``cpus`` threads. When a
    worker or its node is lost, all start again, which counts as one failure; a node that says beforehand that it
    will go (a spot machine) does not count. Besides the loop's own events there are those of :func:`carry_out`.

    Args:
        loop: picklable; the same on every worker.
        config: picklable; may hold references to objects that ``ray.put`` stored.
        name: of the job, for Ray's own pages.
        resources: of the workers.
        max_failures: how often they may start again.
        resize_seconds: between two times that an elastic job may take more workers, for which all start again.
        on_event: called in a thread of its own with whatever a worker puts into ``events``. What it raises ends the
            job.

    To be called in the main thread. Raises :class:`JobFailed`, what ``on_event`` raises, and the ``OSError`` or
    ``ConfigError`` that a worker's loop ended with: starting again would not help.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # as long as the driver lives
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # JobFailed says it
    with tempfile.TemporaryDirectory(prefix="fvae-train-", ignore_cleanup_errors=True) as scratch:
        trainer = _Trainer(
            _on_worker,
            train_loop_config={"loop": loop, "config": config, "queue": queue, "threads": resources.cpus},
            scaling_config=scaling(resources, resize_seconds),
            torch_config=TorchConfig(
                backend="nccl" if resources.gpus else "gloo", timeout_s=int(MEETING.total_seconds())
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=scratch,  # checkpoints are the loop's own: see pipelines.training.checkpoints
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
            ),
        )
        trainer.events = Events(queue)
        listener = _Listener(queue, on_event, resources, trainer.end)
        listener.start()
        try:
            trainer.fit()
        except Exception as error:
            listener.stop()
            raise listener.error or JobFailed(_how_it_ended(error, max_failures)) from error
        except BaseException:  # Ctrl-C
            trainer.end()
            listener.stop()  # before Ray ends: whoever asks for something then starts a new one
            raise
        listener.stop()
        if listener.error:
            raise listener.error


class _FailurePolicy(DefaultFailurePolicy):
    """Starts the workers again as often as they may fail, but only once where their machine ran out of memory: it has
    no more of it the next time. Says at once when they do not start and are started again."""

    def __init__(self, failure_config: Any, events: Events) -> None:
        super().__init__(failure_config)
        self._events, self._said = events, ""
        self._ran_out = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """What the controller does about a failure."""
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        self._ran_out += any(main_memory.ran_out(f"{type(error).__name__} {error}") for error in failures)
        if self._ran_out > 1:
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        if isinstance(training_failed_error, ControllerError) and decision is FailureDecision.RETRY:
            self._say(_why_not_started(training_failed_error.controller_failure))  # else JobFailed says it
        return decision

    def _say(self, line: str) -> None:
        if line != self._said:  # the same again is no news
            self._said = line
            with contextlib.suppress(RayError):  # the driver is gone
                self._events.put({"warning": line})


def _why_not_started(error: Exception) -> str:
    """A line for workers that are started again; the controller takes back what it had asked for."""
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return f"Ray has given the workers no place within {START_SECONDS} s: asking again"
    return f"the workers did not start ({last_line(error)[:200]}): starting them again"


class _Trainer(TorchTrainer):
    """A trainer that can be ended from outside, and has no actor for Ray's datasets: none are read here, and every
    start of the workers would wait for it."""

    events: Events
    """To the driver."""
    _controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees Ray Train's first version
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]

    def fit(self) -> ray.train.Result:
        """As Ray's, with the failure policy of this module."""
        theirs = data_parallel_trainer.create_failure_policy
        data_parallel_trainer.create_failure_policy = functools.partial(_FailurePolicy, events=self.events)
        try:
            return super().fit()
        finally:
            data_parallel_trainer.create_failure_policy = theirs

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller  # Ctrl-C stays what it is everywhere else: KeyboardInterrupt

    def end(self) -> None:
        """End the controller, and so the workers, which it owns; :meth:`fit` then raises."""
        if self._controller is not None:
            ray.kill(self._controller)


class _Listener(threading.Thread):
    """Hands the workers' events on, beside Ray Train's own loop. What ``on_event`` raises ends the job."""

    def __init__(
        self,
        queue: Queue,
        on_event: Callable[[dict[str, Any]], None],
        resources: WorkerResources,
        end: Callable[[], None],
    ) -> None:
        super().__init__(name="events", daemon=True)
        self.queue, self.on_event, self.resources, self.end = queue, on_event, resources, end
        self.error: BaseException | None = None
        self._over = threading.Event()

    def run(self) -> None:
        heard, said = time.monotonic(), False
        try:
            while not self._over.is_set():
                if self._hand_on(LOOK_SECONDS):
                    heard, said = time.monotonic(), False
                elif not said and time.monotonic() - heard > SILENCE_SECONDS:
                    said = True
                    if room_for(self.resources) < self.resources.workers:
                        self.on_event({"warning": f"waiting for room for {self.resources.workers} workers"})
            self._hand_on(0)
        except BaseException as error:  # noqa: BLE001 - handed on to the caller's thread
            self.error = error
            self.end()

    def stop(self) -> None:
        """Hand on what is left, and end."""
        self._over.set()
        self.join()

    def _hand_on(self, seconds: float) -> int:
        """Everything that is in the queue; waits that long for the first. Returns how many there were."""
        count = 0
        try:
            while True:
                event = self.queue.get(timeout=seconds) if seconds and not count else self.queue.get_nowait()
                count += 1
                raise_trouble(event)
                self.on_event(event)
        except Empty:
            return count


def _on_worker(settings: dict[str, Any]) -> None:
    have_met()
    torch.set_num_threads(settings["threads"])
    carry_out(settings["loop"], settings["config"], Events(settings["queue"]))


def carry_out(loop: Callable[[Config, Events], None], config: Config, events: Events) -> None:
    """Run a job's loop on this worker, and tell the driver what comes in its way.

    Events: ``warning`` lines; ``trouble``, a storage's, which ends the job; from worker 0 ``failure``, a figure that is
    not finite, on which nothing more can follow.
    """
    said = _SayWarnings(events)
    LOGGER.addHandler(said)
    try:
        loop(config, events)
    except NonFiniteError as error:  # on all workers alike, and again at every new start
        if Workers.of_process_group().rank == 0:
            events.put({"failure": str(error)})
    except (OSError, ConfigError) as error:
        events.put(trouble(error))
        raise
    except Exception as error:
        if main_memory.ran_out(error) or isinstance(error, torch.OutOfMemoryError):  # and would again
            events.put(trouble(ConfigError(_out_of_memory(error))))
            raise
        # Of several workers one meets the cause, the others that it is gone.
        events.put({"warning": f"worker {Workers.of_process_group().rank}: {type(error).__name__}: {last_line(error)}"})
        raise
    finally:
        LOGGER.removeHandler(said)


def _out_of_memory(error: BaseException) -> str:
    """One line for a worker that ran out of its machine's or its card's memory."""
    rank, host = Workers.of_process_group().rank, socket.gethostname()
    what = last_line(error).partition(". ")[0][:120]
    if isinstance(error, torch.OutOfMemoryError):
        has = f"its GPU has {format_bytes(torch.cuda.mem_get_info()[1])}" if torch.cuda.is_available() else ""
    else:
        has = f"the machine has {format_bytes(memory_bytes())}"
    return (
        f"worker {rank} on {host} ran out of memory ({'; '.join(filter(None, (what, has)))}); a smaller "
        "--micro-batch-size or --checkpoint-activations needs less, and so do more workers"
    )


class _SayWarnings(logging.Handler):
    """What the storage warns of goes to the driver, which has a terminal."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and so will this worker be
            self._events.put({"warning": record.getMessage()})


def last_line(error: BaseException) -> str:
    """What an error says, without the tracebacks that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _how_it_ended(error: Exception, max_failures: int) -> str:
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return last_line(error)
    rank, first = next(iter(failures.items()))
    if main_memory.ran_out(f"{type(first).__name__} {first}"):
        return (
            f"worker {rank} was ended by Ray, as its machine ran out of memory; a smaller --micro-batch-size or "
            "--checkpoint-activations needs less"
        )
    return f"workers failed {max_failures + 1} times, the last with: worker {rank}: {last_line(first)}"

"""Callbacks in Ray Train's controller, and the trainer that has them.

The controller is an actor: it starts the workers, polls them, and starts them again after a failure. Everything of
this package that depends on private parts of Ray Train is in this file; ``test_train_controller.py`` pins them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, TrainControllerState
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from fvae.config import ConfigError
from fvae.evaluation import NonFiniteError
from pipelines.training import main_memory
from pipelines.training.events import Events, Notice
from pipelines.training.ray_environment import START_SECONDS
from pipelines.training.worker_warnings import as_sent


class JobFailed(RuntimeError):
    """Workers failed more often than they may. The message is one line: how the last one ended."""


class FinalError(Exception):
    """A worker's error that ends the job: ``args[0]``, made of the parts that every process can unpickle."""


class ErrorFilter(UserCallback):
    """Ends the job where a worker's error would occur again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called when workers have failed. What it raises ends the job, as the cause of a ``ControllerError``."""
        for error in worker_exceptions.values():
            if (final := final_error(error)) is not None:
                raise FinalError(final)


class RestartWatcher(ControllerCallback):
    """Sends a notice when workers do not start and are started again.

    Ends the job where Ray has ended workers for want of memory for the second time: their machine has no more of it
    at the third.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._notice = ""
        self._out_of_memory = 0

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Called after every step of the controller. What it raises ends the job, as :meth:`after_exception` does."""
        if current_state is previous_state:  # it still waits for room
            return
        if isinstance(current_state, ReschedulingState):
            self._workers_did_not_start(current_state.training_failed_error)
        elif isinstance(current_state, RestartingState):
            self._workers_failed(current_state.training_failed_error)

    def _workers_did_not_start(self, error: TrainingFailedError) -> None:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            line = f"Ray has found no room for the workers within {START_SECONDS} s: asking again"
        else:
            line = f"the workers did not start ({last_line(cause)[:200]}): starting them again"
        if line != self._notice:  # the same again is no news
            self._notice = line
            with contextlib.suppress(RayError):  # the driver is gone
                self._events.put(Notice(line))

    def _workers_failed(self, error: TrainingFailedError) -> None:
        if line := _out_of_memory(error):
            self._out_of_memory += 1
            if self._out_of_memory > 1:
                raise JobFailed(line)


class JobTrainer(TorchTrainer):
    """A ``TorchTrainer`` that can be ended from another thread.

    It has no actor for Ray's datasets: none are read, and every start of the workers would wait for it.
    """

    _controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller  # Ctrl-C stays what it is everywhere else: KeyboardInterrupt

    def end(self) -> None:
        """End the controller, and with it the workers, which it owns; :meth:`fit` then raises."""
        if self._controller is not None:
            ray.kill(self._controller)


def final_error(error: BaseException) -> OSError | ConfigError | NonFiniteError | None:
    """A worker's error that would occur again at every new start, as it is sent to the driver; None for any other.

    Ray's own errors may be ``OSError`` too: its time-outs, when another worker is lost.
    """
    if isinstance(error, NonFiniteError):
        return NonFiniteError(str(error))
    if isinstance(error, OSError | ConfigError) and not isinstance(error, RayError):
        return as_sent(error)
    return None


def job_error(error: Exception, max_failures: int) -> Exception:
    """The exception of a job whose ``fit()`` has raised ``error``: the worker's own where it is final."""
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, FinalError):  # Ray's own errors may be of the same classes as a worker's
        return cause.args[0]
    if isinstance(cause, JobFailed):
        return cause
    if line := _out_of_memory(error):
        return JobFailed(line)
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return JobFailed(last_line(error))
    rank, failure = next(iter(failures.items()))
    return JobFailed(f"workers failed {max_failures + 1} times, the last with: worker {rank}: {last_line(failure)}")


def last_line(error: BaseException) -> str:
    """The message of an error without the tracebacks that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _out_of_memory(error: Exception) -> str:
    """One line where Ray has ended a worker for want of memory; empty otherwise."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        if main_memory.ran_out(f"{type(failure).__name__} {failure}"):
            return (
                f"worker {rank} was ended by Ray, as its machine ran out of memory; a smaller --micro-batch-size or "
                "--checkpoint-activations needs less"
            )
    return ""

"""What runs in Ray Train's controller: which errors end a job, which start it again, and Ray's private parts."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

import pipelines.training.ray_environment  # noqa: F401
from fvae.config import ConfigError
from fvae.evaluation import NonFiniteError
from fvae.workers import Workers
from pipelines.storage import StorageError
from pipelines.training.events import Event, Events, Notice
from pipelines.training.ray_environment import DEFAULTS, START_SECONDS
from pipelines.training.ray_session import ray_session
from pipelines.training.train_controller import (
    ErrorFilter,
    FinalError,
    JobFailed,
    JobTrainer,
    RestartWatcher,
    job_error,
)
from pipelines.training.worker_group import run_job
from pipelines.training.worker_resources import WorkerResources

pytestmark = pytest.mark.core


class Kept(Events):
    """Events that stay in this process."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)


# --- a job through Ray Train ---------------------------------------------------------------------


def job(loop: Callable[[Any, Events], Any], config: Any, on_event: Callable[[Event], None]) -> Any:
    """Run ``loop`` on two workers that may start again ten times."""
    with ray_session(0, {}):
        return run_job(
            loop, config, name="job", resources=WorkerResources(workers=2), max_failures=10, on_event=on_event
        )


def test_reports_arrive_once_and_in_order_and_the_first_workers_result_is_returned(ray_address: str) -> None:
    def loop(count: int, events: Events) -> str:
        rank = Workers.of_process_group().rank
        for number in range(count):
            if rank == 1:
                events.put(Notice(f"before {number}"))
            events.report(Notice(f"{number} of worker {rank}"), {"number": number})
        return f"result of worker {rank}"

    received: list[Event] = []
    assert job(loop, 3, received.append) == "result of worker 0"
    lines = [event.line for event in received if isinstance(event, Notice)]
    assert [line for line in lines if "before" not in line] == [f"{number} of worker 0" for number in range(3)]
    assert [line for line in lines if "before" in line] == [f"before {number}" for number in range(3)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/file"),
        StorageError("s3://bucket/key: put failed after 5 attempts"),
        ConfigError("batch_size=0: must be an integer of at least 1"),
        NonFiniteError("the loss of step 3 is nan"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_would_occur_again_ends_the_job_at_the_first_start(
    error: Exception, ray_address: str, tmp_path: Path
) -> None:
    def loop(error: Exception, events: Events) -> None:
        rank = Workers.of_process_group().rank
        with (tmp_path / "starts").open("a") as starts:
            starts.write(f"{rank}\n")
        if rank == 1:
            raise error
        events.report(Notice("worker 0 waits for worker 1"), {})

    with pytest.raises(type(error)) as raised:
        job(loop, error, lambda event: None)
    assert type(raised.value) is type(error) and raised.value.args == error.args
    assert getattr(raised.value, "filename", None) == getattr(error, "filename", None)
    assert sorted((tmp_path / "starts").read_text().split()) == ["0", "1"]


def test_another_error_starts_the_workers_again_with_a_notice(ray_address: str, tmp_path: Path) -> None:
    def loop(config: None, events: Events) -> int:
        starts = tmp_path / f"starts-{Workers.of_process_group().rank}"
        count = len(starts.read_text()) + 1 if starts.exists() else 1
        starts.write_text("x" * count)
        events.report(Notice("started"), {})
        if count == 1 and Workers.of_process_group().rank == 0:
            raise RuntimeError("Traceback\nConnection closed by peer")
        return count

    received: list[Event] = []
    assert job(loop, None, received.append) == 2
    notices = [event.line for event in received if isinstance(event, Notice)]
    assert notices.count("worker 0: RuntimeError: Connection closed by peer") == 1


def test_what_the_driver_raises_ends_the_job(ray_address: str) -> None:
    def loop(config: None, events: Events) -> None:
        events.put(Notice("the first"))
        while True:
            events.report(Notice("one more"), {})

    def refuse(event: Event) -> None:
        raise StorageError("another process has taken over")

    with pytest.raises(StorageError, match="another process has taken over"):
        job(loop, None, refuse)


# --- decisions of the controller -----------------------------------------------------------------


def test_only_an_error_of_the_loop_itself_is_final() -> None:
    errors = ErrorFilter()
    errors.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: ActorDiedError()})
    errors.after_exception(None, {0: GetTimeoutError("the other worker is lost")})  # a TimeoutError, so an OSError
    full = OSError(errno.ENOSPC, "No space left on device", "/data/file")
    with pytest.raises(FinalError) as raised:
        errors.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: full})
    error = job_error(ControllerError(raised.value), 10)
    assert type(error) is OSError and str(error) == str(full)


def test_a_final_error_is_one_line_whatever_its_class() -> None:
    with pytest.raises(FinalError) as raised:
        ErrorFilter().after_exception(None, {0: TimeoutError("timed out")})
    error = job_error(ControllerError(raised.value), 10)
    assert type(error) is StorageError and str(error) == "timed out"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), ConnectionError("no connection to the GCS")])
def test_an_error_of_the_controller_is_not_taken_for_a_worker_s(error: Exception) -> None:
    assert isinstance(job_error(error, 10), JobFailed) and isinstance(job_error(ControllerError(error), 10), JobFailed)


def test_workers_that_do_not_start_are_a_notice_at_once() -> None:
    events = Kept()
    watcher = RestartWatcher(events)
    late = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    failed = ReschedulingState(ControllerError(WorkerGroupStartupFailedError("Traceback\nGloo connectFullMesh failed")))
    again = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    for previous, current in ((RunningState(), late), (late, late), (late, again), (again, failed), (failed, late)):
        watcher.after_controller_state_update(previous, current)
    assert events.events == [
        Notice(f"Ray has found no room for the workers within {START_SECONDS} s: asking again"),
        Notice("the workers did not start (Gloo connectFullMesh failed): starting them again"),
        Notice(f"Ray has found no room for the workers within {START_SECONDS} s: asking again"),
    ]


def test_workers_that_are_not_started_again_are_the_job_s_own_line() -> None:
    error = job_error(ControllerError(RuntimeError("Traceback\nGloo connectFullMesh failed")), 10)
    assert isinstance(error, JobFailed) and str(error) == "Gloo connectFullMesh failed"


def test_workers_that_ray_ends_for_want_of_memory_start_again_once() -> None:
    watcher = RestartWatcher(Kept())
    lost = WorkerGroupError("", {0: ActorDiedError()})
    low = WorkerGroupError("", {0: ActorDiedError(), 1: OutOfMemoryError("the node was running low on memory")})
    for error in (lost, low, lost):
        restarting = RestartingState(error)
        watcher.after_controller_state_update(RunningState(), restarting)
        watcher.after_controller_state_update(restarting, restarting)  # it waits for room: no failure
    with pytest.raises(JobFailed, match="worker 1 was ended by Ray, as its machine ran out of memory; a smaller"):
        watcher.after_controller_state_update(RunningState(), RestartingState(low))
    assert "its machine ran out of memory" in str(job_error(low, 0))


# --- Ray's private parts: when one of these fails, Ray has changed, and so must train_controller --


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_ray_s_callbacks_take_these_arguments() -> None:
    for ours, theirs, name in (
        (RestartWatcher, ControllerCallback, "after_controller_state_update"),
        (ErrorFilter, ray.train.UserCallback, "after_exception"),
    ):
        assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name)), name


def test_ray_s_controller_tells_its_callbacks_the_state_and_ends_with_what_they_raise() -> None:
    source = inspect.getsource(TrainController)
    assert '"after_controller_state_update", previous_state, state' in source
    for state in (ReschedulingState, RestartingState):
        assert parameters(state) == ["training_failed_error"]
        assert f"{state.__name__}(training_failed_error=training_failed_error)" in source


def test_ray_s_trainer_hands_over_its_controller_and_makes_an_actor_for_datasets() -> None:
    base = data_parallel_trainer.DataParallelTrainer
    assert parameters(base._register_sigint_handler) == ["self", "controller"]
    assert "self._register_sigint_handler(controller)" in inspect.getsource(base._initialize_and_run_controller)
    trainer = JobTrainer(lambda: None)
    theirs = [type(each) for each in base._create_default_callbacks(trainer)]
    assert DatasetsCallback in theirs
    assert [type(each) for each in trainer._create_default_callbacks()] == [
        each for each in theirs if each is not DatasetsCallback
    ]


def test_train_asks_again_after_as_long() -> None:
    from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

    assert DEFAULTS[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] == str(START_SECONDS)

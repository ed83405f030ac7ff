"""Workers that cannot meet give up soon, say so, and wait for one another patiently once they have met."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
import torch.distributed as distributed
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from pipelines.training import rendezvous, worker_group
from pipelines.training.ray_environment import DEFAULTS, START_SECONDS
from tune.run import trial_workers
from tune.run.trial_workers import TrialWorker

pytestmark = pytest.mark.core


@pytest.fixture
def ended_group() -> Iterator[None]:
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("ended_group")
def test_who_has_met_waits_longer(tmp_path: Path) -> None:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    store.set_timeout(rendezvous.MEETING)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=rendezvous.MEETING)
    backend = distributed.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    assert backend.options._timeout == rendezvous.MEETING == datetime.timedelta(minutes=2)
    rendezvous.have_met()
    assert backend.options._timeout == rendezvous.TOGETHER == datetime.timedelta(minutes=30)
    assert store.timeout == rendezvous.TOGETHER


@pytest.mark.usefixtures("ended_group")
def test_a_worker_that_nobody_joins_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = TrialWorker.__new__(TrialWorker)
    worker.workers, worker.device = trial_workers.Workers(rank=0, count=2), "cpu"
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=trial_workers.MEETING)
    worker.store = store  # made with time enough, whatever else the machine does
    monkeypatch.setattr(trial_workers, "MEETING", datetime.timedelta(milliseconds=200))
    with pytest.raises(RuntimeError):
        worker.join("127.0.0.1", store.port)


class Kept(list[dict[str, Any]]):
    put = list.append


def test_workers_that_do_not_start_are_a_line_at_once() -> None:
    retry = worker_group.FailureDecision.RETRY
    events = Kept()
    policy = worker_group._FailurePolicy(ray.train.FailureConfig(max_failures=10), events)  # type: ignore[arg-type]
    late = ControllerError(WorkerGroupStartupTimeoutError(2))
    failed = ControllerError(WorkerGroupStartupFailedError("Traceback\nGloo connectFullMesh failed"))
    assert [policy.make_decision(error) for error in (late, late, failed, late)] == [retry] * 4
    assert [event["warning"] for event in events] == [
        f"Ray has given the workers no place within {START_SECONDS} s: asking again",
        "the workers did not start (Gloo connectFullMesh failed): starting them again",
        f"Ray has given the workers no place within {START_SECONDS} s: asking again",
    ]


def test_workers_that_are_not_started_again_are_no_such_line() -> None:
    events = Kept()
    policy = worker_group._FailurePolicy(ray.train.FailureConfig(max_failures=10), events)  # type: ignore[arg-type]
    final = ControllerError(RuntimeError("Gloo connectFullMesh failed"))
    assert policy.make_decision(final) is worker_group.FailureDecision.RAISE
    assert not events
    assert worker_group._how_it_ended(final, 10) == "Gloo connectFullMesh failed"


def test_train_asks_again_after_as_long() -> None:
    from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

    assert DEFAULTS[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] == str(START_SECONDS)

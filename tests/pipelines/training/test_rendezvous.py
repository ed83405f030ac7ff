"""Workers that cannot meet give up soon, say so, and wait for one another patiently once they have met."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed

from pipelines.training import rendezvous
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

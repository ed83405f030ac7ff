"""Checkpoints: which are kept, which is used, what a failing or spoilt store costs."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fvae import ConfigError
from fvae.training_state import TrainingState
from fvae.workers import Workers
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.training import checkpoint_clock
from pipelines.training.checkpoint_clock import CheckpointClock
from pipelines.training.checkpoints import BackgroundWriter, Checkpoint, CheckpointStore

pytestmark = pytest.mark.core

CPU = torch.device("cpu")


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    location = tmp_path / "checkpoints" if request.param == "local" else request.getfixturevalue("bucket")
    return open_storage(location)


def state(step: int) -> TrainingState:
    return TrainingState(
        tensors={"model/weight": torch.full((3, 2), float(step)), "sums": torch.zeros(2, dtype=torch.float64)},
        metadata={"model": {}, "train": {}, "step": step},
    )


def steps(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.all()]


def test_the_last_few_and_the_best_are_kept(storage: Storage) -> None:
    store = CheckpointStore(storage, keep=2)
    bits = {10: 3.0, 20: 2.5, 30: 2.75, 35: None, 40: 2.9, 50: 2.500001}
    kept = {10: [10], 20: [10, 20], 30: [20, 30], 35: [20, 30, 35], 40: [20, 35, 40], 50: [20, 40, 50]}
    for step, val_bpd in bits.items():
        store.put(state(step), val_bpd)
        assert steps(store) == kept[step]
    assert store.all()[0] == Checkpoint(20, 2.5)
    found = store.latest(CPU)
    assert found is not None
    assert found[0].step == found[1].step == 50
    assert torch.equal(found[1].tensors["model/weight"], torch.full((3, 2), 50.0))


def test_there_may_be_none_and_other_files_are_left_alone(storage: Storage) -> None:
    storage.write("notes.txt", b"mine")
    store = CheckpointStore(storage, keep=1)
    assert store.latest(CPU) is None
    store.put(state(1), None)
    store.put(state(2), None)
    assert {info.key for info in storage.list()} == {"notes.txt", Checkpoint(2, None).key}


@pytest.mark.parametrize("damage", ["cut", "one bit", "not a training's"])
def test_a_damaged_one_is_said_and_the_one_before_it_used(
    damage: str, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(storage, keep=3)
    store.put(state(1), 3.0)
    store.put(state(2), None)
    key = Checkpoint(2, None).key
    content = bytearray(storage.read(key))
    if damage == "cut":
        content = content[:-20]
    elif damage == "one bit":
        content[-9] ^= 1  # in a tensor: the file's structure is whole
    else:
        content = bytearray(b"{}")
    storage.write(key, bytes(content))
    with caplog.at_level(logging.WARNING, "pipelines.storage"):
        found = store.latest(CPU)
    assert found is not None and found[0] == Checkpoint(1, 3.0)
    assert key in caplog.text and "the checkpoint before it is used" in caplog.text
    assert steps(store) == [1]


def test_one_that_only_cannot_be_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused credentials, a store that is away: it may be whole."""
    store = CheckpointStore(open_storage(tmp_path), keep=3)
    for step in (1, 2):
        store.put(state(step), None)
    for refusal in (ConfigError("s3://bucket: access denied"), StorageError("s3://bucket: no answer")):

        def refused(path: Path, device: torch.device, refusal: Exception = refusal) -> TrainingState:
            raise refusal

        monkeypatch.setattr(store, "_verified", refused)
        with pytest.raises(type(refusal), match="s3://bucket"):
            store.latest(CPU)
        assert steps(store) == [1, 2]


def test_metadata_is_verified_too(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state(7).write(path)
    path.write_bytes(path.read_bytes().replace(b'"step":"7"', b'"step":"8"'))
    with pytest.raises(ConfigError, match="damaged"):
        TrainingState.read(path)


class SlowStore(CheckpointStore):
    """Writes when it is let to, and fails when it is told to."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, keep=9)
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None

    def put(self, state: TrainingState, val_bpd: float | None) -> None:
        self.begun.release()
        assert self.let.acquire(timeout=30)
        if self.error:
            raise self.error
        super().put(state, val_bpd)


def test_writing_waits_for_nobody_and_a_later_checkpoint_takes_the_place_of_a_waiting_one(tmp_path: Path) -> None:
    store = SlowStore(open_storage(tmp_path))
    writer = BackgroundWriter(store)
    writer.submit(state(1))
    assert store.begun.acquire(timeout=30)
    writer.submit(state(2))
    writer.submit(state(3), 2.5)  # an epoch's
    writer.submit(state(4))  # which one in mid-epoch does not replace
    store.let.release(2)
    writer.finish()
    assert steps(store) == [1, 3]


def test_a_store_that_fails_costs_a_warning_until_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SlowStore(open_storage(tmp_path))
    writer = BackgroundWriter(store)
    store.error = StorageError("s3://bucket/x: write: refused")
    store.let.release(3)
    writer.submit(state(1), 3.0)
    with pytest.raises(StorageError, match="refused"):
        writer.finish()
    assert "checkpoint of step 1 not kept: s3://bucket/x: write: refused" in caplog.text
    store.error = MemoryError("no room")  # nothing may leave finish() waiting
    store.let.release()
    writer.submit(state(2), 2.0)
    with pytest.raises(MemoryError):
        writer.finish()
    store.error = None
    writer.submit(state(3), 2.0)
    writer.finish()
    assert steps(store) == [3]


class Clock:
    """A clock that stands still between steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.step = 0.0, 0
        monkeypatch.setattr(checkpoint_clock.time, "monotonic", lambda: self.now)

    def due_steps(self, clock: CheckpointClock, steps: int, pace: float) -> list[int]:
        found = []
        for _ in range(steps):
            self.now, self.step = self.now + pace, self.step + 1
            if clock.due(self.step):
                found.append(self.step)
        return found


def test_a_checkpoint_is_due_every_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    asked: list[int] = []
    clock = CheckpointClock(Workers(), CPU, 60.0, lambda: bool(asked.append(1)))
    found = time.due_steps(clock, 3000, 0.1)
    assert len(found) == 4
    assert all(600 <= later - earlier <= 605 for earlier, later in zip([0, *found], found, strict=False))
    assert len(asked) < 60  # and the workers ask each other seldom


def test_one_that_was_made_for_another_reason_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    clock = CheckpointClock(Workers(), CPU, 60.0)
    assert time.due_steps(clock, 500, 0.1) == []
    clock.saved()
    assert time.due_steps(clock, 500, 0.1) == []


def test_a_machine_that_is_about_to_go_makes_one_due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    notices: list[Any] = []
    clock = CheckpointClock(Workers(), CPU, 3600.0, lambda: bool(notices))
    assert time.due_steps(clock, 100, 1.0) == []
    notices.append("spot")
    assert time.due_steps(clock, 12, 1.0) != []

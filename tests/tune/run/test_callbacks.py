"""What the driver makes of a result, called as Tune calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from ray.tune.experiment import Trial

from fvae import ConfigError, ModelConfig, TrainConfig
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.training.worker_warnings import trouble
from tests.tune.synthetic import record
from tune.records.ledger import Ledger, TrialRecord
from tune.records.training_time import SearchClock
from tune.run.budget import Budget, retry_out_of_memory
from tune.run.callbacks import LedgerCallback
from tune.run.trial_checkpoint import CHECKPOINT, remove_checkpoints
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

TRIAL = SimpleNamespace(config={"id": "0000-fvae"})


@pytest.fixture
def started() -> TrialRecord:
    """A trial with an epoch still to go."""
    whole = record(0, "fvae", 1000, 2.5)
    return dataclasses.replace(whole, status="running", history=whole.history[:-1], best_epoch=None, val_bpd=2.6)


@pytest.fixture(params=["local", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, started: TrialRecord) -> Ledger:
    """A ledger with a trial that runs and its checkpoint."""
    root = open_storage(tmp_path if request.param == "local" else f"{request.getfixturevalue('bucket')}/runs/digits")
    ledger = Ledger(root)
    ledger.put(started)
    ledger.trial_storage(started.id).write(CHECKPOINT, b"weights")
    return ledger


def storage_of(ledger: Ledger) -> Storage:
    return ledger.trial_storage("0000-fvae")


def last_epoch() -> dict[str, Any]:
    epoch = dataclasses.asdict(record(0, "fvae", 1000, 2.5).history[-1])
    return epoch | {"best_epoch": 20, "best_val_bpd": 2.5, "done": True}


def report(ledger: Ledger, result: dict[str, Any]) -> tuple[list[TrialRecord], list[str]]:
    """What the watchers are shown, and the lines of warning."""
    shown: list[TrialRecord] = []
    warned: list[str] = []
    LedgerCallback(ledger, (shown.append,), warned.append).on_trial_result(1, [], TRIAL, result)
    return shown, warned


def test_a_trial_that_ended_is_recorded_shown_and_rid_of_its_checkpoint(ledger: Ledger) -> None:
    shown, warned = report(ledger, last_epoch() | {"warnings": ["read s3://a/b: attempt 1 failed", "and again"]})
    assert [each.status for each in shown] == ["complete"]
    assert warned == ["0000-fvae: read s3://a/b: attempt 1 failed", "0000-fvae: and again"]
    assert Ledger(ledger.root).records["0000-fvae"] == shown[0]
    assert [info.key for info in storage_of(ledger).list()] == ["trial.json"]


def test_a_trial_that_goes_on_keeps_its_checkpoint(ledger: Ledger) -> None:
    epoch = {name: value for name, value in last_epoch().items() if name not in ("best_val_bpd", "done")}
    shown, _ = report(ledger, epoch)
    assert [each.status for each in shown] == ["running"]
    assert storage_of(ledger).exists(CHECKPOINT)


def test_a_stopped_trial_keeps_its_checkpoint_as_it_may_go_on(ledger: Ledger) -> None:
    epoch = {name: value for name, value in last_epoch().items() if name not in ("best_val_bpd", "done")}
    ledger.update("0000-fvae", status="stopped", reason="others are better")
    shown, _ = report(ledger, epoch)
    assert [each.status for each in shown] == ["stopped"]
    remove_checkpoints(ledger)
    assert storage_of(ledger).exists(CHECKPOINT)


@pytest.mark.parametrize("follows", [True, False])
def test_what_a_checkpoint_rests_on_is_written_and_only_that_is_tracked(ledger: Ledger, follows: bool) -> None:
    epoch = {name: value for name, value in last_epoch().items() if name not in ("best_val_bpd", "done")}
    shown: list[TrialRecord] = []
    tracked: list[TrialRecord] = []
    callback = LedgerCallback(ledger, (shown.append,), pytest.fail, keepers=(tracked.append,))
    ledger.put(ledger.records["0000-fvae"])  # just now
    callback.on_trial_result(1, [], TRIAL, epoch | {"checkpoint_follows": follows})
    assert [each.epochs for each in shown] == [20]
    assert [each.epochs for each in tracked] == ([20] if follows else [])
    assert Ledger(ledger.root).records["0000-fvae"].epochs == (20 if follows else 19)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (StorageError("s3://a/b: cannot write: 503 SlowDown (9 attempts in 150 s)"), StorageError),
        (OSError(28, "No space left on device", "/full/training.safetensors"), OSError),
        (FileNotFoundError("/data/train.parquet: no such file"), StorageError),
        (ConfigError("s3://a: no such bucket"), ConfigError),
    ],
)
def test_a_store_s_trouble_ends_the_search_and_leaves_the_trial_to_go_on(
    ledger: Ledger, started: TrialRecord, error: OSError | ConfigError, raised: type[Exception]
) -> None:
    result = trouble(error) | {"epoch": 0, "done": True}
    with pytest.raises(raised) as caught:
        report(ledger, result)
    assert type(caught.value) is raised and str(caught.value) == str(error)
    assert Ledger(ledger.root).records == {started.id: started}
    assert storage_of(ledger).exists(CHECKPOINT)


def test_a_checkpoint_that_outlived_its_trial_goes_at_the_search_s_end(ledger: Ledger) -> None:
    ledger.put(record(1, "flow", 1000, 2.5))  # complete; then the driver was killed
    ledger.trial_storage("0001-flow").write(CHECKPOINT, b"weights")
    remove_checkpoints(ledger)
    keys = {info.key for info in ledger.root.list("trials")}
    assert keys == {f"trials/0000-fvae/{CHECKPOINT}", "trials/0000-fvae/trial.json", "trials/0001-flow/trial.json"}


# --- main memory -----------------------------------------------------------------------------------------------


def lost_for_memory(ledger: Ledger, others: Sequence[str] = (), **options: Any) -> TrialRecord:
    """The trial after Ray has ended its process for want of memory, more often than it starts it again."""
    model = ModelConfig(family="flow", channels=1, height=8, width=8).to_dict()
    ledger.update("0000-fvae", config=model, train=TrainConfig(epochs=20, validation_samples=4).to_dict())
    error = OutOfMemoryError("Task was killed due to the node running low on memory.\n" + 20 * "Refer to the docs.\n")
    trial = SimpleNamespace(config={"id": "0000-fvae"}, get_error=lambda: error, status=Trial.ERROR)
    trials: Any = [trial, *(SimpleNamespace(status=status) for status in others)]
    LedgerCallback(ledger, (), lambda line: None, **options).on_trial_error(1, trials, trial)  # type: ignore[arg-type]
    return ledger.records["0000-fvae"]


def status_with(ledger: Ledger, room: float) -> str:
    """Status of the trial in a later session on a machine with so much memory."""
    again = Ledger(ledger.root)
    again.retry_out_of_memory(room)
    return again.records["0000-fvae"].status


def test_a_trial_that_memory_did_not_hold_alone_waits_for_a_larger_machine(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tune.run.callbacks.memory_bytes", lambda: 2**30)
    failed = lost_for_memory(ledger, [Trial.TERMINATED, Trial.PENDING])
    assert failed.status == "failed" and "\n" not in failed.reason and len(failed.reason) < 250
    assert failed.reason.startswith("out of memory: its process needs about 3")
    assert "the machine's 1.0 GiB were in use; a machine with more memory may hold it" in failed.reason
    assert "--batch-size" not in failed.reason and "--concurrent" not in failed.reason
    assert status_with(ledger, 2**30) == "failed"
    assert status_with(ledger, 2 * 2**30) == "running"
    assert Ledger(ledger.root).records["0000-fvae"].reason == ""


def test_a_trial_that_others_crowded_out_is_tried_again_on_the_same_machine(ledger: Ledger) -> None:
    failed = lost_for_memory(ledger, [Trial.RUNNING])
    assert failed.status == "failed"
    assert failed.reason.endswith("; the same command tries it again, and --concurrent 1 leaves it more")
    assert status_with(ledger, 1) == "running"


@pytest.mark.parametrize("others", [[], [Trial.RUNNING]])
def test_refused_memory_is_the_others_where_there_are_any(ledger: Ledger, others: list[str]) -> None:
    result = {"epoch": 0, "failure": "alone", "if_crowded": "crowded", "memory_room": 2**30, "done": True}
    trials: Any = [TRIAL, *(SimpleNamespace(status=status) for status in others)]
    LedgerCallback(ledger, (), lambda line: None).on_trial_result(1, trials, TRIAL, result)  # type: ignore[arg-type]
    assert ledger.records["0000-fvae"].reason == ("crowded" if others else "alone")
    assert status_with(ledger, 2**30) == ("running" if others else "failed")


def test_the_memory_that_a_trial_needs_is_that_of_one_worker_with_its_validation(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int, int]] = []

    def count(model: ModelConfig, images: int, *, precision: str, validation_samples: int) -> SimpleNamespace:
        counted.append((images, validation_samples))
        return SimpleNamespace(total=2**20)

    monkeypatch.setattr("pipelines.training.main_memory.training_memory", count)
    lost_for_memory(ledger, workers=4)
    assert counted == [(-(-TrainConfig(epochs=20).batch_size // 4), 4)]


def test_on_a_cluster_the_driver_s_memory_is_not_the_lost_process_s(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "its machine's memory was in use" in lost_for_memory(ledger).reason


@pytest.mark.parametrize(
    ("trials", "crowded", "again"), [(2, False, False), (3, False, True), (2, True, True), (3, True, True)]
)
def test_on_a_cluster_a_finished_search_stays_finished(
    trials: int, crowded: bool, again: bool, tmp_path: Path, started: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ledger = Ledger(open_storage(tmp_path))
    ledger.put(started)
    lost_for_memory(ledger, [Trial.RUNNING] if crowded else [])
    ledger.put(dataclasses.replace(record(1, "flow", 1000, 2.5), status="failed", reason="the loss is nan"))
    budget = Budget(SearchSettings(trials=trials), SearchClock(ledger.root), 17)
    retry_out_of_memory(ledger, budget, seeds=1)
    assert ledger.records["0000-fvae"].status == ("running" if again else "failed")
    assert ledger.records["0001-flow"].status == "failed"


def test_nothing_is_taken_up_that_the_budget_does_not_let_train(
    tmp_path: Path, started: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ledger = Ledger(open_storage(tmp_path))
    ledger.put(started)
    lost_for_memory(ledger, [Trial.RUNNING])
    budget = Budget(SearchSettings(gpu_hours=1e-9), SearchClock(ledger.root), 17)
    retry_out_of_memory(ledger, budget, seeds=1)
    assert ledger.records["0000-fvae"].status == "failed"


def test_a_result_says_how_much_memory_there_was(ledger: Ledger) -> None:
    report(ledger, {"epoch": 0, "failure": "out of memory: …", "memory_room": 2**30, "done": True})
    assert Ledger(ledger.root).records["0000-fvae"].memory_room == 2**30

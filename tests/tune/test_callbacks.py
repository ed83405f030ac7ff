"""What the driver makes of a result, called as Tune calls it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.troubles import trouble
from tests.tune.synthetic import record
from tune.callbacks import LedgerCallback
from tune.ledger import Ledger, TrialRecord
from tune.search_job import remove_checkpoints
from tune.trial_files import CHECKPOINT

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


def hear(ledger: Ledger, result: dict[str, Any]) -> tuple[list[TrialRecord], list[str]]:
    """What the watchers are shown, and the lines of warning."""
    shown: list[TrialRecord] = []
    warned: list[str] = []
    LedgerCallback(ledger, (shown.append,), warned.append).on_trial_result(1, [], TRIAL, result)
    return shown, warned


def test_a_trial_that_ended_is_recorded_shown_and_rid_of_its_checkpoint(ledger: Ledger) -> None:
    shown, warned = hear(ledger, last_epoch() | {"warnings": ["read s3://a/b: attempt 1 failed", "and again"]})
    assert [each.status for each in shown] == ["complete"]
    assert warned == ["0000-fvae: read s3://a/b: attempt 1 failed", "0000-fvae: and again"]
    assert Ledger(ledger.root).records["0000-fvae"] == shown[0]
    assert [info.key for info in storage_of(ledger).list()] == ["trial.json"]


def test_a_trial_that_goes_on_keeps_its_checkpoint(ledger: Ledger) -> None:
    epoch = {name: value for name, value in last_epoch().items() if name not in ("best_val_bpd", "done")}
    shown, _ = hear(ledger, epoch)
    assert [each.status for each in shown] == ["running"]
    assert storage_of(ledger).exists(CHECKPOINT)


def test_a_stopped_trial_keeps_its_checkpoint_as_it_may_go_on(ledger: Ledger) -> None:
    epoch = {name: value for name, value in last_epoch().items() if name not in ("best_val_bpd", "done")}
    ledger.update("0000-fvae", status="stopped", reason="others are better")
    shown, _ = hear(ledger, epoch)
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
        hear(ledger, result)
    assert type(caught.value) is raised and str(caught.value) == str(error)
    assert Ledger(ledger.root).records == {started.id: started}
    assert storage_of(ledger).exists(CHECKPOINT)


def test_a_checkpoint_that_outlived_its_trial_goes_at_the_search_s_end(ledger: Ledger) -> None:
    ledger.put(record(1, "flow", 1000, 2.5))  # complete; then the driver was killed
    ledger.trial_storage("0001-flow").write(CHECKPOINT, b"weights")
    remove_checkpoints(ledger)
    keys = {info.key for info in ledger.root.list("trials")}
    assert keys == {f"trials/0000-fvae/{CHECKPOINT}", "trials/0000-fvae/trial.json", "trials/0001-flow/trial.json"}

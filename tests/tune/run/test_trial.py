"""The trial process, called as Tune calls it, without Ray around it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch

from fvae import ConfigError, ModelConfig, TrainConfig, Trainer
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.training.model_files import load_model
from pipelines.training.worker_warnings import keep_warnings, raise_trouble, with_warnings
from tune.records.attempts import Attempt, begin_attempt, now_ms
from tune.records.ledger import Ledger, TrialRecord, changes
from tune.run import trial_checkpoint
from tune.run.scoring import read_test_split
from tune.run.trial import TrialProcess
from tune.run.trial_checkpoint import CHECKPOINT, Checkpoints

pytestmark = pytest.mark.core

EPOCHS = 4
MODEL_CONFIG = ModelConfig(
    family="fvae", channels=1, height=4, width=4, bins=8, flow_levels=1, flow_depth=1, coupling_width=8, encoder_width=8
)
TRAIN_CONFIG = TrainConfig(epochs=EPOCHS, batch_size=16)
IMAGES = np.random.default_rng(0).integers(0, 8, (40, 1, 4, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def checkpoint_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SHARE", 1e9)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run may lie."""
    return str(tmp_path / "run") if request.param == "local" else f"{request.getfixturevalue('bucket')}/run"


class Process(TrialProcess):
    """Without Tune's own constructor, which wants a Ray worker around it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.setup(config, {"train": IMAGES, "val": IMAGES[:20]}, "cpu", 1, shares_grow=False)


def open_ledger(place: str) -> Ledger:
    """A ledger that holds one trial."""
    ledger = Ledger(open_storage(place))
    if not ledger.records:
        ledger.put(
            TrialRecord(
                id="0000-fvae",
                family="fvae",
                config=MODEL_CONFIG.to_dict(),
                train=TRAIN_CONFIG.to_dict(),
                params=1,
                flops_per_image=1,
                suggestion={},
            )
        )
    return ledger


def config_of(ledger: Ledger, record: TrialRecord) -> dict[str, Any]:
    """What the searcher gives the process of a trial."""
    return {
        "id": record.id,
        "storage": ledger.trial_storage(record.id).uri,
        "model": record.config,
        "train": record.train,
        "seconds": record.seconds,
    }


def start(ledger: Ledger) -> tuple[Process, TrialRecord]:
    """A process for the ledger's one trial, as the searcher and Tune start it."""
    (record,) = ledger.records.values()
    attempt = Attempt(started_ms=now_ms(), cpus=1.0, gpus=0.0)
    record = ledger.update(record.id, attempts=begin_attempt(record.attempts, attempt))
    return Process(config_of(ledger, record)), record


def recorded(ledger: Ledger, result: dict[str, Any]) -> TrialRecord:
    (record,) = ledger.records.values()
    return ledger.update(record.id, **changes(record, result))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each epoch of the trial measures."""
    process, _ = start(open_ledger(str(tmp_path_factory.mktemp("undisturbed"))))
    return [process.step() for _ in range(EPOCHS)]


@pytest.mark.parametrize("killed_after", range(1, EPOCHS + 1))
@pytest.mark.parametrize("driver_heard_of_it", [True, False])
def test_killed_after_any_epoch_the_history_is_whole(
    place: str, undisturbed: list[dict[str, Any]], killed_after: int, driver_heard_of_it: bool
) -> None:
    ledger = open_ledger(place)
    process, _ = start(ledger)
    for epoch in range(1, killed_after + 1):
        result = process.step()
        if epoch < killed_after or driver_heard_of_it:
            recorded(ledger, result)

    ledger = Ledger(open_storage(place))  # both processes are new
    (record,) = ledger.records.values()
    if record.status == "running":
        process, _ = start(ledger)
        results = []
        while record.status == "running":
            results.append(process.step())
            record = recorded(ledger, results[-1])
        # It goes on from the checkpoint, which the last step had written before its epoch.
        assert results[0]["epoch"] == max(1, killed_after)
    assert record.status == "complete"
    assert [point.epoch for point in record.history] == list(range(1, EPOCHS + 1))
    assert [point.val_bpd for point in record.history] == [result["val_bpd"] for result in undisturbed]
    assert (record.best_epoch, record.val_bpd) == (undisturbed[-1]["best_epoch"], undisturbed[-1]["best_val_bpd"])
    seconds = [point.seconds for point in record.history]
    assert seconds == sorted(seconds)
    load_model(ledger.trial_storage(record.id), "cpu")


@pytest.mark.parametrize(
    ("status", "heard", "kept"),
    [("stopped", True, True), ("running", True, True), ("running", False, False), ("failed", True, False)],
)
def test_a_trial_that_may_go_on_is_kept_when_its_process_leaves_it(
    place: str, monkeypatch: pytest.MonkeyPatch, status: str, heard: bool, kept: bool
) -> None:
    """Up to the epoch that the ledger holds, or not at all: a checkpoint is never ahead."""
    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SECONDS", 1e9)
    ledger = open_ledger(place)
    process, _ = start(ledger)
    recorded(ledger, process.step())
    result = process.step()
    if heard:
        recorded(ledger, result)
    ledger.update("0000-fvae", status=status)
    assert not ledger.trial_storage("0000-fvae").exists(CHECKPOINT)
    process.cleanup()
    assert ledger.trial_storage("0000-fvae").exists(CHECKPOINT) == kept
    if kept:
        ledger.update("0000-fvae", status="running")
        process, _ = start(ledger)
        assert process.step()["epoch"] == 3


def test_a_reused_process_leaves_its_trial_likewise(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(place)
    process, record = start(ledger)
    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SECONDS", 1e9)
    monkeypatch.setattr(process, "setup", lambda config: None)
    recorded(ledger, process.step())
    ledger.update(record.id, status="stopped", reason="because")
    process.reset_config({})
    assert ledger.trial_storage(record.id).exists(CHECKPOINT)


def test_a_process_says_what_its_attempt_has_done(place: str) -> None:
    ledger = open_ledger(place)
    process, _ = start(ledger)
    first, second = process.step(), process.step()
    assert (first["attempt_first_epoch"], first["attempt_epochs"], second["attempt_epochs"]) == (1, 1, 2)
    assert second["attempt_images"] == second["images"] == 2 * first["images"]
    assert second["attempt_seconds"] == second["seconds"] > first["seconds"] > 0
    for result in (first, second):
        recorded(ledger, result)
    process, _ = start(ledger)  # from the checkpoint before the second epoch
    again = process.step()
    assert (again["epoch"], again["attempt_first_epoch"], again["attempt_epochs"]) == (2, 2, 1)
    assert again["attempt_images"] == first["images"]
    assert again["attempt_seconds"] == pytest.approx(again["seconds"] - first["seconds"])


def test_what_a_complete_trial_leaves(place: str) -> None:
    ledger = open_ledger(place)
    process, record = start(ledger)
    for _ in range(EPOCHS):
        process.step()
    left = [info.key for info in ledger.trial_storage(record.id).list()]
    assert left == sorted([
        "interpolations.png", "model/config.json", "model/model.safetensors", "reconstructions.png", "samples.png",
        CHECKPOINT, "trial.json",
    ])  # fmt: skip


def test_a_damaged_checkpoint_costs_epochs_not_the_trial(place: str) -> None:
    ledger = open_ledger(place)
    process, record = start(ledger)
    for _ in range(3):
        recorded(ledger, process.step())
    storage = ledger.trial_storage(record.id)
    storage.write(CHECKPOINT, storage.read(CHECKPOINT)[:-10])
    process, _ = start(ledger)
    first = process.step()
    assert first["epoch"] == 1
    assert not storage.exists(CHECKPOINT)
    for result in [first, *(process.step() for _ in range(EPOCHS - 1))]:
        recorded(ledger, result)
    (record,) = ledger.records.values()
    assert record.status == "complete"
    assert [point.epoch for point in record.history] == list(range(1, EPOCHS + 1))


def test_a_checkpoint_that_the_store_has_spoilt_costs_epochs_too(bucket: str, impatient: None) -> None:
    ledger = open_ledger(f"{bucket}/runs/name")
    process, record = start(ledger)
    for _ in range(3):
        recorded(ledger, process.step())
    storage = ledger.trial_storage(record.id)
    key = f"runs/name/trials/{record.id}/{CHECKPOINT}"
    store, name = boto3.client("s3"), bucket.removeprefix("s3://")
    held = store.get_object(Bucket=name, Key=key)
    content = held["Body"].read()
    store.put_object(Bucket=name, Key=key, Body=content[:-1] + b"?", Metadata=held["Metadata"])
    process, _ = start(ledger)
    assert process.step()["epoch"] == 1
    assert not storage.exists(CHECKPOINT)


def test_a_non_finite_trial_fails_with_its_reason(place: str) -> None:
    ledger = open_ledger(place)
    process, _ = start(ledger)
    recorded(ledger, process.step())
    next(process.training.trainer.model.parameters()).data.fill_(float("nan"))
    record = recorded(ledger, process.step())
    assert record.status == "failed"
    assert record.reason.startswith("step 3 (epoch 2): loss nan")


@pytest.mark.parametrize("more_memory", [True, False])
@pytest.mark.parametrize("method", ["__init__", "train_epoch"])
def test_a_trial_that_memory_does_not_hold_says_so(
    place: str, method: str, more_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no crash, which Tune would try three times; where there may be more memory, it goes on there."""
    ledger = open_ledger(place)
    process, _ = start(ledger)
    process.training.share, process.training.shares_grow = 0.5, more_memory

    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, fail)
        record = recorded(ledger, process.step())
    if more_memory:
        assert record.status == "running"
        process.training.leave()  # as where the process takes another trial
        process, _ = start(ledger)
        assert process.step()["epoch"] == 1
    else:
        assert record.status == "failed"
        assert record.reason == "CUDA out of memory with --gpus-per-trial=0.5: give a larger share, or auto"


@pytest.mark.parametrize("cannot_fit", [True, False])
def test_main_memory_that_does_not_hold_a_trial_is_one_line(
    cannot_fit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before it begins, or because memory is refused."""
    ledger = open_ledger(str(tmp_path))
    process, record = start(ledger)
    if cannot_fit:
        monkeypatch.setattr("tune.run.trial.memory_bytes", lambda: 2**20)
        monkeypatch.setattr(process.training, "_make_trainer", lambda: pytest.fail("was made"))
    else:
        monkeypatch.setattr(process.training, "_make_trainer", lambda: torch.empty(2**60))
    result = process.step()
    failed = recorded(ledger, result)
    assert failed.status == "failed" and failed.reason.startswith("out of memory: its process needs ")
    assert "\n" not in failed.reason
    assert failed.memory_room is not None and "--batch-size" not in failed.reason  # trials of one search must compare
    assert ("if_crowded" in result) != cannot_fit
    assert result["done"]


def test_checkpoints_take_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clock of the test's own: an epoch takes 4 s, a checkpoint 1.5 s."""
    now, saved_at = 0.0, []

    class FourSecondEpochs:
        epoch = 0

        def save(self, path: Path) -> None:
            nonlocal now
            now += 1.5
            saved_at.append(now)

    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SECONDS", 5.0)
    monkeypatch.setattr(trial_checkpoint, "CHECKPOINT_SHARE", 1 / 20)
    monkeypatch.setattr(trial_checkpoint.time, "monotonic", lambda: now)
    trainer, checkpoints = FourSecondEpochs(), Checkpoints(open_storage(tmp_path))
    for _ in range(100):
        now += 4.0
        trainer.epoch += 1
        if checkpoints.due(trainer):  # type: ignore[arg-type]
            checkpoints.save(trainer)  # type: ignore[arg-type]
    assert saved_at[0] == 9.5  # the first tells what one costs
    assert np.diff(saved_at).min() >= 30
    assert 0.04 < 1.5 * len(saved_at) / now < 0.05


# --- a storage that fails ------------------------------------------------------------------------------------


def test_a_store_that_fails_ends_the_search_not_the_trial(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path))
    process, record = start(ledger)
    recorded(ledger, process.step())
    folder = tmp_path / "trials" / record.id
    for name in ("samples.png", CHECKPOINT):
        (folder / name).mkdir()  # nothing can be written there
    result = process.step()
    assert result["done"] and "failure" not in result
    with pytest.raises(OSError, match=CHECKPOINT):
        raise_trouble(result)
    (folder / CHECKPOINT).rmdir()
    for _ in range(EPOCHS - 2):
        result = process.step()
    assert result["epoch"] == EPOCHS - 1
    with pytest.raises(StorageError, match=r"samples\.png: cannot write"):
        raise_trouble(process.step())


def test_a_missing_bucket_ends_the_search_with_its_line(bucket: str) -> None:
    process, _ = start(open_ledger(f"{bucket}/run"))
    process.training.storage = open_storage("s3://another-bucket-that-is-missing/run")
    result = process.step()
    with pytest.raises(ConfigError, match="s3://another-bucket-that-is-missing: no such bucket"):
        raise_trouble(result)
    assert process.step() == result  # asked again, it still does not train from the start


def test_what_was_tried_again_comes_with_the_next_result() -> None:
    logger = logging.getLogger("pipelines.storage")
    keep_warnings()
    keep_warnings()
    with_warnings({})  # what other tests left
    logger.warning("read %s: again", "s3://a/b")
    logger.info("no news")
    assert with_warnings({"epoch": 1}) == {"epoch": 1, "warnings": ["read s3://a/b: again"]}
    assert with_warnings({"epoch": 2}) == {"epoch": 2}


# --- the test split ------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_measured_gives_its_reason(place: str) -> None:
    storage: Storage = open_storage(place)
    storage.write("trial.json", b"{}")
    result = read_test_split(storage.uri, IMAGES, 0, 1, "cpu")
    assert result == {
        "failure": f"test split: {storage.uri}/model: no model.safetensors there; "
        "a saved model is a folder with model.safetensors and config.json"
    }


def test_a_model_is_measured_alike_wherever_it_lies(tmp_path: Path, bucket: str) -> None:
    readings = []
    for place in (str(tmp_path), f"{bucket}/run"):
        ledger = open_ledger(place)
        process, record = start(ledger)
        for _ in range(EPOCHS):
            process.step()
        readings.append(read_test_split(ledger.trial_storage(record.id).uri, IMAGES, 0, 1, "cpu"))
    assert readings[0] == readings[1]
    assert readings[0]["test"].bpd > readings[0]["test"].bpd_iwae64

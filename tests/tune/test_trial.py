"""The trial process, called as Tune calls it, without Ray around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvae import ModelConfig, TrainConfig, load
from tune import trial
from tune.ledger import Ledger, TrialRecord, changes
from tune.trial import CHECKPOINT, MODEL, TrialProcess, read_test_split

EPOCHS = 6
MODEL_CONFIG = ModelConfig(
    family="fvae", channels=1, height=4, width=4, bins=8, flow_levels=1, flow_depth=1, coupling_width=8, encoder_width=8
)
TRAIN_CONFIG = TrainConfig(epochs=EPOCHS, batch_size=16)
IMAGES = np.random.default_rng(0).integers(0, 8, (40, 1, 4, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def checkpoint_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)


class Process(TrialProcess):
    """Without Tune's own constructor, which wants a Ray worker around it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.setup(config, {"train": IMAGES, "val": IMAGES[:20]}, "cpu", 1)


def start(ledger: Ledger) -> tuple[Process, TrialRecord]:
    """A process for the ledger's one trial, as the searcher would start it."""
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
    (record,) = ledger.records.values()
    config = {
        "id": record.id,
        "directory": str(ledger.trial_dir(record.id)),
        "model": record.config,
        "train": record.train,
        "seconds": record.seconds,
    }
    return Process(config), record


def recorded(ledger: Ledger, result: dict[str, Any]) -> TrialRecord:
    (record,) = ledger.records.values()
    return ledger.update(record.id, **changes(record, result))


@pytest.mark.parametrize("killed_after", range(1, EPOCHS + 1))
@pytest.mark.parametrize("driver_heard_of_it", [True, False])
def test_killed_after_any_epoch_the_history_is_whole(
    tmp_path: Path, killed_after: int, driver_heard_of_it: bool
) -> None:
    whole, _ = start(Ledger(tmp_path / "whole"))
    measured = [whole.step() for _ in range(EPOCHS)]

    ledger = Ledger(tmp_path / "killed")
    process, _ = start(ledger)
    for epoch in range(1, killed_after + 1):
        result = process.step()
        if epoch < killed_after or driver_heard_of_it:
            recorded(ledger, result)

    ledger = Ledger(tmp_path / "killed")  # both processes are new
    (record,) = ledger.records.values()
    if record.status == "running":
        process, _ = start(ledger)
        while record.status == "running":
            record = recorded(ledger, process.step())
    assert record.status == "complete"
    assert [point.epoch for point in record.history] == list(range(1, EPOCHS + 1))
    assert [point.val_bpd for point in record.history] == [result["val_bpd"] for result in measured]
    assert (record.best_epoch, record.val_bpd) == (measured[-1]["best_epoch"], measured[-1]["best_val_bpd"])
    seconds = [point.seconds for point in record.history]
    assert seconds == sorted(seconds)
    load(ledger.trial_dir(record.id) / MODEL)


def test_a_damaged_checkpoint_costs_epochs_not_the_trial(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    process, record = start(ledger)
    for _ in range(3):
        recorded(ledger, process.step())
    checkpoint = ledger.trial_dir(record.id) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    process, _ = start(ledger)
    assert process.trainer.epoch == 0
    results = [process.step() for _ in range(EPOCHS)]
    for result in results:
        recorded(ledger, result)
    (record,) = ledger.records.values()
    assert record.status == "complete"
    assert [point.epoch for point in record.history] == list(range(1, EPOCHS + 1))


def test_a_non_finite_trial_fails_with_its_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    process, _ = start(ledger)
    recorded(ledger, process.step())
    next(process.trainer.model.parameters()).data.fill_(float("nan"))
    record = recorded(ledger, process.step())
    assert record.status == "failed"
    assert record.reason.startswith("step 3 (epoch 2): loss nan")


def test_a_model_that_cannot_be_measured_gives_its_reason(tmp_path: Path) -> None:
    assert "no model.safetensors there" in str(read_test_split(str(tmp_path), IMAGES, 0, 1, "cpu"))

"""Trials of tiny models on noise, which the engine runs on a real Ray without the rest of a search."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from ray import tune

import pipelines.training.ray_environment  # noqa: F401
from fvae import ModelConfig, TrainConfig, Trainer
from fvae.data.images import ImageDataset
from pipelines.storage import open_storage
from tests.tune.small_space import proposer
from tune.propose.expected_front import ExpectedFronts
from tune.records.ledger import Ledger, TrialRecord
from tune.records.training_time import SearchClock
from tune.run import engine
from tune.run.budget import Budget
from tune.run.callbacks import BudgetStopper, LedgerCallback
from tune.run.resources import Resources
from tune.run.tune_searcher import FrontSearcher
from tune.settings import SearchSettings
from tune.stats.forecasts import Forecasts

PIXELS = np.random.default_rng(0).integers(0, 8, (60, 1, 4, 4), dtype=np.uint8)
DATASET = ImageDataset(name="noise", bins=8, train=PIXELS[:40], val=PIXELS[40:50], test=PIXELS[50:])
MODEL = {"channels": 1, "height": 4, "width": 4, "bins": 8, "flow_levels": 1, "flow_depth": 1, "coupling_width": 8}
EPOCHS = 5


def models(count: int) -> list[ModelConfig]:
    """So many, each a little larger than the one before."""
    return [ModelConfig(family="fvae", encoder_width=4 + 2 * number, **MODEL) for number in range(count)]


def open_ledger(folder: Path, trials: int) -> Ledger:
    """A ledger with trials that an earlier search began."""
    ledger = Ledger(open_storage(folder))
    for number, model in enumerate(models(trials)):
        train = TrainConfig(epochs=EPOCHS, batch_size=16, seed=number)
        ledger.put(
            TrialRecord(
                id=f"{number:04d}-fvae", family="fvae", config=model.to_dict(), train=train.to_dict(), params=1,
                flops_per_image=1, suggestion={},
            )
        )  # fmt: skip
    return ledger


def search(resources: Resources, ledger: Ledger, *callbacks: tune.Callback) -> bool:
    """Train the ledger's trials, and stop none of them."""
    budget = Budget(SearchSettings(trials=len(ledger.records)), SearchClock(ledger.root), DATASET.bins)
    expected = ExpectedFronts(ledger, Forecasts([], EPOCHS, math.log2(DATASET.bins)), bins=DATASET.bins)
    families = ("fvae",)
    searcher = FrontSearcher(ledger=ledger, proposer=proposer(families=families), families=families, budget=budget)
    warned: list[str] = []
    watching = [LedgerCallback(ledger, (), warned.append), *callbacks]
    done = engine.run_trials(resources, DATASET, expected, searcher, watching, BudgetStopper(budget, ledger))
    assert warned == []
    return done


def check_figures(record: TrialRecord) -> None:
    """A complete trial's figures are those of a training in one process."""
    trainer = Trainer(
        ModelConfig.from_dict(record.config), TrainConfig.from_dict(record.train), DATASET.train, DATASET.val
    )
    while not trainer.finished:
        trainer.train_epoch()
    assert record.status == "complete", record.reason
    assert [each.epoch for each in record.history] == list(range(1, EPOCHS + 1))
    for name in ("train_bpd", "val_bpd", "sigma1", "sigma2", "images"):
        figures = [[getattr(each, name) for each in history] for history in (record.history, trainer.history)]
        assert figures[0] == pytest.approx(figures[1], abs=1e-3), name
    assert record.best_epoch == trainer.best_epoch
    assert record.val_bpd == pytest.approx(trainer.best_val_bpd, abs=1e-3)


def check_files(ledger: Ledger, record: TrialRecord) -> None:
    """A complete trial leaves what one that was trained in one process leaves."""
    assert [info.key for info in ledger.trial_storage(record.id).list()] == sorted([
        "interpolations.png", "model/config.json", "model/model.safetensors", "reconstructions.png", "samples.png",
        "trial.json",
    ])  # fmt: skip

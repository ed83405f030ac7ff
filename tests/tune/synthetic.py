"""Trials of made-up worlds whose truth is known: bpd(N) = a + b·N^−α, plus what the search failed to find."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from fvae.epoch_metrics import EpochMetrics
from tune.records.attempts import Attempt
from tune.records.ledger import TrialRecord
from tune.records.scores import TestResult

A, B, ALPHA = 2.0, 12.0, 0.3
SEARCH: dict[str, Any] = {
    "dataset": {
        "name": "digits", "hash": "0123456789abcdef", "shape": [1, 8, 8], "bins": 17,
        "train": 1257, "val": 180, "test": 360,
    },
    "seed": 7,
    "budget": {"trials": 24, "epochs": 20, "images_per_trial": 25140},
}  # fmt: skip
EPOCHS = 20


def true_bpd(params: float, ratio: float = 1.0) -> float:
    """Bits/dim of the best model of a family that needs ``ratio`` times the flow's parameters."""
    return A + B * (params / ratio) ** -ALPHA


def record(number: int, family: str, params: int, bpd: float, *, seed: int = 0, **changes: Any) -> TrialRecord:
    """A complete trial whose history ends at ``bpd``."""
    rng = np.random.default_rng((seed, number))
    speed, pace = rng.uniform(3000, 6000), rng.uniform(0.15, 0.4)
    history = tuple(
        EpochMetrics(
            epoch=epoch, train_bpd=bpd + 1.6 * float(np.exp(-pace * epoch)), grad_norm=1.0, images_per_second=speed,
            val_bpd=bpd + 1.5 * float(np.exp(-pace * epoch) - np.exp(-pace * EPOCHS)), images=1257 * epoch,
            seconds=epoch * (1257 / speed + params / 1e6), sigma1=0.05 * 0.97**epoch, sigma2=0.1 * 0.95**epoch,
            time_ms=1_700_000_000_000 + 1000 * epoch,
        )
        for epoch in range(1, EPOCHS + 1)
    )  # fmt: skip
    suggestion = {
        "flow_depth": int(rng.integers(1, 5)),
        "learning_rate": float(10 ** rng.uniform(-3.5, -2)),
        "coupling": ["affine", "additive"][int(rng.integers(2))],
        "width": float(np.log10(params)),
    }
    if family != "flow":
        suggestion["latent_channels"] = [None, 2, 4][int(rng.integers(3))]
    config = {"family": family, "flow_levels": 2, "sigma1_init": 0.05, "sigma2_init": 0.1} | suggestion
    last = history[-1]
    attempt = Attempt(
        started_ms=last.time_ms - round(1000 * last.seconds), cpus=1.0, gpus=0.0, first_epoch=1, epochs=EPOCHS,
        images=last.images, seconds=last.seconds, ended="done", ended_ms=last.time_ms,
    )  # fmt: skip
    trial = TrialRecord(
        id=f"{number:04d}-{family}", family=family, config=config, train={"epochs": EPOCHS, "seed": 3}, params=params,
        flops_per_image=900 * params, suggestion=suggestion, status="complete", history=history, best_epoch=EPOCHS,
        val_bpd=bpd, attempts=(attempt,),
    )  # fmt: skip
    return dataclasses.replace(trial, **changes)


def stopped(trial: TrialRecord, epochs: int) -> TrialRecord:
    """``trial``, had it been stopped after so many epochs."""
    history = trial.history[:epochs]
    attempt = dataclasses.replace(
        trial.attempts[0], epochs=epochs, images=history[-1].images, seconds=history[-1].seconds, ended="stopped"
    )
    return dataclasses.replace(
        trial, status="stopped", reason=f"epoch {epochs}: smaller models are clearly better", history=history,
        best_epoch=None, val_bpd=history[-1].val_bpd, attempts=(attempt,),
    )  # fmt: skip


def world(
    ratio: float, trials: int, *, scatter: float = 0.05, seed: int = 0, families: tuple[str, ...] = ("fvae", "flow"),
    sizes: tuple[float, float] = (1e4, 1e6),
) -> list[TrialRecord]:  # fmt: skip
    """``trials`` complete trials a family at log-uniform sizes, on average ``scatter`` worse than their size allows."""
    rng = np.random.default_rng(seed)
    records: list[TrialRecord] = []
    for family in families:
        for params in np.exp(rng.uniform(*np.log(sizes), trials)).astype(int):
            bpd = true_bpd(params, ratio if family == "fvae" else 1.0) + rng.exponential(scatter)
            records.append(record(len(records), family, int(params), float(bpd), seed=seed))
    return records


def read_test(trial: TrialRecord) -> TrialRecord:
    """``trial`` with its test figures read."""
    bpd = (trial.val_bpd or 0) + 0.013
    result = TestResult(bpd=bpd, bpd_iwae64=bpd - 0.04, standard_error=0.012, standard_error_iwae64=0.011, seed=5)
    return dataclasses.replace(trial, test=result)


def failed(number: int, family: str, params: int, reason: str) -> TrialRecord:
    """A trial that ended in a NaN."""
    trial = record(number, family, params, 3.0)
    last = dataclasses.replace(trial.history[2], val_bpd=float("nan"))
    return dataclasses.replace(
        trial, status="failed", reason=reason, history=(*trial.history[:2], last), val_bpd=last.val_bpd, best_epoch=None
    )


def write_pictures(folder: Any) -> None:
    """A small grid of noise as a trial's ``samples.png`` and ``reconstructions.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("samples.png", "reconstructions.png"):
        pixels = np.random.default_rng(0).integers(256, size=(64, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)

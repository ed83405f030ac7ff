"""A small table of invented learning curves over the real search space: larger models learn more, and later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.search.curves import SERIES, Curves, Row, table_space
from benchmarks.search.table import SCHEMA
from fvae import ConfigError
from fvae.config import FAMILIES
from tune.space import SearchSpace, suggest

IMAGES = {"channels": 1, "height": 8, "width": 8, "bins": 17}
EPOCHS = 9
DIVERGED = 4
"""Index of the row that diverges, in its third epoch."""


def series(values: list[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def row(index: int, family: str, params: int, val_bpd: np.ndarray, seconds: np.ndarray, **known: object) -> Row:
    fields = {
        "source": "random",
        "suggestion": {},
        "model": IMAGES,
        "train": {"epochs": EPOCHS},
        "failure": None,
    } | known
    return Row(
        id=f"{index:04d}-{family}",
        family=family,
        params=params,
        flops_per_image=10 * params,
        memory_bytes=100 * params,
        val_bpd=val_bpd,
        train_bpd=val_bpd,
        seconds=seconds,
        sigma1=val_bpd,
        sigma2=val_bpd,
        val_bits=val_bpd,
        **fields,  # type: ignore[arg-type]
    )


def table(count: int = 24, seed: int = 0) -> Curves:
    rng = np.random.default_rng(seed)
    studies = {family: optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)) for family in FAMILIES}
    space = table_space((1, 8, 8), IMAGES["bins"])
    rows = []
    for index in range(count):
        family = FAMILIES[index % 3]
        trial = optuna.trial.FixedTrial(_possible(studies[family], family, space))
        model, train = suggest(trial, family, space, IMAGES)
        params = int(10 ** rng.uniform(2.5, 5))
        final = 4.5 - 0.5 * math.log10(params) + rng.uniform(0, 0.8)
        curve = final + 30 * np.exp(-np.arange(1, EPOCHS + 1) * rng.uniform(0.5, 1.5))
        diverged = index == DIVERGED
        length = 2 if diverged else EPOCHS
        rows.append(
            row(
                index,
                family,
                params,
                series(curve[:length]),
                series(rng.uniform(0.5, 2, length)),
                source="design" if index % 4 == 0 else "random",
                suggestion=trial.params,
                model=model.to_dict(),
                train={"epochs": EPOCHS, **train},
                failure="not finite" if diverged else None,
            )
        )
    return Curves(rows=tuple(rows), bins=17, epochs=EPOCHS)


def write_rows(curves: Curves, folder: Path) -> list[dict[str, Any]]:
    """As ``benchmarks.search.table`` does while it is in work; what it wrote."""
    folder.mkdir()
    records = []
    for each in curves.rows:
        record = {name: getattr(each, name) for name in SCHEMA.names}
        record |= {name: json.dumps(record[name]) for name in ("suggestion", "model", "train")}
        record |= {name: record[name].tolist() for name in SERIES}
        (folder / f"{each.id}.json").write_text(json.dumps(record))
        records.append(record)
    return records


def _possible(study: optuna.Study, family: str, space: SearchSpace) -> dict[str, object]:
    while True:
        trial = study.ask()
        try:
            suggest(trial, family, space, IMAGES)
        except ConfigError:
            continue
        return trial.params

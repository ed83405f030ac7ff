"""The digits' search space, and trials of it whose bits/dim are made up: what tests of proposals share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fvae.train_config import TrainConfig
from pipelines.storage import open_storage
from tune.propose.candidates import Candidate, SpaceCandidates
from tune.propose.designs import first_models
from tune.propose.limits import Limits
from tune.propose.proposers import OptunaProposer
from tune.records.ledger import Ledger, TrialRecord
from tune.run.tune_searcher import FrontSearcher
from tune.settings import Sampler
from tune.space import SearchSpace

DIGITS = {"channels": 1, "height": 8, "width": 8, "bins": 17}
FAMILIES = ("fvae", "flow", "vae")
SPACE = SearchSpace.for_images((1, 8, 8), 17)
SOURCE = SpaceCandidates(SPACE, DIGITS, TrainConfig())
NO_LIMITS = Limits()

ONE_POINT = dataclasses.replace(
    SPACE,
    flow_levels=(1, 1),
    flow_depth=(1, 1),
    coupling_width=(8, 8),
    coupling=("affine",),
    mixing=("plu",),
    dequantization=("uniform",),
    sigma_bins=(1.7, 1.7),
    learning_rate=(1e-3, 1e-3),
)
"""Holds a single flow."""


def trial(number: int, candidate: Candidate, status: str = "complete", **changes: Any) -> TrialRecord:
    """A trial of ``candidate``; a complete one has some bits/dim, the larger the fewer."""
    values: dict[str, Any] = {
        "id": f"{number:04d}-{candidate.family}",
        "family": candidate.family,
        "config": candidate.model.to_dict(),
        "train": candidate.train,
        "params": candidate.params,
        "flops_per_image": candidate.flops_per_image,
        "suggestion": candidate.suggestion,
        "status": status,
        "val_bpd": None if status in ("running", "failed") else made_up_bpd(candidate),
    }
    return TrialRecord(**(values | changes))


def made_up_bpd(candidate: Candidate) -> float:
    """A function of the candidate that a sampler can learn: the learning rate matters, and size."""
    return 2 + 12 * candidate.params**-0.3 + abs(float(np.log(candidate.train["learning_rate"] / 5e-3)))


class Allowed:
    """A budget of so many trials; its other answers can be set."""

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.used_up: str | None = None

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        """No more than ``trials``, replicates not counted."""
        started = sum(record.replicate_of is None for record in ledger.records.values())
        return None if replicate or started < self.trials else f"--trials {self.trials}: all started"

    def over(self, ledger: Ledger) -> str | None:
        """What was set."""
        return self.used_up


def proposer(
    sampler: Sampler = "tpe",
    *,
    limits: Limits = NO_LIMITS,
    families: tuple[str, ...] = FAMILIES,
    trials: int = 12,
    source: SpaceCandidates = SOURCE,
    seed: int = 0,
) -> OptunaProposer:
    """The proposer that a search makes."""
    first = first_models(source, limits, families, trials)
    return OptunaProposer(sampler, source=source, limits=limits, first=first, seed=seed)


def searcher(
    root: Path, trials: int = 12, families: tuple[str, ...] = FAMILIES, *, seeds: int = 1, **settings: Any
) -> FrontSearcher:
    """A searcher on the ledger in ``root``."""
    return FrontSearcher(
        ledger=Ledger(open_storage(root)),
        proposer=proposer(families=families, trials=trials, **settings),
        families=families,
        budget=Allowed(trials),
        seeds=seeds,
    )


def finish(
    search: FrontSearcher, tune_id: str, trial_id: str, status: str = "complete", val_bpd: float | None = 2.5
) -> None:
    """End a trial as the ledger's callback and Tune do."""
    search.ledger.update(trial_id, status=status, val_bpd=val_bpd, reason="because")
    search.on_trial_complete(tune_id)

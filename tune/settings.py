"""What a search is told: the options of ``python tune/search.py``."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from fvae.config import FAMILIES, Family, require, require_choice, require_integer
from fvae.train_config import Precision
from pipelines.run_settings import RunSettings, as_run_name
from pipelines.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings(RunSettings):
    """Search VAE, flow and f-VAE on a set of images, and draw the map of parameters against bits/dim.

    The same command again resumes an unfinished search, shows a finished one, and with more
    --trials extends it.
    """

    name: str | None = None
    """Name of the run; its results lie in STORAGE/NAME. Default: the data set's name."""
    trials: int = 48
    """Models to train, the families' shares being equal."""
    epochs: int = 60
    """Passes over the training images that every complete trial gets."""
    families: tuple[Family, ...] = ("fvae", "flow", "vae")
    """Families to search."""
    batch_size: int = 64
    """Images per training step."""
    seed: int = 0
    """Seeds proposals, weights, order and noise."""
    cpus_per_trial: int = 1
    """Cores (and torch threads) of each trial; of each worker where a trial has several."""
    gpus_per_trial: float | Literal["auto"] = 0.0
    """GPUs of each trial; a fraction shares one, and 'auto' takes the fraction that the model's memory needs. Where a
    trial has several workers: of each, whole ones."""
    workers_per_trial: int = 1
    """Processes that train each trial together, on the machines of a cluster where one has no room for all: for models
    too large for one device."""
    concurrent: int | None = None
    """Trials at a time. Default: as many as the machine or cluster has room for."""
    precision: Precision = "float32"
    """'bf16' runs the networks under autocast; likelihoods stay in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("--trials", self.trials, 1)
        require_integer("--epochs", self.epochs, 1)
        require_integer("--batch-size", self.batch_size, 1)
        require_integer("--seed", self.seed, 0)
        require_integer("--cpus-per-trial", self.cpus_per_trial, 1)
        require_integer("--workers-per-trial", self.workers_per_trial, 1)
        self._require_gpus()
        if self.concurrent is not None:
            require_integer("--concurrent", self.concurrent, 1)
        require(len(self.families) > 0, "--families: name at least one of " + ", ".join(FAMILIES))
        for family in self.families:
            require_choice("--families", family, FAMILIES)
        require(len(set(self.families)) == len(self.families), "--families: each at most once")

    def _require_gpus(self) -> None:
        gpus = self.gpus_per_trial
        if gpus != "auto":
            require(math.isfinite(gpus) and gpus >= 0, f"--gpus-per-trial={gpus}: must be at least 0, or 'auto'")
            require(gpus <= 1 or gpus == int(gpus), f"--gpus-per-trial={gpus}: above 1, give a whole number")
        require(
            self.workers_per_trial == 1 or (gpus != "auto" and gpus == int(gpus)),
            f"--gpus-per-trial={gpus}: workers share no GPU; give a whole number, or --workers-per-trial 1",
        )

    def run_name(self, dataset_name: str) -> str:
        """The run's name."""
        return self.name or as_run_name(dataset_name) or "images"

    def run_storage(self, dataset_name: str) -> Storage:
        """Where the run's files lie."""
        return self.all_runs().child(self.run_name(dataset_name))

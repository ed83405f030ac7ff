"""What a search is told: the options of ``python tune/search.py``."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from fvae.config import FAMILIES, ConfigError, Family, require, require_choice, require_integer
from fvae.train_config import Precision
from pipelines.datasets import Streaming
from pipelines.storage import Storage, open_storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Search VAE, flow and f-VAE on a set of images, and draw the map of parameters against bits/dim.

    The same command again resumes an unfinished search, shows a finished one, and with more
    --trials extends it.
    """

    dataset: str = "digits"
    """'digits' or 'photos' (embedded); a folder, archive or file of images; a data set that
    `python -m pipelines.ingest` made. A path of this machine or s3://bucket/prefix."""
    streaming: Streaming = "auto"
    """Hold the images in memory ('never'), read them from the data set's files as they are needed ('always'), or
    hold them where they fit ('auto')."""
    name: str | None = None
    """Name of the run; its results lie in STORAGE/NAME. Default: the data set's name."""
    storage: str = "runs"
    """Where all runs lie: a folder of this machine, or s3://bucket/prefix."""
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
        require(self.dataset != "", "--dataset: empty; give 'digits', 'photos', a path or an s3:// URI")
        require(
            self.name is None or re.fullmatch(r"[\w][\w.-]*", self.name) is not None,
            f"--name={self.name!r}: letters, digits, '_', '-' and '.' only",
        )
        require(self.storage != "", "--storage: empty; give a folder or s3://bucket/prefix")
        self.all_runs()

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
        return self.name or re.sub(r"[^\w.-]|^[.-]", "-", dataset_name) or "images"

    def all_runs(self) -> Storage:
        """The storage of all runs. Raises ``ConfigError`` for a location that cannot be one."""
        try:
            return open_storage(self.storage)
        except ConfigError as error:
            raise ConfigError(f"--storage: {error}") from error

    def run_storage(self, dataset_name: str) -> Storage:
        """Where the run's files lie."""
        return self.all_runs().child(self.run_name(dataset_name))

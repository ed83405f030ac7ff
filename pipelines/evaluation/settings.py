"""Options of an evaluation: ``python -m pipelines.evaluate``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from fvae.config import ConfigError, require, require_choice, require_integer, require_seed
from fvae.data.manifest import SPLITS
from pipelines.cli.run_settings import Streaming
from pipelines.storage import open_storage
from pipelines.training.worker_resources import WorkerResources


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Measure a model's bits/dim on a split of a data set, and draw what it makes of images.

    The same command again goes on where it was interrupted, shows what is finished, and with more --k or
    --noise-seeds measures only those.
    """

    model: str
    """A folder that fvae.save wrote, the folder of a trial or a training, a training's checkpoint (.safetensors), each
    on this machine or s3://bucket/…; or models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN_ID/model."""
    dataset: str = "digits"
    """'digits' or 'photos' (embedded); a folder, archive or file of images; a data set that
    `python -m pipelines.ingest` made. A path of this machine or s3://bucket/prefix."""
    streaming: Streaming = "auto"
    """Hold the images in memory ('never'), read them from the data set's files as they are needed ('always'), or
    hold them where they fit ('auto')."""
    split: str = "test"
    """Images to measure: test, val or train."""
    k: tuple[int, ...] = (1, 64)
    """Samples per image: 1 is the ELBO, more a tighter bound (IWAE)."""
    noise_seeds: int = 3
    """How often every image is measured for each k, each time with noise of another seed: the figure is their mean,
    and their spread gives the standard error over noise."""
    seed: int = 0
    """Seeds all noise. The first of the --noise-seeds is a search's own of this --seed."""
    samples: int = 64
    """Images to sample for samples.png."""
    temperatures: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 1.0)
    """Rows of temperatures.png: samples of the same noise at each temperature."""
    output: str | None = None
    """Where the results go: a folder or s3://bucket/prefix. Default: evaluations/DATASET-SPLIT/MODEL-WEIGHTS, the last
    being the first digits of the weights' digest."""
    again: bool = False
    """Measure anew, in place of what the output holds."""
    runs: str = "runs"
    """Where the runs of models:/ and runs:/ are, if MLFLOW_TRACKING_URI does not say: a folder or s3://bucket/prefix."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """'auto': the GPU where there is one."""
    workers: int = 1
    """Processes that share the images; more than one run on Ray: here, or on the cluster that RAY_ADDRESS names."""
    cpus_per_worker: int | None = None
    """Cores (and torch threads) of each worker. Default: 1, or all where there is one worker."""
    gpus_per_worker: float = 0.0
    """GPUs of each of several workers: 1, or none."""

    def __post_init__(self) -> None:
        require(self.model.strip() != "", "--model: empty; give a folder, a checkpoint, models:/NAME/VERSION …")
        require_choice("--split", self.split, SPLITS)
        require(len(self.k) > 0, "--k: name at least one number of samples, such as 1 64")
        for k in self.k:
            require_integer("--k", k, 1)
        require(len(set(self.k)) == len(self.k), "--k: each at most once")
        require_integer("--noise-seeds", self.noise_seeds, 1)
        require_seed("--seed", self.seed)
        require_integer("--samples", self.samples, 1)
        require(len(self.temperatures) > 0, "--temperatures: name at least one, such as 0.7 1.0")
        for temperature in self.temperatures:
            require(
                math.isfinite(temperature) and temperature >= 0,
                f"--temperatures={temperature}: must be a finite number of at least 0",
            )
        if self.cpus_per_worker is not None:
            require_integer("--cpus-per-worker", self.cpus_per_worker, 1)
        self.resources()
        require(
            self.gpus_per_worker == 0 or self.workers > 1,
            f"--gpus-per-worker={self.gpus_per_worker:g}: for several --workers; one alone takes this machine's GPU",
        )
        require(
            self.workers == 1 or self.device == "auto" or (self.device == "cuda") == (self.gpus_per_worker > 0),
            f"--device {self.device} --gpus-per-worker {self.gpus_per_worker:g}: several workers are on GPUs where "
            "--gpus-per-worker is 1, else on CPUs",
        )
        for option, location in (("--output", self.output), ("--runs", self.runs)):
            if location is not None:
                try:
                    open_storage(location)
                except ConfigError as error:
                    raise ConfigError(f"{option}: {error}") from error

    def resources(self) -> WorkerResources:
        """The workers and what each of them has. Raises ``ConfigError`` for what cannot work."""
        return WorkerResources(workers=self.workers, cpus=self.cpus_per_worker or 1, gpus=self.gpus_per_worker)

    def pictures(self) -> dict[str, Any]:
        """What the pictures depend on, JSON-ready."""
        return {"samples": self.samples, "temperatures": list(self.temperatures)}

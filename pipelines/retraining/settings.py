"""Options of ``python -m pipelines.retrain``."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from typing import Annotated

from fvae.config import ConfigError, require, require_integer, require_positive, require_seed
from pipelines.cli.optional_fields import without_default
from pipelines.cli.quantities import parse_duration
from pipelines.cli.run_settings import Streaming, open_runs
from pipelines.retraining.failure_hooks import require_hook
from pipelines.storage import Storage
from pipelines.training.settings import TrainSettings
from pipelines.training.worker_resources import WorkerResources

PREFIX = "fvae-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """Train on a data set that has changed, and put the new model into service if it is better.

    The registered model's alias 'champion' is the version in service. The challenger and the champion are measured on
    the same test images; the alias moves only if the challenger is better by more than the noise of both, last of all
    and at once. Each job is one MLflow run, with the decision and its reasons as tags. The same command again resumes
    an interrupted job, and does nothing while the data set is the same. Exit status: 0 decided, 1 failed, 2 bad input.
    """

    model: Annotated[str, without_default("fvae-NAME")]
    """The registered model. NAME is the data set's name."""
    dataset: Annotated[str | None, without_default("URI")] = None
    """The images: as python -m pipelines.train takes them. Needed unless --rollback."""
    streaming: Streaming = "auto"
    """Hold the images in memory ('never'), read them from the data set's files as they are needed ('always'), or
    hold them where they fit ('auto')."""
    storage: str = "runs"
    """Storage of all runs: a folder (on a cluster, one that all machines share) or s3://bucket/prefix."""
    config: Annotated[str | None, without_default("FILE")] = None
    """Train what this TOML or JSON file says (tables 'model' and 'train') instead of the champion's own configuration.
    Without a champion and without a file: the defaults of python -m pipelines.train."""
    search: Annotated[str | None, without_default("TIME")] = None
    """Search for a better configuration for so long first, such as 2h: python tune/search.py with that time budget,
    the champion's epochs and batch size, and a warm start from what was trained before. Its best model on the
    validation images, within the limits of size, is trained."""
    search_options: Annotated[str | None, without_default("'OPTIONS'")] = None
    """More options for that search: --search-options='--families flow --concurrent 4', with the = in it."""
    again: bool = False
    """Retrain although the data set has not changed: after another --config, or for a longer --search."""
    least_gain: float = 0.0
    """Bits/dim by which the challenger must be better: the whole 95% interval of the difference must lie below minus
    this."""
    k: tuple[int, ...] = (1,)
    """Samples per image: 1 is the ELBO, more a tighter bound (IWAE). The first decides, the others are recorded."""
    noise_seeds: int = 3
    """How often each test image is measured, each time with other noise, the same for both models."""
    rotate: int = 1
    """Decide on one of so many parts of the test images, another one at every decision, so that each image is used less
    often. An image stays in its part. 1: all images decide every time."""
    seed: int = 0
    """Seed of the noise in the comparison."""
    max_params: Annotated[int | None, without_default("N")] = None
    """Put no model with more parameters into service."""
    max_flops: Annotated[float | None, without_default("N")] = None
    """Put no model into service that takes more FLOPs for one image (forward, 2 per multiply-add)."""
    on_failure: Annotated[str | None, without_default("HOOK")] = None
    """A command, run without a shell and with FVAE_EVENT, FVAE_MODEL, FVAE_REASON … in its environment, or an
    http(s):// address that gets the same as a JSON object, when the job fails."""
    wait: str = "6h"
    """How long to wait for another retraining of the same model."""
    dry_run: bool = False
    """Print what would happen; train nothing, change nothing."""
    rollback: bool = False
    """Put the champion's predecessor back into service. A version that was rolled back is not promoted again."""
    reason: str = ""
    """With --rollback: why, for the record."""
    workers: int = 1
    """Processes that train together, and share the test images, as in python -m pipelines.train."""
    elastic: Annotated[str | None, without_default("LEAST:MOST")] = None
    """Train on 2:8 workers, for example, instead of --workers: as many as there is room for."""
    cpus_per_worker: int = 1
    """Cores (and torch threads) of each worker."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker: 1, or a part of one for a single worker."""
    micro_batch_size: Annotated[int | None, without_default("N")] = None
    """Images that go through the model at once, where a worker's share of a batch does not fit its memory."""
    checkpoint_minutes: float = 10.0
    """Minutes from one checkpoint to the next in mid-epoch; there is one after every epoch too."""
    max_failures: int = 10
    """How often workers may be lost before the training stops. Announced losses of machines do not count."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(rf"{PREFIX}[^/:@]+", self.model) is not None,
            f"--model={self.model!r}: must be fvae-NAME, NAME being the data set's, such as fvae-digits",
        )
        if self.rollback:
            for option, given in (("--search", self.search), ("--config", self.config), ("--again", self.again)):
                require(not given, f"--rollback with {option}: a rollback trains nothing; leave one of them out")
        else:
            require(bool(self.dataset), "--dataset: give 'digits', 'photos', a path or an s3:// URI")
            require(self.reason == "", "--reason: goes with --rollback")
        require(
            self.config is None or self.search is None,
            f"--config={self.config} and --search={self.search}: give one of the two",
        )
        if self.search is not None:
            parse_duration("--search", self.search)
        require(self.search_options is None or self.search is not None, "--search-options: goes with --search")
        self.search_words()
        parse_duration("--wait", self.wait)
        require(
            math.isfinite(self.least_gain) and self.least_gain >= 0,
            f"--least-gain={self.least_gain}: must be a finite number of at least 0",
        )
        require(len(self.k) > 0, "--k: name at least one number of samples, such as 1")
        for k in self.k:
            require_integer("--k", k, 1)
        require(len(set(self.k)) == len(self.k), "--k: each at most once")
        require_integer("--noise-seeds", self.noise_seeds, 1)
        require_integer("--rotate", self.rotate, 1)
        require_seed("--seed", self.seed)
        if self.max_params is not None:
            require_integer("--max-params", self.max_params, 1)
        if self.max_flops is not None:
            require_positive("--max-flops", self.max_flops)
        if self.on_failure is not None:
            require_hook("--on-failure", self.on_failure)
        self.runs()
        self.training("x")

    @property
    def name(self) -> str:
        """The data set's name, by which the MLflow experiment ``fvae/NAME`` is called too."""
        return self.model.removeprefix(PREFIX)

    @property
    def wait_seconds(self) -> float:
        """``--wait`` in seconds."""
        return parse_duration("--wait", self.wait)

    def runs(self) -> Storage:
        """The storage of all runs. Raises ``ConfigError`` for a location that cannot be one."""
        return open_runs(self.storage)

    def place(self) -> Storage:
        """Where this model's retraining keeps what it needs from one start to the next."""
        return self.runs().child(f"retrain-{self.model}")

    def measuring(self) -> WorkerResources:
        """The workers that measure, where it is not this process that does."""
        return WorkerResources(
            workers=self.training("x").resources().workers, cpus=self.cpus_per_worker, gpus=self.gpus_per_worker
        )

    def search_words(self) -> list[str]:
        """``--search-options`` as words. Raises ``ConfigError`` where quotes do not close."""
        try:
            return shlex.split(self.search_options or "")
        except ValueError as error:
            raise ConfigError(f"--search-options={self.search_options!r}: {error}") from error

    def training(self, name: str) -> TrainSettings:
        """The settings of the training job ``name``. Raises ``ConfigError`` for what cannot work."""
        return TrainSettings(
            dataset=self.dataset or "digits",
            streaming=self.streaming,
            storage=self.storage,
            name=name,
            workers=self.workers,
            elastic=self.elastic,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            micro_batch_size=self.micro_batch_size,
            checkpoint_minutes=self.checkpoint_minutes,
            max_failures=self.max_failures,
            register=True,
        )

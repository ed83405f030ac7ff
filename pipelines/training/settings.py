"""Options of a training job: ``python -m pipelines.train``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from fvae.config import ModelConfig, require, require_integer, require_positive
from fvae.train_config import TrainConfig
from pipelines.cli.optional_fields import optional_fields
from pipelines.cli.run_settings import RunSettings
from pipelines.training.worker_resources import WorkerResources

OF_THE_IMAGES = ("channels", "height", "width", "bins")
"""Fields of a model's config that the data set decides."""
IN_BINS = {
    "sigma1_bins": "``sigma1_init`` in bins: the distance of two levels is 1, whatever their number.",
    "sigma2_bins": "``sigma2_init`` in bins.",
}
ModelOptions: Any = optional_fields(ModelConfig, without=OF_THE_IMAGES, more=IN_BINS)
TrainOptions: Any = optional_fields(TrainConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(RunSettings):
    """Train one model on one or many workers, through anything that may happen to them.

    What is trained comes from --config or --from-run, and from the options --model.… and --train.…, which stand above
    both. The same command again goes on where it stopped, and shows a finished job.
    """

    config: str | None = None
    """A TOML or JSON file with the tables 'model' and 'train' (configs/ has examples)."""
    from_run: str | None = None
    """An MLflow run, such as a search's trial: its model is trained again, in a run beside it."""
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    name: str | None = None
    """Name of the job; its files lie in STORAGE/NAME. Default: data set, family, and a digest of the configs."""
    workers: int = 1
    """Processes that train together, each on a device of its own. They share the global batch, so the figures do not
    depend on their number."""
    elastic: str | None = None
    """LEAST:MOST workers, e.g. 2:8, instead of --workers: as many as there is room for, also when that changes."""
    cpus_per_worker: int = 1
    """Cores (and torch threads) of each worker."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker: 1, or a part of one for a single worker."""
    micro_batch_size: int | None = None
    """Images that go through the model at once, where a worker's share of the global batch does not fit its memory.
    Changes no figure but for rounding. (Only the first batch goes through whole, without gradients, to set ActNorm.)"""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Run the model's layers through torch.compile. Slower on the CPUs that it was measured on."""
    checkpoint_minutes: float = 10.0
    """Minutes from one checkpoint to the next in mid-epoch; there is one after every epoch too."""
    keep_checkpoints: int = 2
    """Checkpoints kept: the last ones. The one with the lowest validation bits/dim is kept besides."""
    max_failures: int = 10
    """How often workers may be lost before the job fails. Preempted machines (spot) do not count."""
    register: bool = False
    """Register the finished model as fvae-<data set> in MLflow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.config is None or self.from_run is None,
            f"--config={self.config} and --from-run={self.from_run}: give one of the two",
        )
        if self.micro_batch_size is not None:
            require_integer("--micro-batch-size", self.micro_batch_size, 1)
        require_positive("--checkpoint-minutes", self.checkpoint_minutes)
        require_integer("--keep-checkpoints", self.keep_checkpoints, 1)
        require_integer("--max-failures", self.max_failures, 0)
        require(
            self.elastic is None or re.fullmatch(r"\d+:\d+", self.elastic) is not None,
            f"--elastic={self.elastic}: must be LEAST:MOST, e.g. 2:8",
        )
        require(
            self.elastic is None or int(self.elastic.split(":")[0]) <= int(self.elastic.split(":")[1]),
            f"--elastic={self.elastic}: the most workers must be at least the least, e.g. 2:8",
        )
        require(
            self.elastic is None or self.workers == 1, f"--elastic={self.elastic} with --workers: give one of the two"
        )
        self.resources()

    def resources(self) -> WorkerResources:
        """The workers and what each of them has. Raises ``ConfigError`` for what cannot work."""
        least, most = map(int, self.elastic.split(":")) if self.elastic else (self.workers, None)
        return WorkerResources(workers=least, most_workers=most, cpus=self.cpus_per_worker, gpus=self.gpus_per_worker)

    def execution(self) -> dict[str, Any]:
        """How each worker computes: what changes no figure but for rounding."""
        names = ("micro_batch_size", "compile", "checkpoint_activations")
        return {name: getattr(self, name) for name in names}

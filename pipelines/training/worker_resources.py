"""How many workers a job has, and what each of them gets. Ray is not imported: options are parsed without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fvae.config import require, require_integer

UNITS = 10_000
"""Ray counts resources in parts of this size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """How many workers, and what each of them has. Raises ``ConfigError`` for what cannot work."""

    workers: int = 1
    """Workers that the job needs."""
    most_workers: int | None = None
    """Workers that it takes where there is room; by default no more than it needs."""
    cpus: int = 1
    """Cores (and torch threads) of each."""
    gpus: float = 0.0
    """GPUs of each."""

    def __post_init__(self) -> None:
        require_integer("--workers", self.workers, 1)
        require_integer("--cpus-per-worker", self.cpus, 1)
        require(self.gpus >= 0, f"--gpus-per-worker={self.gpus}: must be at least 0")
        require(
            self.gpus in (0, 1) or (self.gpus < 1 and self.most == 1),
            f"--gpus-per-worker={self.gpus:g}: several workers need a GPU each (1), one alone may have a part of one",
        )
        if self.most_workers is not None:
            require_integer("--elastic", self.most_workers, self.workers)

    @property
    def most(self) -> int:
        """The most workers that there can be."""
        return self.workers if self.most_workers is None else self.most_workers


def workers_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers of so many cores and GPUs a node holds, by Ray's name for each of its resources."""
    amounts = {"CPU": cpus, "GPU": gpus}
    return min(round(node.get(name, 0) * UNITS) // round(amount * UNITS) for name, amount in amounts.items() if amount)


def each_worker(cpus: float, gpus: float) -> str:
    """What a worker needs, in words: ``2 CPUs and 1 GPU``."""
    amounts = [(cpus, "CPU")] + ([(gpus, "GPU")] if gpus else [])
    return " and ".join(f"{amount:g} {name if amount == 1 else name + 's'}" for amount, name in amounts)

"""Resources of a search on a Ray cluster: its session, its trials' placement groups, how many trials fit at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune

from fvae.config import require
from fvae.data.images import Dataset
from pipelines.training.autoscaler import await_machines
from pipelines.training.ray_session import ray_session
from pipelines.training.worker_resources import each_worker, workers_on
from tune.run.gpu_shares import GpuShares, smallest_card_bytes
from tune.settings import SearchSettings


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources for the trials of a search, and what each of them gets."""

    settings: SearchSettings
    trials_at_once: int | None
    """Trials at a time at most; None: as many as Ray finds room for."""
    nodes: Sequence[Mapping[str, float]]
    """The resources of each node."""
    gpu_shares: GpuShares | None
    """Shares of a GPU by need, with ``--gpus-per-trial auto``; otherwise None."""

    def gpus(self, model: dict[str, Any], train: dict[str, Any]) -> float:
        """GPUs of each worker of a trial, by its ``ModelConfig`` and ``TrainConfig`` as dictionaries."""
        if self.gpu_shares:
            return self.gpu_shares.share(model, train)
        return float(self.settings.gpus_per_trial)

    def expected_at_once(self) -> int:
        """How many trials will probably train side by side; GPUs that are shared by need count as one a trial."""
        if self.trials_at_once is not None and self.settings.workers_per_trial > 1:
            return self.trials_at_once
        gpus = 1.0 if self.gpu_shares else float(self.settings.gpus_per_trial)
        room = sum(workers_on(node, self.settings.cpus_per_trial, gpus) for node in self.nodes)
        return max(1, min(room, self.trials_at_once or room))


@contextmanager
def search_session(settings: SearchSettings, dataset: Dataset) -> Iterator[Resources]:
    """A Ray session in which there is room for a trial. Raises ``ConfigError`` where no trial could ever run."""
    needed = {"CPU": ("--cpus-per-trial", float(settings.cpus_per_trial))}
    if settings.gpus_per_trial != "auto":
        needed["GPU"] = ("--gpus-per-trial", settings.gpus_per_trial)
    with ray_session(dataset.held_bytes(), needed):
        if "RAY_ADDRESS" in os.environ:
            await_room(settings)
        nodes = alive_nodes()
        per_node = [node["Resources"] for node in nodes]
        at_once, shares = settings.concurrent, None
        if settings.workers_per_trial > 1:
            fitting = trials_at_once(settings, per_node)
            at_once = min(fitting, at_once or fitting)
        if settings.gpus_per_trial == "auto":
            shares = GpuShares(smallest_card_bytes(nodes), dataset.held_bytes())
        yield Resources(settings, at_once, per_node, shares)


def await_room(settings: SearchSettings) -> None:
    """Wait for the machines that a cluster's autoscaler brings for one trial, or for ``--concurrent`` of them."""
    gpus = 1.0 if settings.gpus_per_trial == "auto" else settings.gpus_per_trial
    bundle = {"CPU": float(settings.cpus_per_trial)} | ({"GPU": gpus} if gpus else {})
    workers = settings.workers_per_trial * (settings.concurrent or 1)

    def enough() -> bool:
        return sum(workers_on(node["Resources"], settings.cpus_per_trial, gpus) for node in alive_nodes()) >= workers

    await_machines([bundle] * workers, enough)


def alive_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def placement(settings: SearchSettings, gpus: float) -> tune.PlacementGroupFactory:
    """A trial's resources, ``gpus`` for each of its workers: reserved whole, or not at all.

    Several workers have a coordinator besides, which takes nothing: it waits while they work.
    """
    bundle = {"CPU": settings.cpus_per_trial, "GPU": gpus}
    if settings.workers_per_trial == 1:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([{}] + [bundle] * settings.workers_per_trial)


def trials_at_once(settings: SearchSettings, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials of several workers the nodes' resources hold. A worker lives on one node, a trial on several.

    Raises ``ConfigError`` where they hold none.
    """
    count, cpus, gpus = settings.workers_per_trial, settings.cpus_per_trial, settings.gpus_per_trial
    assert gpus != "auto"
    room = sum(workers_on(node, cpus, gpus) for node in nodes)
    require(
        room >= count,
        f"--workers-per-trial={count}: needs {count} times {each_worker(cpus, gpus)}, each on one node, "
        f"and there is room for {room}; give fewer workers, or less to each",
    )
    return room // count

"""What a trial asks of a cluster: a placement group, a bundle for each of its workers; and whether there is room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray import tune

from fvae.config import require
from pipelines.training.worker_resources import each_worker, workers_on
from tune.settings import SearchSettings


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

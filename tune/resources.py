"""What a trial asks of a cluster: a placement group, a bundle for each of its workers; and whether there is room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray import tune

from fvae.config import require
from tune.settings import SearchSettings

UNITS = 10_000
"""Ray counts resources in parts of this size."""


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
    room = sum(_workers(node, cpus, gpus) for node in nodes)
    each = f"{cpus} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")
    require(
        room >= count,
        f"--workers-per-trial={count}: needs {count} times {each}, each on one node, and there is room for {room}; "
        f"give fewer workers, or less to each",
    )
    return room // count


def _workers(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Bundles of ``cpus`` and whole ``gpus`` that one node holds."""
    amounts = {"CPU": cpus, "GPU": gpus}
    return min(round(node.get(name, 0) * UNITS) // round(amount * UNITS) for name, amount in amounts.items() if amount)

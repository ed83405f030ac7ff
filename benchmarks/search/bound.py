"""The fewest rows that hold a share of the true hypervolume: no search can need less than to train just those."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.search.curves import Curves
from fvae.config import FAMILIES
from tune.stats.pareto import Point, pareto_front


def fewest_epochs(curves: Curves, target: str, share: float) -> int:
    """Epochs of the fewest full trainings whose hypervolume is ``share`` of the target's true one."""
    groups = [FAMILIES] if target == "front" else [(family,) for family in FAMILIES]
    best = np.zeros(1)
    for families in groups:
        points = [row.point for row in curves.rows if row.failure is None and row.family in families]
        areas = largest_areas(points, curves.reference)
        best = _divided(best, areas)
    return int(np.argmax(best >= share * curves.truth[target] - 1e-9)) * curves.epochs


def largest_areas(points: Sequence[Point], reference: Point) -> np.ndarray:
    """The largest hypervolume of any ``k`` of the points, array ``[front's length + 1]`` by ``k`` from 0."""
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    front = [inside[index] for index in pareto_front(inside)]  # ascending in size, descending in bits/dim
    # reached[i]: the largest area of k points of which the i-th is the last, so the largest.
    alone = np.array([(reference[0] - x) * (reference[1] - y) for x, y in front])
    areas, reached = [0.0], alone
    for _ in front:
        areas.append(float(reached.max()))
        longer = np.full(len(front), -np.inf)
        for last, (x, y) in enumerate(front):
            gains = [reached[before] + (reference[0] - x) * (front[before][1] - y) for before in range(last)]
            longer[last] = max(gains, default=-np.inf)
        reached = longer
    return np.array(areas)


def _divided(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The largest sum of two areas for so many points in all, divided between them in the best way."""
    best = np.full(len(first) + len(second) - 1, -np.inf)
    for count, area in enumerate(first):
        places = slice(count, count + len(second))
        best[places] = np.maximum(best[places], area + second)
    return best

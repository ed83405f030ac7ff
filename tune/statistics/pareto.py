"""Pareto fronts of parameters against bits/dim, and how much of the plane they dominate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fvae.config import FAMILIES
from tune.records.ledger import TrialRecord

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, both coordinates minimised.

    Ascending in the first coordinate, hence strictly descending in the second. Of identical points
    the first is kept. Raises ``ValueError`` for a coordinate that is not finite: NaN compares with
    nothing, so it would stay on the front unseen.
    """
    if not all(math.isfinite(coordinate) for point in points for coordinate in point):
        raise ValueError("a Pareto front needs finite points")
    front: list[int] = []
    lowest = math.inf
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < lowest:
            lowest = points[index][1]
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area of the plane that ``points`` dominate, up to ``reference``; both coordinates minimised. Exact.

    Points that are not below the reference in both coordinates add nothing. Raises ``ValueError``
    as :func:`pareto_front` does.
    """
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, ceiling = 0.0, reference[1]
    for index in pareto_front(inside):
        x, y = inside[index]
        area += (reference[0] - x) * (ceiling - y)
        ceiling = y
    return area


def complete_trials(records: Sequence[TrialRecord], family: str | None = None) -> list[TrialRecord]:
    """Fully trained trials, the only ones that fronts, fits and the claim may rest on. Further seeds of one are left
    out: models that happen to be trained more often would have more chances to look good."""
    return [
        record
        for record in records
        if record.status == "complete"
        and record.val_bpd is not None
        and record.replicate_of is None
        and family in (None, record.family)
    ]


def size_and_bits(records: Sequence[TrialRecord]) -> list[Point]:
    """``(parameters, validation bits/dim)`` of complete trials."""
    return [(float(record.params), float(record.val_bpd)) for record in records if record.val_bpd is not None]


def front_trials(records: Sequence[TrialRecord], family: str | None = None) -> list[TrialRecord]:
    """A family's front (of all families together: None), by ascending parameters."""
    trials = complete_trials(records, family)
    return [trials[index] for index in pareto_front(size_and_bits(trials))]


def fronts(records: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """Trial ids on each family's front and on the front of ``all``, by ascending parameters.

    Complete trials only, on (parameters, validation bits/dim).
    """
    return {
        name: [trial.id for trial in front_trials(records, None if name == "all" else name)]
        for name in ("all", *FAMILIES)
    }

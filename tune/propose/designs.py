"""Initial designs: the models that each family's search begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tune.propose.candidates import Candidate, CandidateSource
from tune.propose.limits import Limits

MOST = 6
"""Initial designs of each family at most: models that are chosen after them are more informative."""


def first_models(
    source: CandidateSource,
    limits: Limits,
    families: Sequence[str],
    trials: int | None,
    fronts: Mapping[str, Sequence[Candidate]] | None = None,
    most: int = MOST,
) -> dict[str, list[Candidate]]:
    """What each family's search begins with, from small to large: sound models as many as are within the limits.

    At most two thirds of the family's share of ``trials`` (None: not limited).

    Args:
        source: the models that may be trained.
        limits: those of size are applied here; the proposer applies the others.
        families: that are searched.
        trials: of all families together.
        fronts: of an earlier search, by family, by ascending size: they take the place of the sound models.
        most: sound models of each family.
    """
    first = {}
    for index, family in enumerate(families):
        share = None if trials is None else max(1, 2 * len(range(index, trials, len(families))) // 3)
        models = [each for each in (fronts or {}).get(family, ()) if limits.allows_size(each)]
        if not models:
            share = min(most, share or most)
            for finer in (1, 4, 16, 64):  # more of the small ones where only these are within the limits
                designs = {each.key: each for each in source.designs(family, finer * share)}
                models = [each for each in designs.values() if limits.allows_size(each)]
                if len(models) >= share:
                    break
        first[family] = models if share is None else _evenly(models, share)
    return first


def _evenly(models: list[Candidate], count: int) -> list[Candidate]:
    """``count`` of them, the first and the last among them; all where there are fewer."""
    if len(models) <= count or count == 1:
        return models[:count]
    return [models[round(index * (len(models) - 1) / (count - 1))] for index in range(count)]


def spread_order(count: int) -> list[int]:
    """0 … count − 1, the middle first, then the ends, then what halves the widest gaps: covered evenly at any time."""
    order = [count // 2] if count else []
    while len(order) < count:
        left = [place for place in range(count) if place not in order]
        order.append(max(left, key=lambda place: min(abs(place - taken) for taken in order)))
    return order

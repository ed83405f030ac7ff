"""The pool of candidates that a sampler chooses from, some of them near the models on the front."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from optuna.trial import BaseTrial

from tune.propose.define_by_run import UniformTrial, crossed

POOL = 96
"""Candidates that one choice is made from: half drawn uniformly, half near the models on the front."""


Params = tuple[tuple[str, Any], ...]


class Proposal(NamedTuple):
    """A point that could be tried."""

    suggestion: Mapping[str, Any]
    size: float
    model: Any = None
    """The pool's own object of this point."""


class Pool(Protocol):
    """A source of candidates."""

    def draw(self, parents: Sequence[Mapping[str, Any]], tried: Container[Params]) -> Sequence[Proposal]:
        """Ones that were not ``tried``, some of them near ``parents``. Raises ``ValueError`` where there is none."""

    def admits(self, proposal: Proposal) -> bool:
        """Whether it may be tried, where finding out takes long: only the best ones are asked after."""


class DrawnPool:
    """Candidates of a define-by-run space: half drawn uniformly, half crossed with the models on the front."""

    def __init__(self, size: Callable[[BaseTrial], float], seed: int | None) -> None:
        self._size, self._rng = size, np.random.default_rng(seed)

    def draw(self, parents: Sequence[Mapping[str, Any]], tried: Container[Params]) -> Sequence[Proposal]:
        """See :meth:`Pool.draw`; the first half are drawn uniformly. Where all were tried, they are proposed again."""
        drawn = [each for _ in range(POOL) if (each := self._proposed(UniformTrial(self._rng)))]
        if not drawn:
            raise ValueError(f"size: raised at {POOL} points in a row; no possible point is found")
        for place in range(POOL // 2, len(drawn)) if parents else ():
            parent = parents[int(self._rng.integers(len(parents)))]
            child = optuna.trial.FixedTrial(crossed(parent, drawn[place].suggestion, self._rng))
            drawn[place] = self._proposed(child) or drawn[place]
        return [each for each in drawn if params_of(each.suggestion) not in tried] or drawn

    def admits(self, proposal: Proposal) -> bool:
        """Every point may be tried."""
        return True

    def _proposed(self, trial: BaseTrial) -> Proposal | None:
        """None for an impossible point, such as one out of a range that depends on another value."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Optuna warns so of a value that is out of range
                size = self._size(trial)
        except (ValueError, UserWarning, optuna.TrialPruned):
            return None
        return Proposal(trial.params, above_zero(size))


def above_zero(size: float) -> float:
    """``size``; raises ``ValueError`` where it is none."""
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"size: returned {size}; the first objective must be a finite number above 0")
    return size


def params_of(suggestion: Mapping[str, Any]) -> Params:
    """A point as a key."""
    return tuple(sorted(suggestion.items()))

"""What a sampler chooses from: candidates of a define-by-run space, some of them near what is good already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from optuna.trial import BaseTrial

from tune.define_by_run import UniformTrial, crossed

POOL = 96
"""Candidates that one choice is made from: half drawn uniformly, half near what stands on the front."""


class Proposal(NamedTuple):
    """A point that could be tried."""

    suggestion: Mapping[str, Any]
    size: float
    model: Any = None
    """What whoever has proposed it knows it by."""


class Pool(Protocol):
    """Where candidates come from."""

    def draw(self, parents: Sequence[Mapping[str, Any]]) -> Sequence[Proposal]:
        """Untried ones, some of them near ``parents``. Raises ``ValueError`` where there is none."""

    def admits(self, proposal: Proposal) -> bool:
        """Whether it may be tried, where finding out takes long: only the best ones are asked after."""


class DrawnPool:
    """Candidates of a define-by-run space: half drawn uniformly, half crossed with what stands on the front."""

    def __init__(self, size: Callable[[BaseTrial], float], seed: int | None) -> None:
        self._size, self._rng = size, np.random.default_rng(seed)

    def draw(self, parents: Sequence[Mapping[str, Any]]) -> Sequence[Proposal]:
        """See :meth:`Pool.draw`."""
        drawn = []
        for _ in range(POOL):
            trial = UniformTrial(self._rng)
            with contextlib.suppress(ValueError, optuna.TrialPruned):
                drawn.append(Proposal(trial.params, self._size(trial)))
        if not drawn:
            raise ValueError(f"size: raised at {POOL} points in a row; no possible point is found")
        for place, other in enumerate(drawn[: POOL // 2] if parents else ()):
            parent = parents[int(self._rng.integers(len(parents)))]
            child = optuna.trial.FixedTrial(crossed(parent, other.suggestion, self._rng))
            with contextlib.suppress(ValueError, optuna.TrialPruned):
                drawn[place] = Proposal(child.params, self._size(child))
        return drawn

    def admits(self, proposal: Proposal) -> bool:
        """Any."""
        return True

"""A surrogate model: a Gaussian process over the search space that predicts what an untrained model will reach.

Its mean is a line in log10 parameters, the scaling law where nothing else is known; what size and hyperparameters do
beyond that is a process with a Matérn kernel over both. It learns from every trial that has a forecast, each with that
forecast's own spread, so that part-trained trials count by their precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from tune.stats.pareto import Floats

LENGTH, VARIANCE = 3.0, 0.3
"""The kernel's, in the unit cube and (bits/dim)²: smooth, and far from sure of itself. Of the values tried these
were among the likeliest, from 8, 16 and 32 trials of each family, for the others (``benchmarks/search``)."""
DECADES = 4.0
"""Decades of size that count as the distance between the two ends of a hyperparameter's range."""
NOISE = 0.1
"""Bits/dim that no hyperparameter explains: the effect of the seed, and what the kernel smooths over."""
MOST_TRIALS = 256
"""The newest so many are learned from, so that a proposal costs the same however long a search is."""


class UnitCube:
    """The points of a define-by-run space as places in a unit cube: a number's on its range, on a log scale where it is
    searched on one; a choice's as one coordinate for each of its values. All points have the same coordinates: a
    parameter that a point does not have lies in the middle of its range.
    """

    def __init__(self, ask: Callable[[optuna.trial.BaseTrial], Any]) -> None:
        """``ask``: suggests everything from a trial, as an objective does."""
        self._ask = ask

    def point(self, suggestion: Mapping[str, Any]) -> Floats:
        """A suggestion's place. Raises ``ValueError`` where the suggestion lacks something that is asked for."""
        trial = _Coordinates(suggestion)
        self._ask(trial)
        return np.concatenate([trial.coordinates.get(name, [0.5] * size) for name, size in self._sizes.items()])

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Everything that may be asked, with its number of coordinates. Choices are changed one by one, and further
        ones where that brings up something new: not every combination."""
        sizes: dict[str, int] = {}
        left: list[tuple[int, ...]] = [()]
        while left:
            trial = _Choices(left.pop())
            with contextlib.suppress(ValueError, optuna.TrialPruned):  # an impossible point: what was asked counts
                self._ask(trial)
            if trial.sizes.keys() - sizes.keys():
                left += trial.others
            sizes |= trial.sizes
        return sizes


class Surrogate:
    """Bits/dim at the end against size and hyperparameters, for one family."""

    def __init__(self, points: Floats, log_sizes: Floats, bits: Floats, spreads: Floats) -> None:
        """Learn from trials: ``points [N, d]`` of :class:`UnitCube`; log10 parameters and forecasts ``[N]``."""
        points, log_sizes, bits, spreads = (each[-MOST_TRIALS:] for each in (points, log_sizes, bits, spreads))
        weights = 1 / (spreads + NOISE) ** 2
        line = _design(log_sizes)
        # A little ridge on the slope: trials of one size determine none.
        gram = (line * weights[:, None]).T @ line + np.diag([1e-6, 0.5])
        self._line = np.linalg.solve(gram, (line * weights[:, None]).T @ bits)
        beyond = bits - line @ self._line
        kernel = ConstantKernel(VARIANCE, "fixed") * Matern(LENGTH, "fixed", nu=2.5)
        self._process = GaussianProcessRegressor(kernel, alpha=spreads**2 + NOISE**2, optimizer=None)
        self._process.fit(_inputs(points, log_sizes), beyond)

    def predict(self, points: Floats, log_sizes: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the bits/dim at the end, each ``[K]``."""
        mean, spread = self._process.predict(_inputs(points, log_sizes), return_std=True)
        return mean + _design(log_sizes) @ self._line, spread


def _inputs(points: Floats, log_sizes: Floats) -> Floats:
    return np.column_stack([points, log_sizes / DECADES])


def _design(log_sizes: Floats) -> Floats:
    return np.stack([np.ones_like(log_sizes), log_sizes], axis=1)


class _Coordinates(optuna.trial.FixedTrial):
    """Answers with a given point, and notes where on each range it lies: what is out of a range, at its end."""

    def __init__(self, suggestion: Mapping[str, Any]) -> None:
        super().__init__({})
        self._suggestion = suggestion
        self.coordinates: dict[str, list[float]] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._note(name, self._given(name), low, high, log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._note(name, self._given(name), low, high, log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._given(name)
        if value not in choices:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
        self.coordinates[name] = [float(value == choice) for choice in choices]
        return value

    def _given(self, name: str) -> Any:
        if name not in self._suggestion:
            raise ValueError(f"{name}: not in the suggestion")
        return self._suggestion[name]

    def _note(self, name: str, value: Any, low: float, high: float, log: bool) -> Any:
        self.coordinates[name] = [0.5]
        if high > low:
            ends = np.log([low, value, high]) if log else np.array([low, value, high], dtype=float)
            self.coordinates[name] = [min(max(float((ends[1] - ends[0]) / (ends[2] - ends[0])), 0.0), 1.0)]
        return value


class _Choices(optuna.trial.FixedTrial):
    """Goes one way through a space: the choices ``taken``, then each first one; the lowest number of each range."""

    def __init__(self, taken: tuple[int, ...]) -> None:
        super().__init__({})
        self._taken = taken
        self._made: list[int] = []
        self.sizes: dict[str, int] = {}
        """Coordinates of each name that was asked for."""
        self.others: list[tuple[int, ...]] = []
        """The ways that branch off from this one."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.sizes[name] = 1
        return low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.sizes[name] = 1
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.sizes[name] = len(choices)
        place = len(self._made)
        if place < len(self._taken):
            self._made.append(self._taken[place])
        else:
            self.others += [(*self._made, other) for other in range(1, len(choices))]
            self._made.append(0)
        return choices[self._made[-1]]

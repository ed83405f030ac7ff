"""Trials that suggest the values of a define-by-run space: uniformly, near a point, or crossed from two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from fvae.config import ConfigError, is_number

TAKEN = 0.25
"""Probability of each value of a point near another one to be new."""


def crossed(parent: Mapping[str, Any], other: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A point near ``parent``: some of its values are those of ``other``.

    Another choice may ask for what the parent was not asked for: that is the other one's, too.
    """
    taken = {name: value for name, value in other.items() if rng.random() < TAKEN}
    return {**other, **parent, **taken}


class Suggesting(optuna.trial.FixedTrial):
    """Suggests the values of :meth:`choose_number` and :meth:`choose`, and keeps them."""

    def __init__(self) -> None:
        super().__init__({})
        self._chosen: dict[str, Any] = {}

    @property
    def params(self) -> dict[str, Any]:
        return self._chosen

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return self._on_steps(name, low, high, step)
        self._chosen[name] = min(max(float(self.choose_number(name, low, high, log)), low), high)
        return self._chosen[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if step != 1:
            return self._on_steps(name, low, high, step)
        # Half a step beyond both ends, so that the ends are as likely as what lies between.
        self._chosen[name] = min(max(round(self.choose_number(name, low - 0.5, high + 0.5, log)), low), high)
        return self._chosen[name]

    def _on_steps(self, name: str, low: Any, high: Any, step: Any) -> Any:
        """A value so many steps above ``low``, as Optuna's ranges with a step hold them."""
        last = math.floor((high - low) / step + 1e-9)
        steps = round((self.choose_number(name, low - step / 2, low + (last + 0.5) * step, False) - low) / step)
        self._chosen[name] = low + step * min(max(steps, 0), last)
        return self._chosen[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self._chosen[name] = self.choose(name, choices)
        return self._chosen[name]

    def choose_number(self, name: str, low: float, high: float, log: bool) -> float:
        raise NotImplementedError

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        raise NotImplementedError


class UniformTrial(Suggesting):
    """Draws uniformly, on a log scale where that is asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self._rng = rng

    def choose_number(self, name: str, low: float, high: float, log: bool) -> float:
        if log:
            return float(np.exp(self._rng.uniform(np.log(low), np.log(high))))
        return float(self._rng.uniform(low, high))

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[int(self._rng.integers(len(choices)))]


class NearestTrial(Suggesting):
    """Suggests the values of another space; the caller brings them into the range."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self._values = values

    def choose_number(self, name: str, low: float, high: float, log: bool) -> float:
        return self._values[name]

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._values[name]
        if value not in choices and all(is_number(each) for each in (value, *choices)):
            return min(choices, key=lambda choice: abs(choice - value))
        if value not in choices:
            raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
        return value

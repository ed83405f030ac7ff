"""Optuna's trials as a sampler learns from them: the size of each, its point, and a forecast of what it will reach."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import optuna
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from tune.propose.pool import Params, above_zero, params_of
from tune.propose.surrogate import UnitCube
from tune.stats.forecasts import Forecast, Forecasts
from tune.stats.pareto import Floats

FAMILY, ID, SIZE = "family", "id", "size"
"""User attributes of trials, each optional. Trials of other families than the sampler's are rivals on the front, and
teach it nothing else; the id is what the trial is known by."""


class Observation(NamedTuple):
    """A trial, and what it will reach."""

    trial: FrozenTrial
    size: float
    forecast: Forecast
    family: str


class Observations:
    """Sizes, points and forecasts of trials, each computed once."""

    def __init__(self, size: Callable[[BaseTrial], float]) -> None:
        """``size``: as :class:`tune.propose.front_sampler.FrontSampler` takes it."""
        self.forecasts: Forecasts | None = None
        """Forecasts of trials that are not complete; None: such trials count for nothing."""
        self.cube = UnitCube(size)
        self._ask = size
        self._points: dict[Params, Floats] = {}
        self._sizes: dict[Params, float] = {}

    def of(self, trials: Sequence[FrozenTrial], *, learn: bool = True) -> list[Observation]:
        """The trials that have a forecast, with it. With ``learn`` the forecasts learn from the complete ones first."""
        if self.forecasts is not None and learn:
            complete = (each for each in trials if each.state == TrialState.COMPLETE)
            self.forecasts.learn(_Curve.of(each, each.values[0]) for each in complete)
        observed = []
        for trial in trials:
            forecast = self.forecast(trial)
            if forecast is not None and (size := self.size(trial)) is not None:
                observed.append(Observation(trial, size, forecast, trial.user_attrs.get(FAMILY, "")))
        return observed

    def forecast(self, trial: FrozenTrial) -> Forecast | None:
        """What a trial will reach; None where that is not known."""
        if trial.state == TrialState.COMPLETE:
            return Forecast(trial.values[1], 0.0) if math.isfinite(trial.values[1]) else None
        size = self.size(trial)
        if self.forecasts is None or size is None or trial.state not in (TrialState.RUNNING, TrialState.PRUNED):
            return None
        return self.forecasts.of(_Curve.of(trial, size))

    def size(self, trial: FrozenTrial) -> float | None:
        """A trial's size; None while it is still being asked for its parameters."""
        if known := trial.user_attrs.get(SIZE) or (trial.values[0] if trial.values else None):
            return above_zero(known)
        params = params_of(trial.params)
        if params not in self._sizes:
            try:
                size = self._ask(optuna.trial.FixedTrial(trial.params))
            except (ValueError, optuna.TrialPruned):
                return None
            self._sizes[params] = above_zero(size)
        return self._sizes[params]

    def point(self, trial: FrozenTrial) -> Floats | None:
        """A trial's place in the unit cube; None where it lacks something that ``size`` asks for."""
        params = params_of(trial.params)
        if params not in self._points:
            try:
                self._points[params] = self.cube.point(trial.params)
            except (ValueError, optuna.TrialPruned):
                return None
        return self._points[params]


class _Loss(NamedTuple):
    val_bpd: float


_STATUS = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A trial as :class:`tune.stats.forecasts.Curve`."""

    id: str
    family: str
    params: float
    status: str
    history: tuple[_Loss, ...]
    val_bpd: float | None

    @classmethod
    def of(cls, trial: FrozenTrial, size: float) -> _Curve:
        """What a trial reported up to the first step that it left out."""
        losses = trial.intermediate_values
        history: list[_Loss] = []
        while len(history) + 1 in losses:
            history.append(_Loss(losses[len(history) + 1]))
        value = trial.values[1] if trial.state == TrialState.COMPLETE else None
        name = trial.user_attrs.get(ID, str(trial.number))
        return cls(name, trial.user_attrs.get(FAMILY, ""), size, _STATUS[trial.state], tuple(history), value)

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.history)

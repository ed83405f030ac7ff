"""An Optuna sampler for two objectives, both minimised, of which the first, a size, is known before a trial runs.

    def size(trial):  # asks for every hyperparameter, and trains nothing
        width = trial.suggest_int("width", 4, 256, log=True)
        depth = trial.suggest_int("depth", 1, 6)
        return depth * width**2

    def objective(trial):
        return size(trial), validation_loss(**trial.params)

    study = optuna.create_study(directions=["minimize", "minimize"], sampler=FrontSampler(size, seed=0))
    study.optimize(objective, n_trials=50)

The size is free, so it is known for every candidate. The loss is not: a surrogate (:mod:`tune.propose.surrogate`)
forecasts that of untried points, learning curves (:mod:`tune.statistics.forecasts`) those of trials that are under way
or pruned. The next point is the one of some hundred candidates by which the front's area is expected to grow the most
(:mod:`tune.propose.expected_improvement`) for the epochs that it should cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from tune.propose.expected_front import BEYOND
from tune.propose.expected_improvement import Staircase
from tune.propose.pool import DrawnPool, Params, Pool, Proposal, above_zero, params_of
from tune.propose.surrogate import Surrogate, UnitCube
from tune.statistics.forecasts import Forecast, Forecasts
from tune.statistics.pareto import Floats, pareto_front

LEAST_TRIALS = 3
"""Trials with a forecast that the surrogate needs."""
TYPICAL_SPREAD = 0.5
"""Standard deviation of the losses that the surrogate's constants are made for, in bits/dim."""
FAMILY, ID, SIZE = "family", "id", "size"
"""User attributes of trials, each optional: trials of other families than the sampler's are rivals on the front, and
teach it nothing else; what the trial is known by; its size."""


class Choice(NamedTuple):
    """What should come next."""

    what: Proposal | FrozenTrial
    """A point that nobody has tried, or a pruned trial that is to go on."""
    value: float
    """Expected growth of the front's area, in decades × loss, for each epoch that it should cost."""


class FrontSampler(BaseSampler):
    """Chooses by expected hypervolume improvement. The study needs two directions, both ``minimize``.

    The attributes below are for whoever keeps trials with learning curves, such as this project's search: a study of
    Optuna's with several objectives lets its trials report none.
    """

    def __init__(
        self, size: Callable[[BaseTrial], float], *, worst: float | None = None, seed: int | None = None
    ) -> None:
        """
        Args:
            size: suggests every hyperparameter and returns the first objective, above 0; for an impossible point it
                raises ``ValueError`` or ``optuna.TrialPruned``.
            worst: loss of a model that has learned nothing; by default the highest one of a complete trial.
            seed: of all draws.
        """
        self.size, self.worst = size, worst
        self.pool: Pool = DrawnPool(size, seed)
        self.forecasts: Forecasts | None = None
        """Of trials that are not complete; None: such trials count for nothing."""
        self.epochs = 1
        """How many a complete trial has."""
        self.first_rung = 1
        """Epochs after which a trial may be pruned."""
        self.family = ""
        """Of the trials that are proposed."""
        self.by_size = True
        """False: the front is the lowest loss alone."""
        self.counted: Sequence[tuple[float, float]] | None = None
        """Stretches of log10 sizes in which the front is to become better; None: all."""
        self.scale: float | None = None
        """Losses over bits/dim; None: by the spread of the complete trials' losses."""
        self.prior: Sequence[FrozenTrial] = ()
        """Complete trials of other studies that compare: they teach the surrogate, and are not on the front."""
        self._cube = UnitCube(size)
        self._points: dict[Params, Floats] = {}
        self._sizes: dict[Params, float] = {}
        self._independent = RandomSampler(seed)
        self._suggestions: dict[int, Mapping[str, Any]] = {}  # by trial, between two calls of Optuna's

    # --- Optuna's interface --------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that this trial will be asked for."""
        if study.directions != [StudyDirection.MINIMIZE] * 2:
            raise ValueError(f"FrontSampler: needs two directions, both 'minimize'; the study has {study.directions}")
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        choice = self.choose(others)
        if choice is None or isinstance(choice.what, FrozenTrial):
            return {}
        self._suggestions[trial.number] = choice.what.suggestion
        fixed = optuna.trial.FixedTrial(dict(choice.what.suggestion))
        self.size(fixed)
        return fixed.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters' values."""
        return dict(self._suggestions.pop(trial.number, {}))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a parameter that ``size`` did not ask for, drawn uniformly."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Draw otherwise than a copy of this sampler, as Optuna asks for in each of several jobs."""
        self._independent.reseed_rng()
        self.pool = DrawnPool(self.size, None)

    # --- the choice ----------------------------------------------------------------------------------------------

    def choose(
        self, trials: Sequence[FrozenTrial], may_go_on: Callable[[FrozenTrial], bool] | None = None
    ) -> Choice | None:
        """The best of some hundred candidates and of the pruned trials that ``may_go_on``; None where there is neither.

        Raises what the pool raises where it is empty and no trial can go on.
        """
        observed = self._observed(trials)
        own = [each for each in observed if each.family == self.family]
        pruned = [each for each in own if may_go_on and each.trial.state == TrialState.PRUNED]
        known = [each for each in (*own, *self._observed(self.prior)) if self._point(each.trial) is not None]
        on_front = pareto_front([(math.log10(each.size), each.forecast.mean) for each in own])
        try:
            parents = [own[index].trial.params for index in on_front if own[index].trial.params]
            pool = self.pool.draw(parents, {params_of(each.params) for each in trials})
        except ValueError:
            if not pruned:
                raise
            pool = []
        sizes = [*(each.size for each in pool), *(each.size for each in observed)]
        if not sizes:
            return None
        if len(known) < LEAST_TRIALS:
            choices = [Choice(each, math.inf) for each in pool if self.pool.admits(each)][:1]
            front = self._front(observed, max(sizes))
        else:
            scale = self._scale(known)
            surrogate = self._surrogate(known, scale)
            front = self._front([*observed, *self._begun(trials, surrogate, scale)], max(sizes))
            choices = self._new(pool, surrogate, scale, front)
        if may_go_on and pruned:
            choices += self._again(pruned, front, may_go_on)
        return max(choices, key=lambda choice: choice.value) if choices else None

    def _observed(self, trials: Sequence[FrozenTrial]) -> list[_Observed]:
        """The trials that have a forecast, with it."""
        if self.forecasts is not None and trials is not self.prior:
            complete = (each for each in trials if each.state == TrialState.COMPLETE)
            self.forecasts.learn(_Curve.of(each, each.values[0]) for each in complete)
        observed = []
        for trial in trials:
            forecast = self._forecast(trial)
            if forecast is not None and (size := self._size(trial)) is not None:
                observed.append(_Observed(trial, size, forecast, trial.user_attrs.get(FAMILY, "")))
        return observed

    def _forecast(self, trial: FrozenTrial) -> Forecast | None:
        if trial.state == TrialState.COMPLETE:
            return Forecast(trial.values[1], 0.0) if math.isfinite(trial.values[1]) else None
        size = self._size(trial)
        if self.forecasts is None or size is None or trial.state not in (TrialState.RUNNING, TrialState.PRUNED):
            return None
        return self.forecasts.of(_Curve.of(trial, size))

    def _surrogate(self, known: Sequence[_Observed], scale: float) -> Surrogate:
        return Surrogate(
            np.array([self._point(each.trial) for each in known]),
            np.log10([each.size for each in known]),
            np.array([min(each.forecast.mean, self._worst(known)) for each in known]) / scale,
            np.array([each.forecast.spread for each in known]) / scale,
        )

    def _front(self, observed: Iterable[_Observed], largest: float) -> Staircase:
        """What complete trials have reached and running ones will reach: a pruned one holds no place."""
        standing = [each for each in observed if each.trial.state != TrialState.PRUNED]
        points = [(float(self._log_size(each.size)), each.forecast.mean) for each in standing]
        reference = float(self._log_size(largest)) + math.log10(BEYOND), self._worst(standing)
        return Staircase(points, reference, self.counted)

    def _new(self, pool: Sequence[Proposal], surrogate: Surrogate, scale: float, front: Staircase) -> list[Choice]:
        if not pool:
            return []
        sizes = self._log_size([each.size for each in pool])
        points = np.array([self._cube.point(each.suggestion) for each in pool])
        mean, spread = (each * scale for each in surrogate.predict(points, np.log10([each.size for each in pool])))
        gains = front.expected_improvement(sizes, mean, spread)
        # It is trained to the first rung, and further as far as it looks like reaching the front.
        further = front.probability_below(sizes, mean, spread) * (self.epochs - self.first_rung)
        costs = self.first_rung + further
        for best in np.argsort(-gains / costs):
            if self.pool.admits(pool[best]):
                return [Choice(pool[best], float(gains[best] / costs[best]))]
        return []

    def _again(
        self, pruned: Sequence[_Observed], front: Staircase, may_go_on: Callable[[FrozenTrial], bool]
    ) -> list[Choice]:
        sizes = self._log_size([each.size for each in pruned])
        mean, spread = np.array([each.forecast for each in pruned]).T
        left = np.array([self.epochs - len(each.trial.intermediate_values) for each in pruned])
        values = front.expected_improvement(sizes, mean, spread) / left
        for best in np.argsort(-values, kind="stable"):
            if may_go_on(pruned[best].trial):
                return [Choice(pruned[best].trial, float(values[best]))]
        return []

    def _begun(self, trials: Iterable[FrozenTrial], surrogate: Surrogate, scale: float) -> list[_Observed]:
        """Running trials that have no forecast yet, with the surrogate's: so that workers side by side spread out."""
        begun = []
        for trial in trials:
            is_own = trial.user_attrs.get(FAMILY, "") == self.family
            if trial.state == TrialState.RUNNING and is_own and self._forecast(trial) is None:
                size, point = self._size(trial), self._point(trial)
                if size is not None and point is not None:
                    begun.append((trial, size, point))
        if not begun:
            return []
        running, sizes, points = zip(*begun, strict=True)
        means, spreads = (each * scale for each in surrogate.predict(np.array(points), np.log10(sizes)))
        forecasts = (Forecast(float(mean), float(spread)) for mean, spread in zip(means, spreads, strict=True))
        return [_Observed(*each, self.family) for each in zip(running, sizes, forecasts, strict=True)]

    def _scale(self, known: Sequence[_Observed]) -> float:
        if self.scale is not None:
            return self.scale
        losses = [each.forecast.mean for each in known if each.trial.state == TrialState.COMPLETE]
        return float(np.std(losses)) / TYPICAL_SPREAD or 1.0 if len(losses) > 1 else 1.0

    def _worst(self, known: Iterable[_Observed]) -> float:
        if self.worst is not None:
            return self.worst
        losses = [each.forecast.mean for each in known if each.trial.state == TrialState.COMPLETE]
        return max(losses, default=math.inf)

    def _log_size(self, size: float | Sequence[float]) -> Floats:
        """log10 sizes; 0 for all where sizes do not count."""
        return np.log10(size) * self.by_size

    def _size(self, trial: FrozenTrial) -> float | None:
        """None while a trial is still being asked for its parameters."""
        if known := trial.user_attrs.get(SIZE) or (trial.values[0] if trial.values else None):
            return above_zero(known)
        params = params_of(trial.params)
        if params not in self._sizes:
            try:
                size = self.size(optuna.trial.FixedTrial(trial.params))
            except (ValueError, optuna.TrialPruned):
                return None
            self._sizes[params] = above_zero(size)
        return self._sizes[params]

    def _point(self, trial: FrozenTrial) -> Floats | None:
        """None where a trial lacks something that ``size`` asks for."""
        params = params_of(trial.params)
        if params not in self._points:
            try:
                self._points[params] = self._cube.point(trial.params)
            except (ValueError, optuna.TrialPruned):
                return None
        return self._points[params]


class _Observed(NamedTuple):
    """A trial, and what it will reach."""

    trial: FrozenTrial
    size: float
    forecast: Forecast
    family: str


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
    """A trial as :class:`tune.statistics.forecasts.Curve`."""

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

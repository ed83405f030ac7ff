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
forecasts that of untried points, learning curves (:mod:`tune.stats.forecasts`) those of trials that are under way
or pruned. The next point is the one of some hundred candidates by which the front's area is expected to grow the most
(:mod:`tune.propose.expected_improvement`) for the epochs that it should cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from tune.propose.expected_improvement import Staircase, log_size
from tune.propose.observations import FAMILY, Observation, Observations
from tune.propose.pool import DrawnPool, Pool, Proposal, params_of
from tune.propose.surrogate import Surrogate
from tune.stats.forecasts import Forecast
from tune.stats.pareto import pareto_front

LEAST_TRIALS = 3
"""Trials with a forecast that the surrogate needs."""
TYPICAL_SPREAD = 0.5
"""Standard deviation of the losses that the surrogate's constants are made for, in bits/dim."""

What = TypeVar("What", covariant=True)
Next = Proposal | FrozenTrial


class Choice(NamedTuple, Generic[What]):
    """What is best tried next."""

    what: What
    """A point that has not been tried, or a pruned trial that is to go on."""
    value: float
    """Expected growth of the front's area, in decades × loss, for each epoch that it should cost."""


class FrontSampler(BaseSampler):
    """Chooses by expected hypervolume improvement. The study needs two directions, both ``minimize``.

    The attributes below are for callers that keep trials with learning curves, such as this project's search: in a
    study of Optuna's with several objectives trials report none.
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
        self.observations = Observations(size)
        """Its ``forecasts`` are those of trials that are not complete; without any, such trials count for nothing."""
        self.epochs = 1
        """How many a complete trial has."""
        self.first_rung = 1
        """Epochs after which a trial may be pruned."""
        self.family = ""
        """Family of the trials that are proposed."""
        self.by_size = True
        """False: the front is the lowest loss alone."""
        self.counted: Sequence[tuple[float, float]] | None = None
        """Stretches of log10 sizes in which the front is to become better; None: all."""
        self.scale: float | None = None
        """Losses over bits/dim; None: by the spread of the complete trials' losses."""
        self.prior: Sequence[FrozenTrial] = ()
        """Complete trials of other studies that compare: they teach the surrogate, and are not on the front."""
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
    ) -> Choice[Next] | None:
        """The best of some hundred candidates and of the pruned trials that ``may_go_on``; None where there is neither.

        Raises what the pool raises where it is empty and no trial can go on.
        """
        observed = self.observations.of(trials)
        own = [each for each in observed if each.family == self.family]
        pruned = [each for each in own if may_go_on and each.trial.state == TrialState.PRUNED]
        prior = self.observations.of(self.prior, learn=False)
        known = [each for each in (*own, *prior) if self.observations.point(each.trial) is not None]
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
            choices = [Choice[Next](each, math.inf) for each in pool if self.pool.admits(each)][:1]
            front = self._front(observed, max(sizes))
        else:
            scale = self._scale(known)
            surrogate = self._surrogate(known, scale)
            front = self._front([*observed, *self._begun(trials, surrogate, scale)], max(sizes))
            choices = self._new(pool, surrogate, scale, front)
        if may_go_on and pruned:
            choices += self._again(pruned, front, may_go_on)
        return max(choices, key=lambda choice: choice.value) if choices else None

    def _surrogate(self, known: Sequence[Observation], scale: float) -> Surrogate:
        return Surrogate(
            np.array([self.observations.point(each.trial) for each in known]),
            np.log10([each.size for each in known]),
            np.array([min(each.forecast.mean, self._worst(known)) for each in known]) / scale,
            np.array([each.forecast.spread for each in known]) / scale,
        )

    def _front(self, observed: Iterable[Observation], largest: float) -> Staircase:
        """What complete trials have reached and running ones will reach: a pruned one holds no place."""
        standing = [each for each in observed if each.trial.state != TrialState.PRUNED]
        points = [(each.size, each.forecast.mean) for each in standing]
        worst = self._worst(standing)
        return Staircase.of_sizes(points, largest, worst, by_size=self.by_size, counted=self.counted)

    def _new(
        self, pool: Sequence[Proposal], surrogate: Surrogate, scale: float, front: Staircase
    ) -> list[Choice[Next]]:
        if not pool:
            return []
        sizes = log_size([each.size for each in pool], self.by_size)
        points = np.array([self.observations.cube.point(each.suggestion) for each in pool])
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
        self, pruned: Sequence[Observation], front: Staircase, may_go_on: Callable[[FrozenTrial], bool]
    ) -> list[Choice[Next]]:
        sizes = log_size([each.size for each in pruned], self.by_size)
        mean, spread = np.array([each.forecast for each in pruned]).T
        left = np.array([self.epochs - len(each.trial.intermediate_values) for each in pruned])
        values = front.expected_improvement(sizes, mean, spread) / left
        for best in np.argsort(-values, kind="stable"):
            if may_go_on(pruned[best].trial):
                return [Choice(pruned[best].trial, float(values[best]))]
        return []

    def _begun(self, trials: Iterable[FrozenTrial], surrogate: Surrogate, scale: float) -> list[Observation]:
        """Running trials that have no forecast yet, with the surrogate's: so that workers side by side spread out."""
        begun = []
        for trial in trials:
            is_own = trial.user_attrs.get(FAMILY, "") == self.family
            if trial.state == TrialState.RUNNING and is_own and self.observations.forecast(trial) is None:
                size, point = self.observations.size(trial), self.observations.point(trial)
                if size is not None and point is not None:
                    begun.append((trial, size, point))
        if not begun:
            return []
        running, sizes, points = zip(*begun, strict=True)
        means, spreads = (each * scale for each in surrogate.predict(np.array(points), np.log10(sizes)))
        forecasts = (Forecast(float(mean), float(spread)) for mean, spread in zip(means, spreads, strict=True))
        return [Observation(*each, self.family) for each in zip(running, sizes, forecasts, strict=True)]

    def _scale(self, known: Sequence[Observation]) -> float:
        if self.scale is not None:
            return self.scale
        losses = [each.forecast.mean for each in known if each.trial.state == TrialState.COMPLETE]
        return float(np.std(losses)) / TYPICAL_SPREAD or 1.0 if len(losses) > 1 else 1.0

    def _worst(self, known: Iterable[Observation]) -> float:
        if self.worst is not None:
            return self.worst
        losses = [each.forecast.mean for each in known if each.trial.state == TrialState.COMPLETE]
        return max(losses, default=math.inf)

"""Optuna's two-objective samplers as methods of the replay: (log10 parameters, final bits/dim), full trainings.

One define-by-run study: the family is a categorical, and each family's own parameters follow from it. Families share
no parameter, as the same name means different ranges in them. A proposal is moved to the nearest untried row of the
proposed family, and the study is told that row's own parameters, from the start on: running trials are what TPE's
constant liar keeps away from, and the generation that NSGA-II gave the proposal stays with the row. So a sampler
learns from what was really trained. A row that diverges is a failed trial, as it is with Optuna.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from benchmarks.search.curves import Curves, Row, table_space
from benchmarks.search.replay import Decision
from fvae.config import FAMILIES, ConfigError
from tune.space import suggest

optuna.logging.set_verbosity(optuna.logging.ERROR)


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """As Optuna 5 sets it for several objectives: each parameter by itself; the liar is what parallel runs need."""
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def joint_tpe(seed: int) -> optuna.samplers.BaseSampler:
    """Parameters jointly, in groups that a conditional space falls into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True, group=True)


def nsga2(seed: int, population: int = 50) -> optuna.samplers.BaseSampler:
    """A population of 50 is Optuna's own setting."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)


class OptunaSearch:
    """A sampler that proposes rows of the table."""

    def __init__(
        self, curves: Curves, seed: int, first: Sequence[int] = (), *, sampler: optuna.samplers.BaseSampler
    ) -> None:
        self._rows = curves.rows
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._families = tuple(family for family in FAMILIES if any(row.family == family for row in curves.rows))
        self._spaces = {family: family_space(curves, family) for family in self._families}
        self._places = {
            index: coordinates(row.suggestion, self._spaces[row.family]) for index, row in enumerate(curves.rows)
        }
        self._untried = {
            family: [index for index, row in enumerate(curves.rows) if row.family == family]
            for family in self._families
        }
        self._numbers: dict[int, int] = {}  # row → number of its trial in the study
        self._best: dict[int, float] = {}
        self._rng = np.random.default_rng(seed)
        for row in self._rng.permutation(np.array(first, dtype=int)):
            self._study.enqueue_trial(self._params(self._rows[row]))

    def start(self) -> int | None:
        """The untried row that is nearest to what the sampler proposes; any, once the proposed family has none."""
        if not any(self._untried.values()):
            return None
        asked = self._study.ask()
        family = asked.suggest_categorical("family", self._families)
        proposed = _proposed(asked, family, self._rows[0])
        candidates = self._untried[family]
        if candidates:
            place = coordinates(proposed, self._spaces[family])
            row = min(candidates, key=lambda index: distance(place, self._places[index], self._spaces[family]))
        else:
            row = int(self._rng.choice([index for rows in self._untried.values() for index in rows]))
        self._untried[self._rows[row].family].remove(row)
        # The proposal gives way to the row; a failed trial is one that samplers take no notice of.
        proposal = self._study.tell(asked, state=TrialState.FAIL)
        self._numbers[row] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(self._trial(self._rows[row], proposal.system_attrs))
        return row

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """Always on: Optuna stops nothing early where there are two objectives."""
        self._best[row] = min(val_bpd, self._best.get(row, math.inf))
        return Decision.CONTINUE

    def ended(self, row: int, complete: bool) -> None:
        """Tell the study."""
        if complete:
            self._study.tell(self._numbers[row], [math.log10(self._rows[row].params), self._best[row]])
        else:
            self._study.tell(self._numbers[row], state=TrialState.FAIL)

    def _trial(self, row: Row, system_attrs: dict[str, Any]) -> optuna.trial.FrozenTrial:
        named = {f"{row.family}.{name}": distribution for name, distribution in distributions(row).items()}
        return optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self._params(row),
            distributions={"family": CategoricalDistribution(self._families)} | named,
            system_attrs=system_attrs,
        )

    def _params(self, row: Row) -> dict[str, Any]:
        own = {f"{row.family}.{name}": row.suggestion[name] for name in distributions(row)}
        return {"family": row.family} | own


def family_space(curves: Curves, family: str) -> dict[str, BaseDistribution]:
    """Everything that the search's own space asks of any row of the family."""
    space: dict[str, BaseDistribution] = {}
    for row in curves.rows:
        if row.family == family:
            space |= distributions(row)
    return space


def distributions(row: Row) -> dict[str, BaseDistribution]:
    """What the search's own space asks of the row."""
    fixed = optuna.trial.FixedTrial(dict(row.suggestion))
    _ask(fixed, row.family, row)
    return fixed.distributions


def _ask(trial: optuna.trial.BaseTrial, family: str, row: Row) -> None:
    """Ask ``trial`` for a point of the table's space; ``row`` is any of the table."""
    images = {name: row.model[name] for name in ("channels", "height", "width", "bins")}
    shape = (images["channels"], images["height"], images["width"])
    suggest(trial, family, table_space(shape, images["bins"]), images)


def _proposed(asked: optuna.Trial, family: str, row: Row) -> dict[str, Any]:
    """What the sampler says when it is asked for a point of the family, as the product asks it."""
    trial = _OfFamily(asked, family)
    with contextlib.suppress(ConfigError):  # no possible model: the nearest row is one
        _ask(trial, family, row)
    return trial.answers


class _OfFamily(optuna.trial.FixedTrial):
    """Asks a trial for what is suggested, by names that begin with the family."""

    def __init__(self, trial: optuna.Trial, family: str) -> None:
        super().__init__({})
        self._trial, self._family = trial, family
        self.answers: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.answers[name] = self._trial.suggest_float(f"{self._family}.{name}", low, high, step=step, log=log)
        return self.answers[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.answers[name] = self._trial.suggest_int(f"{self._family}.{name}", low, high, step=step, log=log)
        return self.answers[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.answers[name] = self._trial.suggest_categorical(f"{self._family}.{name}", choices)
        return self.answers[name]


def coordinates(suggestion: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> np.ndarray:
    """Where a point lies in its space: each range on 0 to 1, logarithmic where the space is; choices by number.

    What the point was not asked for is in the middle of its range, and a choice of its own.
    """
    return np.array([_coordinate(suggestion.get(name), distribution) for name, distribution in space.items()])


def distance(first: np.ndarray, second: np.ndarray, space: Mapping[str, BaseDistribution]) -> float:
    """Euclidean, where two different choices are 1 apart."""
    apart = np.abs(first - second)
    choices = [isinstance(distribution, CategoricalDistribution) for distribution in space.values()]
    apart[choices] = apart[choices] > 0
    return float(np.sqrt(np.sum(apart**2)))


def _coordinate(value: Any, distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return -1.0 if value is None else distribution.to_internal_repr(value)
    if value is None:
        return 0.5
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if low == high:
        return 0.0
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)

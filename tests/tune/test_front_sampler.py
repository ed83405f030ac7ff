"""The sampler in studies of anybody's own, without this project's search."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import BaseTrial, Trial, TrialState

from tune.front_sampler import FrontSampler
from tune.pareto import hypervolume

pytestmark = pytest.mark.core

REFERENCE = (6.0, 6.0)


def size(trial: BaseTrial) -> float:
    """A conditional space: the deep kind has a depth."""
    width = trial.suggest_int("width", 4, 256, log=True)
    kind = trial.suggest_categorical("kind", ["flat", "deep"])
    depth = trial.suggest_int("depth", 2, 8, step=2) if kind == "deep" else 1
    trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    trial.suggest_float("dropout", 0.0, 0.5, step=0.1)
    return float(depth * width**2)


def loss(trial: BaseTrial) -> float:
    asked, params = size(trial), trial.params
    off = abs(math.log10(params["rate"]) + 2.5)
    return 1 + 8 * asked**-0.2 + 0.8 * off + 2 * params["dropout"] + 0.3 * (params["kind"] == "flat")


def objective(trial: Trial) -> tuple[float, float]:
    return size(trial), loss(trial)


def study(sampler: BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)


def area(one: optuna.Study, scale: float = 1.0) -> float:
    complete = [each.values for each in one.trials if each.state == TrialState.COMPLETE]
    return hypervolume([(math.log10(params), bits / scale) for params, bits in complete], REFERENCE)


def optimized(sampler: BaseSampler, trials: int = 30, scale: float = 1.0) -> optuna.Study:
    one = study(sampler)
    one.optimize(lambda trial: (size(trial), scale * loss(trial)), n_trials=trials)
    return one


@pytest.mark.filterwarnings("error")
def test_ten_lines_find_the_front_sooner_than_chance() -> None:
    """Each of its values lies in its distribution, or Optuna would warn and draw another."""
    found = np.mean([area(optimized(FrontSampler(size, seed=seed))) for seed in range(3)])
    by_chance = np.mean([area(optimized(RandomSampler(seed))) for seed in range(3)])
    whole = area(optimized(RandomSampler(9), 2000))
    assert whole - found < 0.5 * (whole - by_chance)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_units_of_the_loss_do_not_matter(scale: float) -> None:
    by_chance = np.mean([area(optimized(RandomSampler(seed))) for seed in range(3)])
    assert area(optimized(FrontSampler(size, seed=0), scale=scale), scale) > by_chance


def test_the_same_seed_proposes_the_same() -> None:
    first, second = (optimized(FrontSampler(size, seed=4), 8) for _ in range(2))
    assert [each.params for each in first.trials] == [each.params for each in second.trials]


def test_several_jobs_at_once_spread_out() -> None:
    one = optimized(FrontSampler(size, seed=0), 20)
    asked = [one.ask() for _ in range(6)]
    sizes = [math.log10(size(trial)) for trial in asked]
    assert np.ptp(sizes) > 0.5
    assert len({tuple(trial.params.items()) for trial in asked}) == 6


def test_optunas_own_threads_may_share_it() -> None:
    one = study(FrontSampler(size, seed=0))
    one.optimize(objective, n_trials=16, n_jobs=4)
    assert [each.state for each in one.trials] == [TrialState.COMPLETE] * 16


def test_impossible_points_are_not_proposed() -> None:
    def limited(trial: BaseTrial) -> float:
        if (found := size(trial)) > 2_000:
            raise optuna.TrialPruned
        return found

    one = study(FrontSampler(limited, seed=0))
    one.optimize(lambda trial: (limited(trial), loss(trial)), n_trials=15)
    assert [each.state for each in one.trials] == [TrialState.COMPLETE] * 15


def test_failed_and_pruned_trials_count_for_nothing() -> None:
    one = study(FrontSampler(size, seed=0))
    ended = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    for number in range(18):
        trial = one.ask()
        state = ended[number % 3]
        asked = size(trial)
        one.tell(trial, (asked, loss(trial)) if state == TrialState.COMPLETE else None, state)
    assert [each.state for each in one.trials] == ended * 6


def test_values_that_it_did_not_ask_for_are_drawn() -> None:
    one = study(FrontSampler(size, seed=0))
    one.optimize(lambda trial: (size(trial), loss(trial) + trial.suggest_float("other", 0, 1)), n_trials=6)
    assert len({each.params["other"] for each in one.trials}) == 6


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"], ["minimize"] * 3])
def test_other_directions_are_refused(directions: list[str]) -> None:
    one = optuna.create_study(directions=directions, sampler=FrontSampler(size))
    with pytest.raises(ValueError, match="two directions, both 'minimize'"):
        size(one.ask())


def test_a_space_without_a_possible_point_says_so() -> None:
    def none(trial: BaseTrial) -> float:
        raise ValueError("impossible")

    with pytest.raises(ValueError, match="no possible point"):
        size(study(FrontSampler(none)).ask())


def test_an_interrupted_study_goes_on_from_its_database(tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    one = optuna.create_study(
        directions=["minimize"] * 2, sampler=FrontSampler(size, seed=0), storage=url, study_name="one"
    )
    one.optimize(objective, n_trials=5)
    again = optuna.load_study(storage=url, study_name="one", sampler=FrontSampler(size, seed=1))
    again.optimize(objective, n_trials=5)
    assert len(again.trials) == 10

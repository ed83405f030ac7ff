"""The sampler in any study of Optuna's, without this project's search."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import BaseTrial, Trial, TrialState

from tune.propose.define_by_run import UniformTrial
from tune.propose.front_sampler import FrontSampler
from tune.stats.pareto import hypervolume

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
    found = np.mean([area(optimized(FrontSampler(size, seed=seed))) for seed in range(6)])
    by_chance = np.mean([area(optimized(RandomSampler(seed))) for seed in range(6)])
    whole = area(optimized(RandomSampler(9), 2000))
    assert whole - found < 0.6 * (whole - by_chance)


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


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_failed_and_pruned_trials_count_for_nothing(state: TrialState) -> None:
    """But that their points are not proposed again: the next proposal is the one without them."""
    proposed = []
    for others in (0, 3):
        one = study(FrontSampler(size, seed=0))
        one.add_trials(optimized(RandomSampler(1), 6).trials)
        for point in optimized(RandomSampler(2), others).trials:
            lost = optuna.create_trial(state=state, params=point.params, distributions=point.distributions)
            one.add_trial(lost)
        trial = one.ask()
        size(trial)
        proposed.append(trial.params)
    assert proposed[0] == proposed[1]


def test_a_loss_that_is_no_number_counts_for_nothing() -> None:
    one = study(FrontSampler(size, seed=0))
    one.optimize(lambda trial: (size(trial), math.inf if trial.number % 3 == 0 else loss(trial)), n_trials=12)
    assert len(one.trials) == 12


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_size_that_is_none_is_said(wrong: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        study(FrontSampler(lambda trial: wrong * trial.suggest_float("x", 1, 2))).ask().suggest_float("x", 1, 2)


@pytest.mark.filterwarnings("error")
def test_a_range_may_depend_on_another_value() -> None:
    def chained(trial: BaseTrial) -> float:
        n = trial.suggest_int("n", 1, 8)
        return float(n + trial.suggest_int("k", 1, n))

    one = study(FrontSampler(chained, seed=0))
    one.optimize(lambda trial: (chained(trial), abs(trial.params["k"] - 3) + 1.0), n_trials=15)
    assert all(each.params["k"] <= each.params["n"] for each in one.trials)


def test_no_point_is_tried_twice_while_there_are_others() -> None:
    def few(trial: BaseTrial) -> float:
        return 1.0 + trial.suggest_int("n", 0, 9)

    one = study(FrontSampler(few, seed=0))
    one.optimize(lambda trial: (few(trial), 20.0 - trial.params["n"]), n_trials=10)
    assert {each.params["n"] for each in one.trials} == set(range(10))
    one.optimize(lambda trial: (few(trial), 20.0 - trial.params["n"]), n_trials=2)  # all were tried


def test_many_choices_are_no_matter() -> None:
    """Not every one of 3^20 combinations is visited."""

    def wide(trial: BaseTrial) -> float:
        return 1.0 + sum(trial.suggest_categorical(f"c{place}", [0, 1, 2]) for place in range(20))

    optimized_wide = study(FrontSampler(wide, seed=0))
    optimized_wide.optimize(lambda trial: (wide(trial), 100.0 - wide(trial)), n_trials=6)


@given(low=st.integers(-5, 5), width=st.integers(0, 30), step=st.integers(1, 7), seed=st.integers(0, 99))
def test_what_is_drawn_lies_in_its_distribution(low: int, width: int, step: int, seed: int) -> None:
    trial = UniformTrial(np.random.default_rng(seed))
    whole = trial.suggest_int("n", low, low + width, step=step)
    assert IntDistribution(low, low + width - width % step, step=step)._contains(whole)
    part = trial.suggest_float("x", low, low + width, step=step / 4)
    assert low <= part <= low + width
    assert (part - low) / (step / 4) == pytest.approx(round((part - low) / (step / 4)))


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

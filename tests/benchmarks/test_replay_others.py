"""The other tuners on the replay: fair to them, and the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from synthetic_curves import DIVERGED, EPOCHS, table

from benchmarks.search.moasha import NonDominatedPriority, Ranks
from benchmarks.search.optuna_searches import OptunaSearch, coordinates, distance, family_space, nsga2, tpe
from benchmarks.search.others import METHODS, TOOLS
from benchmarks.search.replay import Decision, Trace, replay

pytestmark = pytest.mark.core

CURVES = table()


def searched(name: str, seed: int) -> Trace:
    return replay(CURVES, METHODS[name](CURVES.blind(), seed), workers=8)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_whole_truth_once_the_table_is_used_up(name):
    trace = searched(name, 0)
    assert sorted(trace.rows) == [index for index in range(len(CURVES.rows)) if index != DIVERGED]
    assert trace.shares["front"][-1] == pytest.approx(1)
    assert trace.shares["map"][-1] == pytest.approx(1)
    assert trace.total_epochs == EPOCHS * len(trace.rows) + 3


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_is_one_search(name):
    first, again, other = searched(name, 3), searched(name, 3), searched(name, 4)
    assert first.rows == again.rows
    assert first.seconds.tolist() == again.seconds.tolist()
    assert first.rows != other.rows


@pytest.mark.parametrize("name", TOOLS)
def test_stratified_takes_families_in_turn(name):
    method = METHODS[f"{name} stratified"](CURVES.blind(), 0)
    started = [method.start() for _ in range(9)]
    assert [CURVES.rows[index].family for index in started] == ["vae", "flow", "fvae"] * 3


@pytest.mark.parametrize("name", TOOLS)
def test_designs_come_first(name):
    designs = CURVES.designs(6)
    assert {CURVES.rows[index].source for index in designs} == {"design"}
    method = METHODS[f"{name} designs"](CURVES.blind(), 0)
    assert {method.start() for _ in designs} == set(designs)


def test_optuna_learns_of_the_row_that_was_trained():
    curves = table()
    method = OptunaSearch(curves.blind(), 0, sampler=nsga2(0, population=4))
    replay(curves, method, workers=3)
    study = method._study
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    known = {
        (math.log10(each.params), each.final, each.suggestion["learning_rate"])
        for each in curves.rows
        if each.failure is None
    }
    told = {(*trial.values, trial.params[f"{trial.params['family']}.learning_rate"]) for trial in complete}
    assert told == known
    # Generations go on: a row is of the generation that its proposal was of.
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in complete]
    assert max(generations) >= 3
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING])


def test_running_rows_are_known_to_the_sampler():
    method = OptunaSearch(table().blind(), 0, sampler=tpe(0))
    rows = [method.start() for _ in range(8)]
    running = method._study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    rates = [CURVES.rows[index].suggestion["learning_rate"] for index in rows]
    assert [trial.params[f"{trial.params['family']}.learning_rate"] for trial in running] == rates


def test_distance_is_logarithmic_in_widths_and_one_for_another_choice():
    space = family_space(CURVES, "flow")
    base = {
        "flow_levels": 1, "flow_depth": 1, "coupling_width": 8, "coupling": "affine", "mixing": "plu",
        "dequantization": "uniform", "sigma_bins": 0.1, "learning_rate": 3e-3,
    }  # fmt: skip

    def apart(**changes: object) -> float:
        return distance(coordinates(base, space), coordinates(base | changes, space), space)

    assert apart() == 0
    assert apart(coupling="additive") == 1
    assert apart(coupling_width=80) == pytest.approx(1)
    assert apart(coupling_width=25) == pytest.approx(math.log(25 / 8) / math.log(10))
    assert apart(coupling="additive", mixing="permutation") == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("name", ["asha", "moasha", "moasha repaired"])
def test_halving_stops_early_and_takes_the_best_up_again_last(name):
    method = METHODS[name](CURVES.blind(), 0)
    decisions: dict[int, list[Decision]] = {}
    report = method.report

    def recorded(row: int, epoch: int, val_bpd: float) -> Decision:
        decisions.setdefault(row, []).append(report(row, epoch, val_bpd))
        return decisions[row][-1]

    method.report = recorded  # type: ignore[method-assign]
    replay(CURVES, method, workers=2)
    paused = [row for row, made in decisions.items() if Decision.PAUSE in made]
    assert len(paused) > len(CURVES.rows) / 3
    assert all(made.count(Decision.PAUSE) <= 1 for made in decisions.values())


def test_ranks_are_the_places_in_the_order_of_dominance():
    metrics = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.0, 0.0]])
    assert Ranks()(metrics).tolist() == [1, 2, 3, 0]
    assert NonDominatedPriority()(metrics).tolist() == [3, 0, 1, 2]  # why Ranks is needed; goes with the version

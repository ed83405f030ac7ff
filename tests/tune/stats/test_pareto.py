"""Fronts against brute force, hypervolume against counted grid cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tune.synthetic import failed, record, stopped, world
from tune.stats.pareto import front_of, fronts, hypervolume, interval95, pareto_front, resampled_fronts

pytestmark = pytest.mark.core

# Few distinct values, so that ties and identical points are common.
coordinate = st.integers(0, 6).map(float)
points = st.lists(st.tuples(coordinate, coordinate), max_size=12)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


@given(points)
def test_front_is_every_point_that_none_dominates(cloud: list[tuple[float, float]]) -> None:
    front = pareto_front(cloud)
    expected = {point for point in cloud if not any(dominates(other, point) for other in cloud)}
    assert [cloud[index] for index in front] == sorted(expected)
    assert all(cloud.index(cloud[index]) == index for index in front)  # the first of identical points


@given(points)
def test_hypervolume_is_the_area_of_dominated_cells(cloud: list[tuple[float, float]]) -> None:
    reference = (5.0, 4.0)
    cells = [(x, y) for x in range(5) for y in range(4)]
    dominated = sum(any(px <= x and py <= y for px, py in cloud) for x, y in cells)
    assert hypervolume(cloud, reference) == dominated


@given(points.filter(bool))
def test_vectorised_front_is_the_same_front(cloud: list[tuple[float, float]]) -> None:
    front = front_of(*np.array(cloud).T)
    expected = [cloud[index] for index in pareto_front(cloud)]
    assert list(zip(*front, strict=True)) == expected


@given(points.filter(bool), st.integers(0, 99))
def test_resampled_fronts_are_fronts_of_what_was_drawn(cloud: list[tuple[float, float]], seed: int) -> None:
    params, bpd = np.array(cloud).T
    draws = np.random.default_rng(seed).integers(len(cloud), size=(5, len(cloud)))
    for front, drawn in zip(resampled_fronts(params, bpd, 5, np.random.default_rng(seed)), draws, strict=True):
        chosen = [cloud[index] for index in drawn]
        assert list(zip(*front, strict=True)) == [chosen[index] for index in pareto_front(chosen)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_front_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        pareto_front([(1.0, 2.0), (2.0, bad)])


def test_fronts_hold_complete_trials_only() -> None:
    # Each of the first three would be on the front, had it counted.
    records = [
        stopped(record(0, "fvae", 100, 0.5), 3),
        failed(1, "flow", 50, "nan"),
        record(2, "flow", 60, 0.5, status="running"),
        record(3, "fvae", 2000, 2.0),
        record(4, "flow", 1000, 2.5),
        record(5, "flow", 3000, 2.2),
        record(6, "fvae", 2500, 2.1),
    ]
    assert fronts(records) == {
        "all": ["0004-flow", "0003-fvae"],
        "vae": [],
        "flow": ["0004-flow", "0005-flow"],
        "fvae": ["0003-fvae"],
    }


def test_fronts_list_ids_by_ascending_parameters() -> None:
    records = world(1, 20)
    params = {trial.id: trial.params for trial in records}
    for ids in fronts(records).values():
        assert [params[trial_id] for trial_id in ids] == sorted(params[trial_id] for trial_id in ids)


def test_interval_of_infinite_values_has_no_nan() -> None:
    values = np.array([0.0] * 10 + [1.0] * 20 + [np.inf] * 70)
    assert interval95(values) == (0.0, math.inf)
    assert interval95(np.arange(1000.0)) == (24.0, 975.0)

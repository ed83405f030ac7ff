"""Expected hypervolume improvement with one objective known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.propose.expected_improvement import Staircase
from tune.stats.pareto import hypervolume

pytestmark = pytest.mark.core

REFERENCE = (6.0, 4.0)
POINTS = st.lists(st.tuples(st.floats(2, 6.5), st.floats(1, 4.5)), max_size=8)


@given(points=POINTS, size=st.floats(1.5, 7), bits=st.floats(0.5, 5))
def test_a_sure_model_improves_by_just_what_it_adds(
    points: list[tuple[float, float]], size: float, bits: float
) -> None:
    grown = hypervolume([*points, (size, bits)], REFERENCE) - hypervolume(points, REFERENCE)
    expected = Staircase(points, REFERENCE).expected_improvement(np.array([size]), np.array([bits]), np.array([0.0]))
    assert expected[0] == pytest.approx(grown, abs=1e-6)


@given(points=POINTS, size=st.floats(2, 6), mean=st.floats(1, 4.5), spread=st.floats(0.05, 1))
def test_an_unsure_one_by_the_mean_of_what_it_may_add(
    points: list[tuple[float, float]], size: float, mean: float, spread: float
) -> None:
    quantiles = (np.arange(400) + 0.5) / 400
    bits = mean + spread * np.sqrt(2) * _inverse_erf(2 * quantiles - 1)
    before = hypervolume(points, REFERENCE)
    mean_growth = np.mean([hypervolume([*points, (size, float(each))], REFERENCE) - before for each in bits])
    expected = Staircase(points, REFERENCE).expected_improvement(np.array([size]), np.array([mean]), np.array([spread]))
    assert expected[0] == pytest.approx(mean_growth, abs=0.02 * spread + 1e-3)


def test_models_are_weighed_side_by_side() -> None:
    staircase = Staircase([(3.0, 3.0), (4.0, 2.0)], REFERENCE)
    sizes, means, spreads = np.array([2.5, 3.5, 5.0]), np.array([3.5, 2.5, 1.9]), np.array([0.1, 0.2, 0.3])
    together = staircase.expected_improvement(sizes, means, spreads)
    alone = [staircase.expected_improvement(sizes[[place]], means[[place]], spreads[[place]])[0] for place in range(3)]
    np.testing.assert_allclose(together, alone)


def test_the_height_is_what_the_front_has_within_a_size() -> None:
    staircase = Staircase([(3.0, 3.0), (4.0, 2.0), (4.5, 2.5)], REFERENCE)
    np.testing.assert_array_equal(staircase.height(np.array([2.9, 3.0, 3.9, 4.0, 5.0])), [4.0, 3.0, 3.0, 2.0, 2.0])


def test_the_probability_of_going_below() -> None:
    staircase = Staircase([(3.0, 3.0)], REFERENCE)
    below = staircase.probability_below(np.array([2.0, 3.5, 3.5]), np.array([4.0, 3.0, 2.8]), np.array([0.1, 0.1, 0.1]))
    np.testing.assert_allclose(below, [0.5, 0.5, 0.97725], atol=1e-4)


def _inverse_erf(values: np.ndarray) -> np.ndarray:
    from scipy.special import erfinv

    return erfinv(values)

"""Frontiers and what they are compared by: their samples do not rise, and levels lie within both."""

from __future__ import annotations

import numpy as np
import pytest

from tune.stats import stochastic_frontier
from tune.stats.comparison import shared_levels
from tune.stats.frontiers import Paths
from tune.stats.pareto import Front

pytestmark = pytest.mark.core


@pytest.fixture
def front() -> Front:
    return Front(np.array([100.0, 1000.0, 10000.0]), np.array([3.0, 2.5, 2.0]))


def test_who_may_have_more_parameters_may_have_fewer() -> None:
    sizes = np.array([3.0, 4.0, 5.0])
    assert Paths.of(sizes, np.array([[3.0, 2.0, 2.5]])).bits.tolist() == [[3.0, 2.25, 2.25]]
    surest = np.array([[3.0, 2.0, 2.5], [4.0, 3.0, 2.5], [3.5, 1.0, 2.5]])  # at the largest size
    bits = Paths.of(sizes, surest).bits
    assert bits[:2] == pytest.approx(np.array([[3.0, 2.5, 2.5], [4.0, 3.0, 2.5]]))
    assert (np.diff(bits) <= 0).all()


@pytest.mark.parametrize("error", [1e-9, 1e-6])
def test_rounding_leaves_no_covariance_without_a_root(error: float) -> None:
    """What is left of variances that lie a million-fold apart is of the size of their rounding, and may be negative."""
    scale = 10 ** np.linspace(-3, 3, 30)
    prior = np.outer(scale, scale) * np.exp(-(np.subtract.outer(np.linspace(0, 1, 30), np.linspace(0, 1, 30)) ** 2))
    root = stochastic_frontier._root(-error * prior, prior)
    assert np.isfinite(root).all()
    assert (np.diag(root @ root.T) <= 1e-2 * np.diag(prior) + 1e-6).all()


@pytest.mark.parametrize("width", [1.0, 0.2, 0.011, 0.002])
def test_levels_are_round_distinct_and_inside(front: Front, width: float) -> None:
    other = Front(np.array([200.0, 300.0]), np.array([2.2 + width, 2.2]))
    levels, decimals = shared_levels(front, other)
    assert len({f"{level:.{decimals}f}" for level in levels}) == 5
    assert (levels > 2.2).all() and (levels < min(2.2 + width, 3.0)).all()


def test_fronts_that_touch_share_one_level(front: Front) -> None:
    levels, _ = shared_levels(front, Front(np.array([500.0]), np.array([2.4])))
    assert levels.tolist() == [2.4]
    assert not len(shared_levels(front, Front(np.array([500.0]), np.array([1.5])))[0])

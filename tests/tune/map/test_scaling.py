"""The curve finds a known truth, its band covers it, and it refuses what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tune.synthetic import ALPHA, A, B, record, stopped, true_bpd, world
from tune.map import scaling
from tune.map.scaling import BEYOND, REPLICATES, PowerLaw, fit_family, fit_power_law, forecast_front
from tune.stats.pareto import Front, size_and_bits

pytestmark = pytest.mark.core


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of them: what holds of a band from so few holds of one from more."""
    monkeypatch.setattr(scaling, "REPLICATES", REPLICATES // 4)


@settings(max_examples=25, deadline=None)
@given(
    a=st.floats(0.5, 5.0),
    height=st.floats(0.3, 3.0),
    alpha=st.floats(0.15, 1.5),
    smallest=st.floats(1e2, 1e7),
)
def test_fit_recovers_the_truth(a: float, height: float, alpha: float, smallest: float) -> None:
    params = np.geomspace(smallest, 300 * smallest, 9)
    truth = PowerLaw(a, height * smallest**alpha, alpha)
    fit = fit_power_law(Front(params, truth(params)))
    assert fit.a == pytest.approx(a, rel=2e-3, abs=2e-3)
    assert fit.alpha == pytest.approx(alpha, rel=1e-2)
    np.testing.assert_allclose(fit(params), truth(params), rtol=1e-4)


def test_one_unlucky_point_does_not_bend_the_curve() -> None:
    truth = PowerLaw(A, B, ALPHA)
    params = np.geomspace(1e4, 1e6, 12)
    bpd = truth(params)
    bpd[3] += 0.5
    others = np.arange(12) != 3
    assert np.abs(fit_power_law(Front(params, bpd))(params) - truth(params))[others].max() < 0.03


def test_fit_stays_within_its_bounds() -> None:
    # Concave in log N: no power law falls ever faster.
    params = np.geomspace(1e4, 1e6, 6)
    fit = fit_power_law(Front(params, 3 - 0.05 * np.arange(6) ** 2))
    assert fit.a >= 0 and fit.b >= 0
    assert fit.at_bounds


def test_fit_family_reports_the_curve_its_band_and_intervals() -> None:
    fit = fit_family(world(1, 24, scatter=0.01), "flow", seed=0)
    assert fit["why"] is None and fit["trials"] == 24
    assert fit["replicates_fitted"] == REPLICATES
    for name in ("a", "b", "alpha"):
        low, high = fit["ci95"][name]
        assert low <= high
    band = {name: np.array(values) for name, values in fit["band"].items()}
    law = PowerLaw(fit["a"], fit["b"], fit["alpha"])
    np.testing.assert_allclose(band["bpd"], law(band["params"]))
    assert (band["low"] <= band["high"]).all()


@pytest.mark.usefixtures("fewer_resamples")
def test_band_covers_the_truth() -> None:
    inside = []
    for seed in range(8):
        band = fit_family(world(1, 12, scatter=0.004, seed=seed), "flow", seed)["band"]
        middle = len(band["params"]) // 2
        truth = true_bpd(band["params"][middle])
        # A front of trials that all fall short of the truth stays above it, by about the mean shortfall.
        inside.append(band["low"][middle] - 0.004 <= truth <= band["high"][middle])
    assert np.mean(inside) >= 0.75


@pytest.mark.usefixtures("fewer_resamples")
def test_band_narrows_with_more_trials() -> None:
    def width(trials: int) -> float:
        band = fit_family(world(1, trials, scatter=0.05), "flow", seed=0)["band"]
        return float(np.median(np.subtract(band["high"], band["low"])))

    assert width(48) < width(8)


def test_too_few_front_points_give_a_reason_in_place_of_a_curve() -> None:
    trials = [record(0, "flow", 1000, 3.0), record(1, "flow", 2000, 2.5), record(2, "flow", 3000, 2.6)]
    # Part-trained: would be a third front point.
    fit = fit_family([*trials, stopped(record(3, "flow", 4000, 1.0), 2)], "flow", seed=0)
    assert (fit["a"], fit["b"], fit["alpha"], fit["ci95"], fit["band"]) == (None,) * 5
    assert fit["beyond"] is None
    assert "2 front points from 3 complete trials" in fit["why"]
    assert fit_family([], "vae", seed=0)["why"]


@pytest.mark.usefixtures("fewer_resamples")
def test_same_seed_same_fit() -> None:
    records = world(1, 10)
    assert fit_family(records, "flow", seed=3) == fit_family(records, "flow", seed=3)


@pytest.mark.usefixtures("fewer_resamples")
def test_forecast_holds_the_truth_beyond_the_largest_model() -> None:
    inside = []
    for seed in range(6):
        fit = fit_family(world(1, 16, scatter=0.01, seed=seed), "flow", seed)
        beyond = {name: np.array(values) for name, values in fit["beyond"].items()}
        assert [values[0] for values in beyond.values()] == [values[-1] for values in fit["band"].values()]  # they meet
        assert beyond["params"][-1] == pytest.approx(BEYOND * fit["band"]["params"][-1])
        assert (beyond["low"] <= beyond["bpd"]).all() and (beyond["bpd"] <= beyond["high"] + 1e-9).all()
        truth = np.array([true_bpd(size) for size in beyond["params"]])
        inside.append(((beyond["low"] - 0.01 <= truth) & (truth <= beyond["high"])).mean())
    assert np.mean(inside) >= 0.8


@pytest.mark.usefixtures("fewer_resamples")
def test_no_forecast_is_above_what_a_smaller_model_has_reached() -> None:
    for seed in range(3):
        points = np.array(size_and_bits(world(1, 12, scatter=0.3, seed=seed)))
        sizes = points[:, 0].max() * np.array([1.0, 2.0, 8.0])
        forecast = forecast_front(points, sizes, seed)
        assert forecast is not None
        assert np.array([forecast["bpd"], forecast["high"]]).max() <= points[:, 1].min() + 1e-9

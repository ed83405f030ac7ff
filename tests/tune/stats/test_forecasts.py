"""Forecasts of what trials will reach."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tune.curves import falling, trial
from tune.stats.forecasts import GAIN, GAIN_POWER, LEAST_SPREAD, Forecasts

pytestmark = pytest.mark.core

EPOCHS, BINS = 60, 17
RUNGS = (2, 4, 8, 15, 30)


def forecasts() -> Forecasts:
    return Forecasts(RUNGS, EPOCHS, math.log2(BINS))


def test_no_forecast_before_the_first_rung() -> None:
    assert forecasts().of(trial(0, 1000, [3.0])) is None


def test_a_complete_trial_is_known() -> None:
    assert forecasts().of(trial(0, 1000, [3.0, 2.0, 2.5], status="complete")) == (2.0, 0.0)


def test_a_failed_trials_past_is_no_evidence() -> None:
    assert forecasts().of(trial(0, 1000, [3.0] * 20, status="failed")) is None


def test_before_anything_is_known_a_curve_goes_on_as_curves_do() -> None:
    forecast = forecasts().of(trial(0, 10_000, [2.6] * 15 + [2.5] * 15))
    assert forecast is not None
    by_curve = 2.5 * (2.5 / 2.6) ** (GAIN * (EPOCHS / 30 - 1) ** GAIN_POWER)
    assert forecast.mean == pytest.approx(by_curve, abs=0.03)


def test_a_trial_is_read_at_its_last_rung_alone() -> None:
    known = forecasts()
    at_rung = known.of(trial(0, 1000, [5.0, 4.0, 3.5, 3.4]))
    assert known.of(trial(1, 1000, [5.0, 4.0, 3.5, 3.4, 1.0, 9.0])) == at_rung


def test_a_settled_curve_is_sure_but_never_wholly() -> None:
    forecast = forecasts().of(trial(0, 1000, [2.0] * 30))
    assert forecast is not None
    assert forecast.mean == pytest.approx(2.0, abs=0.05)
    assert LEAST_SPREAD <= forecast.spread < 0.06


def test_of_a_curve_that_falls_from_far_off_others_of_its_family_say_more() -> None:
    known = forecasts()
    known.learn(trial(number, 10_000, falling(3.2, 0.01, EPOCHS), status="complete") for number in range(20))
    forecast = known.of(trial(99, 10_000, [600.0, 250.0, 150.0, 60.0]))
    assert forecast is not None
    assert forecast.mean == pytest.approx(3.2, rel=0.1)


def test_larger_trials_are_expected_to_reach_what_larger_ones_did() -> None:
    known = forecasts()
    known.learn(
        trial(number, 10**size, falling(5.0 - 0.5 * size, 0.01, EPOCHS), status="complete")
        for number, size in enumerate([3, 4, 5] * 6)
    )
    small, large = (known.of(trial(90 + size, 10**size, [100.0, 50.0])) for size in (3, 5))
    assert small is not None
    assert large is not None
    assert small.mean - large.mean > 0.5


def later_half(rng: np.random.Generator, scatter: float) -> tuple[list[float], float]:
    """A curve whose log gains, after epoch 8, half of what it gained since epoch 4, more or less; and its end."""
    end, gain = rng.uniform(2, 3), rng.uniform(0.1, 0.2)
    at_8 = end * math.exp(gain * (0.5 + scatter * rng.standard_normal()))
    return [at_8 * math.exp(gain)] * 4 + [at_8] * 4 + [end] * 52, end


def test_it_learns_how_curves_of_a_family_go_on() -> None:
    known = forecasts()
    rng = np.random.default_rng(0)
    known.learn(trial(number, 1000, later_half(rng, 0.0)[0], status="complete") for number in range(40))
    curve = [4.0] * 4 + [3.6] * 4
    forecast, other = (known.of(trial(99, 1000, curve, family=family)) for family in ("flow", "vae"))
    assert forecast is not None
    assert other is not None
    assert forecast.mean == pytest.approx(3.6 * (3.6 / 4.0) ** 0.5, rel=0.01)
    assert other.spread > 2 * forecast.spread  # nothing is known of that family


def test_a_trial_teaches_once() -> None:
    taught, again = forecasts(), forecasts()
    complete = trial(0, 1000, falling(2.0, 0.1, EPOCHS), status="complete")
    taught.learn([complete])
    for _ in range(5):
        again.learn([complete])
    newcomer = trial(1, 1000, falling(2.5, 0.2, EPOCHS, until=8))
    assert taught.of(newcomer) == again.of(newcomer)


def test_its_spread_covers_what_it_forecasts() -> None:
    """About two in three ends lie within one spread, nine in ten and more within two."""
    rng = np.random.default_rng(1)
    known = forecasts()
    known.learn(trial(number, 1000, later_half(rng, 0.3)[0], status="complete") for number in range(60))
    misses = []
    for number in range(400):
        values, end = later_half(rng, 0.3)
        forecast = known.of(trial(100 + number, 1000, values[:8]))
        assert forecast is not None
        misses.append(abs(forecast.mean - end) / forecast.spread)
    assert 0.5 < np.mean(np.array(misses) < 1) < 0.85
    assert np.mean(np.array(misses) < 2) > 0.9

"""The verdict in worlds whose truth is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.tune.synthetic import record, stopped, world
from tune.bootstrap import Front
from tune.claim import MIN_TRIALS, build_claim
from tune.interpolation import bits_at, log_size_at, shared_levels, shared_sizes
from tune.ledger import TrialRecord

pytestmark = pytest.mark.core


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of them, for what is asked of many searches."""
    monkeypatch.setattr("tune.claim.REPLICATES", 250)


@pytest.fixture
def front() -> Front:
    return Front(np.array([100.0, 1000.0, 10000.0]), np.array([3.0, 2.5, 2.0]))


def trials(family: str, points: list[tuple[int, float]], first: int = 0) -> list[TrialRecord]:
    return [record(first + index, family, params, bpd) for index, (params, bpd) in enumerate(points)]


@pytest.mark.parametrize(("ratio", "verdict"), [(0.4, "supported"), (2.5, "refuted")])
@pytest.mark.parametrize("seed", range(3))
def test_verdict_finds_a_large_ratio(ratio: float, verdict: str, seed: int) -> None:
    claim = build_claim(world(ratio, 24, scatter=0.03, seed=seed), seed)
    assert claim["verdict"] == verdict
    measured = claim["params_ratio_fvae_over_flow"]
    low, high = measured["ci95"]
    assert measured["headline"] == pytest.approx(ratio, rel=0.35)
    assert (high is None or high > ratio) and low < ratio
    assert f"{measured['headline']:.3g} times" in claim["why"]


@pytest.mark.usefixtures("fewer_resamples")
def test_equal_families_seldom_get_a_verdict() -> None:
    verdicts = [build_claim(world(1, 10, scatter=0.1, seed=seed), seed)["verdict"] for seed in range(40)]
    assert verdicts.count("undecided") >= 37  # 5% of 40 is 2; by chance 3


@pytest.mark.usefixtures("fewer_resamples")
def test_interval_holds_the_true_ratio() -> None:
    held = 0
    for seed in range(30):
        low, high = build_claim(world(0.6, 14, scatter=0.05, seed=seed), seed)["params_ratio_fvae_over_flow"]["ci95"]
        held += low <= 0.6 <= (math.inf if high is None else high)
    assert held >= 27


@pytest.mark.parametrize("seed", range(3))
def test_few_noisy_trials_are_undecided_and_told_what_is_missing(seed: int) -> None:
    claim = build_claim(world(0.4, MIN_TRIALS - 2, scatter=0.3, seed=seed), seed)
    assert claim["verdict"] == "undecided"
    assert claim["trials"] == {"fvae": MIN_TRIALS - 2, "flow": MIN_TRIALS - 2}
    assert "2 more complete f-VAE trials and 2 more complete flow trials" in claim["would_decide"]


def test_threshold_counts_each_family_by_itself() -> None:
    records = world(0.2, 24, scatter=0.02)
    few = [trial for trial in records if trial.family == "fvae"][: MIN_TRIALS - 1]
    claim = build_claim(few + [trial for trial in records if trial.family == "flow"], 0)
    assert claim["verdict"] == "undecided"
    assert claim["would_decide"] == "At least 1 more complete f-VAE trial."


def test_families_that_competed_for_one_front_get_no_verdict() -> None:
    records = world(0.4, 24, scatter=0.03)
    fair, competed = (build_claim(records, 0, competed=each) for each in (False, True))
    assert (fair["verdict"], competed["verdict"]) == ("supported", "undecided")
    assert "--goal front" in competed["why"] and "--goal map" in competed["would_decide"]
    for name in ("verdict", "why", "would_decide"):
        del fair[name], competed[name]
    assert fair == competed  # the figures stand


def test_part_trained_trials_change_nothing() -> None:
    records = world(0.5, 12)
    tempting = [stopped(record(90 + index, "flow", 2000 * index + 1000, 0.1), 5) for index in range(5)]
    assert build_claim(records + tempting, 0) == build_claim(records, 0)


@pytest.mark.parametrize("records", [[], world(1, 8, families=("flow",)), world(1, 8, families=("fvae",))])
def test_without_one_of_the_families_nothing_is_compared(records: list[TrialRecord]) -> None:
    claim = build_claim(records, 0)
    assert claim["verdict"] == "undecided"
    assert claim["params_ratio_fvae_over_flow"]["ci95"] is None
    assert claim["would_decide"]


def test_levels_lie_where_both_fronts_have_models() -> None:
    records = world(0.5, 12)
    claim = build_claim(records, 0)["params_ratio_fvae_over_flow"]
    for family in ("fvae", "flow"):
        bits = [trial.val_bpd for trial in records if trial.family == family and trial.val_bpd]
        sizes = [trial.params for trial in records if trial.family == family]
        assert all(min(bits) <= float(level) <= max(bits) for level in claim["at_bpd"])
        assert all(min(sizes) <= size <= max(sizes) for size in claim[f"{family}_params"].values())
    assert claim["headline"] == pytest.approx(np.median(list(claim["at_bpd"].values())))


def test_resamples_that_miss_a_level_leave_the_interval_open() -> None:
    # One f-VAE alone reaches the lower half of the levels: 37% of the resamples lose it.
    flow = trials("flow", [(1000 * 2**index, 3.0 - 0.1 * index) for index in range(10)])
    fvae = trials("fvae", [(1000 + index, 2.9 + 0.001 * index) for index in range(9)] + [(3000, 2.2)], first=20)
    claim = build_claim(flow + fvae, 0)
    ratio = claim["params_ratio_fvae_over_flow"]
    assert ratio["headline"] < 1 and ratio["ci95"][1] is None
    assert claim["verdict"] == "undecided"
    assert "no upper limit" in ratio["open_ends"]["high"]
    assert ratio["missed"]["fvae"]["not_reached"] == pytest.approx(0.9**10, abs=0.06)
    assert "f-VAE" in claim["would_decide"]


@pytest.mark.parametrize(("ratio", "lower", "relation"), [(0.02, "fvae", "at most"), (50, "flow", "at least")])
def test_a_front_below_the_other_at_every_size_is_said_so(ratio: float, lower: str, relation: str) -> None:
    records = world(ratio, 10, scatter=0.01, sizes=(1e5, 1e6))
    claim = build_claim(records, 0)
    assert claim["verdict"] == "undecided"
    assert claim["params_ratio_fvae_over_flow"]["at_bpd"] == {}
    bound = claim["bound"]
    assert (bound["lower_front"], bound["relation"]) == (lower, relation)
    # The bound must hold in truth, and say on which side of 1 the ratio is.
    assert (ratio <= bound["ratio"] < 1) if lower == "fvae" else (1 < bound["ratio"] <= ratio)
    difference = claim["bpd_difference_fvae_minus_flow"]["headline"]
    assert (difference < 0) == (lower == "fvae")
    assert "No bits/dim level is crossed by both fronts" in claim["why"]


def test_swapping_the_families_inverts_the_ratio() -> None:
    other = {"fvae": "flow", "flow": "fvae"}
    records = world(0.5, 16)
    swapped = [dataclasses.replace(trial, family=other[trial.family]) for trial in records]
    one, two = (build_claim(each, 0)["params_ratio_fvae_over_flow"] for each in (records, swapped))
    assert one["headline"] * two["headline"] == pytest.approx(1)
    assert list(one["at_bpd"]) == list(two["at_bpd"])


def test_same_seed_same_claim() -> None:
    records = world(0.7, 9)
    assert build_claim(records, 5) == build_claim(records, 5)


def test_size_is_read_between_neighbours_and_bounded_beyond(front: Front) -> None:
    low, high = np.exp(log_size_at(front, np.array([3.5, 3.0, 2.75, 2.0, 1.9])))
    np.testing.assert_allclose(low, [0, 100, 100 * 10**0.5, 10000, 10000])
    np.testing.assert_allclose(high, [100, 100, 100 * 10**0.5, 10000, math.inf])


def test_bits_are_read_between_neighbours_and_bounded_beyond(front: Front) -> None:
    low, high = bits_at(front, np.array([50, 100, 100 * 10**0.5, 1e6]))
    np.testing.assert_allclose(low, [3.0, 3.0, 2.75, 2.0])
    np.testing.assert_allclose(high, [math.inf, 3.0, 2.75, 2.0])


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


def test_sizes_are_compared_only_where_both_were_tried() -> None:
    assert not len(shared_sizes(np.array([1.0, 10.0]), np.array([20.0, 50.0])))
    sizes = shared_sizes(np.array([100.0, 5000.0]), np.array([1000.0, 90000.0]))
    assert (sizes > 1000).all() and (sizes < 5000).all()

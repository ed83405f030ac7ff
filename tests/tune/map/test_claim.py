"""The verdict in worlds whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from tests.tune.synthetic import record, stopped, true_bpd, world
from tune.map.claim import build_claim
from tune.records.ledger import TrialRecord
from tune.records.scores import TestResult
from tune.stats.frontiers import MIN_TRIALS

pytestmark = pytest.mark.core


def answers(claim: dict[str, Any], label: str = "all") -> set[str]:
    return {each["answer"] for each in claim["curves"][label]["ranges"]}


@pytest.mark.parametrize(("ratio", "verdict", "answer"), [(0.4, "supported", "fewer"), (2.5, "refuted", "more")])
@pytest.mark.parametrize("seed", range(3))
def test_verdict_finds_a_large_ratio(ratio: float, verdict: str, answer: str, seed: int) -> None:
    claim = build_claim(world(ratio, 24, scatter=0.03, seed=seed), seed)
    assert claim["verdict"] == verdict
    assert answers(claim) - {"undecided"} == {answer}
    measured = claim["params_ratio_fvae_over_flow"]
    low, high = measured["ci95"]
    assert measured["headline"] == pytest.approx(ratio, rel=0.2)
    assert low < ratio < high
    assert f"needs {answer} parameters than the flow" in claim["why"]


def test_equal_families_are_seldom_called_different() -> None:
    different = 0
    for seed in range(20):
        found = build_claim(world(1, 12, scatter=0.05, seed=seed), seed)
        different += bool(answers(found) & {"fewer", "more"})
    assert different <= 3  # 5% of 20 is 1; 4 or more of 20 by chance in 2%


def test_bands_hold_the_true_difference() -> None:
    """95% of them; what is left to chance here is less than a tenth."""
    held: list[bool] = []
    for seed in range(20):
        curve = build_claim(world(0.6, 12, scatter=0.05, seed=100 + seed), seed)["curves"]["all"]
        truth = [true_bpd(size, 0.6) - true_bpd(size) for size in curve["size"]]
        band = zip(curve["difference"]["low"], truth, curve["difference"]["high"], strict=True)
        held += [low <= true <= high for low, true, high in band]
    assert np.mean(held) > 0.88


def test_bands_narrow_with_more_trials() -> None:
    widths = []
    for trials in (8, 32):
        difference = build_claim(world(0.7, trials, seed=3), 0)["curves"]["all"]["difference"]
        widths.append(np.mean(np.subtract(difference["high"], difference["low"])))
    assert widths[1] < 0.7 * widths[0]


def test_families_that_are_the_same_within_a_tenth_are_said_to_be() -> None:
    claim = build_claim(world(1, 200, scatter=0.01, sizes=(1e4, 1e5)), 0)
    assert "same" in answers(claim)
    assert "fewer" not in answers(claim) and "more" not in answers(claim)
    assert "within a tenth" in claim["why"]


def test_a_crossing_is_two_answers() -> None:
    """Below 100,000 parameters the f-VAE needs a third of the flow's, above it three times as many."""
    records = []
    for trial in world(1, 60, scatter=0.01):
        small = trial.params < 1e5
        bits = true_bpd(trial.params, 1 / 3 if small else 3.0) if trial.family == "fvae" else true_bpd(trial.params)
        records.append(dataclasses.replace(trial, val_bpd=bits + 0.005 * (trial.number % 4)))
    claim = build_claim(records, 0)
    found = [each["answer"] for each in claim["curves"]["all"]["ranges"]]
    assert found[0] == "fewer" and found[-1] == "more"
    assert claim["verdict"] == "undecided"


def test_likelihoods_are_compared_one_by_one() -> None:
    """The f-VAEs of one are far better than the flows, those of the other far worse."""
    flows = world(1, 16, scatter=0.02, families=("flow",))
    families = []
    for place, (likelihood, ratio) in enumerate((("discretized", 0.3), ("gaussian", 3.0))):
        for trial in world(ratio, 16, scatter=0.02, families=("fvae",), seed=place + 1):
            config = trial.config | {"likelihood": likelihood}
            families.append(
                dataclasses.replace(trial, id=f"{100 * (place + 1) + trial.number:04d}-fvae", config=config)
            )
    claim = build_claim([*flows, *families], 0)
    assert answers(claim, "discretized") == answers(claim) == {"fewer"}
    assert answers(claim, "gaussian") == {"more"}
    assert set(claim["by_compute"]) == {"all", "discretized", "gaussian"}


def test_families_that_competed_and_share_no_size_are_said_to() -> None:
    flows, fvaes = world(1, 6, families=("flow",), sizes=(1e5, 2e5)), world(1, 6, families=("fvae",), sizes=(1e3, 2e3))
    fvaes = [dataclasses.replace(each, id=f"{50 + each.number:04d}-fvae") for each in fvaes]
    claim = build_claim([*flows, *fvaes], 0, competed=True)
    assert claim["verdict"] == "undecided"
    assert "No size is shared" in claim["why"]


def test_by_64_samples_each_family_is_as_much_lower_as_its_fronts_models() -> None:
    """What takes 0.3 bits/dim off the flows turns a comparison that they would lose by half of it."""
    worlds = world(1, 40, scatter=0.01, families=("flow",)), world(0.6, 40, scatter=0.01, families=("fvae",))
    records = []
    for place, (trials, taken_off) in enumerate(zip(worlds, (0.3, 0.05), strict=True)):
        for trial in trials:
            test = TestResult(
                bpd=trial.val_bpd or 0.0, bpd_iwae64=(trial.val_bpd or 0.0) - taken_off, standard_error=0.01,
                standard_error_iwae64=0.01, seed=0,
            )  # fmt: skip
            name = f"{100 * place + trial.number:04d}-{trial.family}"
            records.append(dataclasses.replace(trial, id=name, test=test))
    claim = build_claim(records, 0)
    assert answers(claim) == {"fewer"}
    assert {each["answer"] for each in claim["at_k64"]["ranges"]} == {"more"}
    shift = np.subtract(claim["at_k64"]["difference"]["median"], claim["curves"]["all"]["difference"]["median"])
    assert shift == pytest.approx(0.25)
    assert "By the tighter bound of k = 64 samples: more parameters from" in claim["why"]
    unread = build_claim([dataclasses.replace(each, test=None) for each in records], 0)
    assert unread["at_k64"] is None and "k = 64" not in unread["why"]


@pytest.mark.parametrize("seed", range(3))
def test_too_few_trials_are_undecided_and_what_is_missing_is_said(seed: int) -> None:
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


def test_part_trained_trials_inform_but_are_no_figures_of_their_own() -> None:
    """What a stopped trial has reached is no front; what it is forecast to reach counts."""
    records = world(0.5, 12)
    rivals = [stopped(record(90 + index, "flow", 50_000 * index + 50_000, 2.35), 10) for index in range(5)]
    without, informed = build_claim(records, 0, epochs=20), build_claim(records + rivals, 0, epochs=20)
    assert without["trials"] == informed["trials"]
    assert without["curves"] != informed["curves"]
    assert build_claim(records + rivals, 0) == build_claim(records, 0)  # no epochs known, no forecast


ENDS = ("high", "low")


def _log_width(ratio: dict[str, list[float | None]]) -> float:
    """Mean width of a band of ratios in decades, where it has both ends."""
    ends = [(high, low) for high, low in zip(*(ratio[end] for end in ENDS), strict=True) if high and low]
    assert ends
    return float(np.mean([math.log10(high / low) for high, low in ends]))


def test_other_images_widen_the_bands() -> None:
    records = world(0.8, 16, scatter=0.01)
    rng = np.random.default_rng(0)

    def bits_of_images(trial: TrialRecord) -> np.ndarray:
        return (trial.val_bpd or 0) + rng.normal(0, 1, 200)  # every model likes other images

    def paired(trial: TrialRecord) -> np.ndarray:
        return (trial.val_bpd or 0) + np.random.default_rng(1).normal(0, 1, 200)  # all like the same ones

    curves = [
        build_claim(records, 0, **({"bits_of_images": each} if each else {}))["curves"]["all"]
        for each in (None, bits_of_images, paired)
    ]
    alone, apart, together = (np.mean(np.subtract(*(each["difference"][end] for end in ENDS))) for each in curves)
    assert apart > alone + 0.1
    assert together == pytest.approx(alone)
    alone, apart, together = (_log_width(each["ratio"]) for each in curves)
    assert apart > alone + 0.1
    assert together == pytest.approx(alone)
    assert build_claim(records, 0, bits_of_images=paired)["covers"] == ["search", "seeds", "images"]


@pytest.mark.parametrize("records", [[], world(1, 8, families=("flow",)), world(1, 8, families=("fvae",))])
def test_without_one_of_the_families_nothing_is_compared(records: list[TrialRecord]) -> None:
    claim = build_claim(records, 0)
    assert claim["verdict"] == "undecided"
    assert claim["params_ratio_fvae_over_flow"]["ci95"] is None
    assert claim["would_decide"]


def test_families_of_different_sizes_share_none() -> None:
    flows = world(1, 8, families=("flow",), sizes=(1e3, 1e4))
    fvaes = [
        dataclasses.replace(trial, id=f"{50 + trial.number:04d}-fvae")
        for trial in world(1, 8, families=("fvae",), sizes=(2e4, 1e5))
    ]
    claim = build_claim(flows + fvaes, 0)
    assert claim["verdict"] == "undecided"
    assert "No size is shared" in claim["why"]


@pytest.mark.parametrize(("ratio", "verdict", "end"), [(0.01, "supported", "low"), (100, "refuted", "high")])
def test_a_front_below_the_other_at_every_size_leaves_a_ratio_s_end_open(ratio: float, verdict: str, end: str) -> None:
    claim = build_claim(world(ratio, 10, scatter=0.01, sizes=(1e5, 1e6)), 0)
    assert claim["verdict"] == verdict
    assert None in claim["curves"]["all"]["ratio"][end]
    assert ("at most" if end == "low" else "at least") in claim["why"]
    bound = claim["bound"]
    assert bound["lower_front"] == ("fvae" if end == "low" else "flow")
    # The bound must hold in truth, and say on which side of 1 the ratio is.
    assert (ratio <= bound["ratio"] < 1) if end == "low" else (1 < bound["ratio"] <= ratio)


def test_swapping_the_families_inverts_the_ratio() -> None:
    other = {"fvae": "flow", "flow": "fvae"}
    records = world(0.5, 16)
    swapped = [dataclasses.replace(trial, family=other[trial.family]) for trial in records]
    one, two = (build_claim(each, 0)["params_ratio_fvae_over_flow"] for each in (records, swapped))
    assert one["headline"] * two["headline"] == pytest.approx(1, rel=0.15)


def test_same_seed_same_claim() -> None:
    records = world(0.7, 9)
    assert build_claim(records, 5) == build_claim(records, 5)

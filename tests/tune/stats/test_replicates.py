"""Further seeds of the fronts' models: whose, with which seed, once each; and what they say."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from tests.tune.synthetic import record, stopped
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials, fronts
from tune.stats.replicates import lacking, next_replicate, replicate_seed, spread

pytestmark = pytest.mark.core

RECORDS = [
    record(0, "fvae", 1000, 2.5),
    record(1, "fvae", 4000, 2.1),
    record(2, "fvae", 5000, 2.3),  # on no front
    record(3, "flow", 2000, 2.4),
    record(4, "flow", 9000, 2.2),  # on its family's alone
    stopped(record(5, "flow", 500, 2.0), 3),
]
ON_FRONTS = {"0000-fvae", "0001-fvae", "0003-flow", "0004-flow"}


def grow(records: list[TrialRecord], seeds: int, status: str = "complete") -> list[TrialRecord]:
    """All replicates, one after another."""
    records = list(records)
    while (new := next_replicate(records, seeds, lambda family: f"{len(records):04d}-{family}")) is not None:
        bpd = None if status == "failed" else 2.0 + len(records) / 100
        records.append(dataclasses.replace(new, status=status, val_bpd=bpd))
    return records


def test_each_model_of_a_front_gets_its_seeds_the_second_before_the_third() -> None:
    new = grow(RECORDS, 3)[len(RECORDS) :]
    assert {each.replicate_of for each in new[:4]} == {each.replicate_of for each in new[4:]} == ON_FRONTS
    assert len(new) == 8
    for each in new:
        first = RECORDS[int(each.replicate_of.split("-")[0])]
        assert each.config == first.config
        assert each.suggestion == first.suggestion
        assert (each.params, each.flops_per_image) == (first.params, first.flops_per_image)
        assert each.train.keys() == first.train.keys()
        assert each.train["seed"] != first.train["seed"]
        assert each.train | {"seed": 0} == first.train | {"seed": 0}
    assert len({each.train["seed"] for each in new}) == 8
    assert all(0 <= each.train["seed"] < 2**31 for each in new)


def test_none_is_repeated_whatever_became_of_it() -> None:
    for status in ("running", "failed", "complete"):
        assert grow(grow(RECORDS, 2, status), 2) == grow(RECORDS, 2, status)
    assert len(lacking(grow(RECORDS, 2), 3)) == 4
    assert [each.train["seed"] for each in grow(grow(RECORDS, 2), 3)[-4:]] == [
        each.train["seed"] for each in grow(RECORDS, 3)[-4:]
    ]


def test_one_seed_asks_for_none() -> None:
    assert next_replicate(RECORDS, 1, str) is None
    assert lacking(RECORDS, 1) == []


def test_seeds_are_the_trials_own_and_the_same_each_time() -> None:
    seeds = [replicate_seed(trial, number) for trial in RECORDS for number in (1, 2)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [replicate_seed(trial, number) for trial in RECORDS for number in (1, 2)]


def test_replicates_change_no_front_however_good_they_are() -> None:
    records = [dataclasses.replace(each, val_bpd=1.0) if each.replicate_of else each for each in grow(RECORDS, 3)]
    assert fronts(records) == fronts(RECORDS)
    assert complete_trials(records) == complete_trials(RECORDS)


def test_spread_is_the_mean_and_the_sample_deviation_over_all_seeds() -> None:
    records = grow(RECORDS, 3)
    found = spread(records)
    assert set(found) == ON_FRONTS
    for trial_id, measured in found.items():
        bpds = [each.val_bpd for each in records if trial_id in (each.id, each.replicate_of)]
        assert measured["seeds"] == len(bpds) == 3
        assert measured["val_bpd_mean"] == pytest.approx(sum(bpds) / 3)
        assert measured["val_bpd_std"] == pytest.approx(statistics.stdev(bpds))


def test_spread_counts_complete_trials_only() -> None:
    assert spread(RECORDS) == {}
    assert spread(grow(RECORDS, 2, "failed")) == spread(grow(RECORDS, 2, "running")) == {}

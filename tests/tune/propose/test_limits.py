"""Limits: inclusive, decided from the config, the cheap ones first."""

from __future__ import annotations

import math

import pytest

from fvae import ConfigError
from tests.tune.small_space import SOURCE
from tune.propose.limits import STATE_BYTES, Limits

pytestmark = pytest.mark.core

SMALL, *_, LARGE = SOURCE.designs("fvae", 5)


def test_without_limits_everything_is_allowed() -> None:
    assert Limits().allows(LARGE)
    assert str(Limits()) == ""


def test_each_limit_is_included() -> None:
    for limits, tighter in (
        (Limits(max_params=SMALL.params), Limits(max_params=SMALL.params - 1)),
        (Limits(max_flops=SMALL.flops_per_image), Limits(max_flops=SMALL.flops_per_image - 1)),
        (Limits(max_memory=SMALL.memory_bytes), Limits(max_memory=SMALL.memory_bytes - 1)),
    ):
        assert limits.allows(SMALL)
        assert not limits.allows(LARGE)
        assert not tighter.allows(SMALL)


def test_every_limit_counts() -> None:
    assert not Limits(max_params=SMALL.params, max_flops=SMALL.flops_per_image - 1).allows(SMALL)
    assert not Limits(max_params=SMALL.params, max_memory=SMALL.memory_bytes - 1).allows(SMALL)


def test_memory_is_counted_only_where_size_leaves_it_open() -> None:
    fresh = SOURCE.designs("fvae", 5)[-1]
    assert not Limits(max_params=10, max_memory=2**40).allows(fresh)
    assert not Limits(max_memory=STATE_BYTES * fresh.params - 1).allows(fresh)
    assert "memory_bytes" not in vars(fresh)  # which keeps what was counted
    assert Limits(max_memory=2**40).allows(fresh)
    assert "memory_bytes" in vars(fresh)


def test_what_a_training_holds_of_every_parameter_is_no_more_than_it_takes() -> None:
    for candidate in (SMALL, LARGE, SOURCE.designs("flow", 1)[0], SOURCE.designs("vae", 1)[0]):
        assert STATE_BYTES * candidate.params <= candidate.memory_bytes


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_limit_that_nothing_can_keep_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--max-flops"):
        Limits(max_flops=value)


def test_limits_are_said_as_options() -> None:
    assert str(Limits(max_params=5000, max_memory=2**20)) == "--max-params 5,000 --max-memory 1,048,576"

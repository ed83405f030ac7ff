"""The probability of a bin: its value and gradient against an independent formula, also far in the tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr
from torch import Tensor

from fvae.likelihood import bin_log_prob
from tests.fvae.strategies import EXAMPLES, seeds

pytestmark = pytest.mark.core

SCALES = (0.02, 0.3, 1.0, 4.0, 40.0, 400.0)
"""s in bins."""


def exact(levels: Tensor, mean: Tensor, scale: float, bins: int) -> np.ndarray:
    """log P in float64 through log Φ: of the two tails the smaller has the digits."""
    x, m = levels.double().numpy(), mean.double().numpy()
    low, high = (x - 0.5 - m) / scale, (x + 0.5 - m) / scale
    low, high = np.where(x == 0, -np.inf, low), np.where(x == bins - 1, np.inf, high)
    low, high = np.where(low > -high, -high, low), np.where(low > -high, -low, high)
    return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


def levels_and_means(bins: int, seed: int) -> tuple[Tensor, Tensor]:
    """Levels ``[64]`` and means near and far from them, float32."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(bins, (64,), generator=generator).float()
    reach = torch.tensor([0.1, 1.0, 8.0, 64.0]).repeat(16)
    return levels, levels + torch.randn(64, generator=generator) * reach


@EXAMPLES
@given(bins=st.sampled_from((2, 3, 17, 256)), scale=st.sampled_from(SCALES), seed=seeds)
def test_value_in_float32(bins: int, scale: float, seed: int) -> None:
    levels, mean = levels_and_means(bins, seed)
    log_scale = torch.tensor(math.log(scale))
    value = bin_log_prob(levels, mean, log_scale, bins)
    assert value.dtype == torch.float32
    expected = exact(levels, mean, float(log_scale.double().exp()), bins)
    # float64 itself loses digits where a bin is narrow: e.g. 1e-16 of 1 in a difference of 1e-3
    np.testing.assert_allclose(value.double().numpy(), expected, rtol=2e-6, atol=2e-6)


@EXAMPLES
@given(bins=st.sampled_from((2, 17, 256)), scale=st.sampled_from(SCALES), seed=seeds)
def test_gradient_is_the_values_own(bins: int, scale: float, seed: int) -> None:
    """By finite differences in float64; and float32 gives the same."""
    levels, mean = levels_and_means(bins, seed)
    log_scale = torch.full_like(mean, math.log(scale))

    def gradients(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inputs = [each.to(dtype).requires_grad_() for each in (mean, log_scale)]
        return torch.autograd.grad(bin_log_prob(levels.to(dtype), *inputs, bins).sum(), inputs)

    by_mean, by_log_scale = gradients(torch.float64)
    step = 1e-5 * scale

    def slope(mean_step: float, scale_step: float) -> Tensor:
        high, low = (
            bin_log_prob(
                levels.double(), mean.double() + sign * mean_step, log_scale.double() + sign * scale_step, bins
            )
            for sign in (1, -1)
        )
        return (high - low) / (2 * (mean_step or scale_step))

    torch.testing.assert_close(by_mean, slope(step, 0.0), rtol=1e-4, atol=1e-4 / scale)
    torch.testing.assert_close(by_log_scale, slope(0.0, 1e-5), rtol=1e-4, atol=1e-4)
    single = gradients(torch.float32)
    torch.testing.assert_close(single[0].double(), by_mean, rtol=1e-4, atol=1e-5 / scale)
    torch.testing.assert_close(single[1].double(), by_log_scale, rtol=1e-4, atol=1e-4)


@EXAMPLES
@given(
    bins=st.sampled_from((2, 3, 17, 256)),
    mean=st.floats(-400, 700),
    scale=st.floats(0.05, 300),
)
def test_probabilities_of_all_levels_add_up_to_one(bins: int, mean: float, scale: float) -> None:
    levels = torch.arange(bins, dtype=torch.float64)
    log_prob = bin_log_prob(levels, torch.full_like(levels, mean), torch.tensor(math.log(scale)).double(), bins)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_value_has_no_step_where_one_formula_follows_another(scale: float) -> None:
    """The mean crosses the bin's edges, and h|t| the limit of the series, in float64."""
    mean = torch.linspace(90, 110, 200_001, dtype=torch.float64)
    value = bin_log_prob(torch.full_like(mean, 100), mean, torch.tensor(math.log(scale)).double(), 256)
    bends = value.diff().diff().abs() / 1e-8  # second derivative
    assert float(bends.max()) < 1.2 / scale**2 + 1e-3


def test_far_tails_are_finite_and_pull_the_mean_back() -> None:
    levels = torch.tensor([0.0, 100.0, 255.0])
    mean = torch.tensor([1e6, -1e6, -1e6], requires_grad=True)
    log_scale = torch.tensor(math.log(0.05), requires_grad=True)
    value = bin_log_prob(levels, mean, log_scale, 256)
    assert torch.isfinite(value).all()
    by_mean, by_log_scale = torch.autograd.grad(value.sum(), (mean, log_scale))
    assert (by_mean.sign() == torch.tensor([-1.0, 1.0, 1.0])).all()
    assert torch.isfinite(by_mean).all() and float(by_log_scale) > 0

"""Dequantization and the densities, against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae import likelihood
from tests.fvae.strategies import EXAMPLES, seeds

pytestmark = pytest.mark.core


@EXAMPLES
@given(bins=st.integers(2, 256), seed=seeds)
def test_quantize_undoes_dequantize(bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.arange(bins).to(torch.uint8).reshape(bins, 1, 1, 1)
    # Rounding may carry a float32 within 2⁻¹⁶ of its bin's upper edge over it; r stays below that.
    noise = torch.rand(bins, 1, 1, 1, generator=generator) * (1 - 2**-12) + 2**-13
    values = likelihood.dequantize(levels, bins, noise)
    assert values.dtype == noise.dtype
    assert (values >= -0.5).all() and (values <= 0.5).all()
    assert torch.equal(likelihood.quantize(values, bins), levels)


def test_dequantized_bins_tile_the_range() -> None:
    """Level 0 begins at −1/2, each bin is 1/L wide, and the last one ends at 1/2."""
    levels = torch.arange(17)[:, None]
    lower = likelihood.dequantize(levels, 17, torch.zeros(17, 1, dtype=torch.float64))
    upper = likelihood.dequantize(levels, 17, torch.ones(17, 1, dtype=torch.float64))
    assert lower[0] == -0.5 and upper[-1] == 0.5
    torch.testing.assert_close(lower[1:], upper[:-1], atol=1e-15, rtol=0)
    torch.testing.assert_close(upper - lower, torch.full((17, 1), 1 / 17, dtype=torch.float64))


def test_quantize_clamps_what_lies_outside() -> None:
    values = torch.tensor([-9.0, -0.51, 0.5, 9.0])
    assert likelihood.quantize(values, 17).tolist() == [0, 0, 16, 16]


def test_standard_normal_log_prob_against_torch() -> None:
    z = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    torch.testing.assert_close(likelihood.standard_normal_log_prob(z), expected)


def test_uniform_density_costs_log2_of_the_levels() -> None:
    """Density 1 on the unit cube is every level at equal chance: log₂ L bits/dim."""
    assert likelihood.bits_per_dim(torch.zeros(1), 48, 256).item() == 8.0


@pytest.mark.parametrize(("dimensions", "bins"), [(1, 2), (64, 17), (3072, 256)])
def test_bits_of_an_exact_probability(dimensions: int, bins: int) -> None:
    """A density p that is constant on the bin of x gives P(x) = p·L⁻ᴰ, so −log₂ P(x)/D bits/dim."""
    log_density = torch.tensor([1.7], dtype=torch.float64)
    log2_probability = log_density / math.log(2) - dimensions * math.log2(bins)
    bits = likelihood.bits_per_dim(log_density, dimensions, bins)
    torch.testing.assert_close(bits, -log2_probability / dimensions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_short_floats_are_float32(dtype: torch.dtype) -> None:
    """4096 ones: a bfloat16 sum would stop at 256."""
    total = likelihood.sum_per_image(torch.ones(2, 4096, dtype=dtype))
    assert total.dtype == torch.float32
    assert total.tolist() == [4096.0, 4096.0]

"""No model beats the entropy of its source: trained a little, bits/dim of fresh images stays above H."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from fvae.config import Family, ModelConfig
from fvae.model import Model, build, iwae_bits_per_dim
from tests.fvae.strategies import EXAMPLES, config_of, model_configs, perturb, random_images, seeds, train

pytestmark = pytest.mark.core

LEVELS = (3, 4, 5, 11, 15)
CHANCES = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])


def skewed(count: int) -> Tensor:
    """Independent pixels, five of 16 levels: H = 1.875 bits/dim."""
    drawn = torch.multinomial(CHANCES, count * 16, replacement=True)
    return torch.tensor(LEVELS, dtype=torch.uint8)[drawn].reshape(count, 1, 4, 4)


def constant(count: int) -> Tensor:
    """One image only: H = 0."""
    return torch.full((count, 1, 4, 4), 9, dtype=torch.uint8)


def flat(count: int) -> Tensor:
    """All pixels of an image equal, at any of 16 levels: H = 4/16 bits/dim."""
    return torch.randint(16, (count, 1, 1, 1)).to(torch.uint8).expand(count, 1, 4, 4)


def noise(count: int) -> Tensor:
    """8-bit uniform noise: H = 8 bits/dim."""
    return torch.randint(256, (count, 1, 4, 4)).to(torch.uint8)


SOURCES: dict[str, tuple[Callable[[int], Tensor], int, float]] = {
    "noise": (noise, 256, 8.0),
    "skewed": (skewed, 16, 1.875),
    "flat": (flat, 16, 0.25),
    "constant": (constant, 16, 0.0),
}
SIGMAS = {"vae": 0.3, "flow": 0.005, "fvae": 0.05}
"""Where training starts: from here each family comes close to H within the test's few steps."""


@torch.no_grad()
def assert_above(entropy: float, model: Model, images: Tensor) -> float:
    """Mean bits/dim of the ELBO and of IWAE-16 are at least H, to 3 standard errors; returns the ELBO's."""
    measured = (model.bits_per_dim(images), iwae_bits_per_dim(model, images, 16))
    for bits in measured:
        assert torch.isfinite(bits).all()
        error = float(bits.std()) / math.sqrt(len(bits))
        assert float(bits.mean()) >= entropy - 3 * error
    return float(measured[0].mean())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_trained_models(family: Family, source: str) -> None:
    torch.manual_seed(0)
    draw, bins, entropy = SOURCES[source]
    sigma = SIGMAS[family]
    model = build(config_of(family, bins=bins, coupling_width=12, sigma1_init=sigma, sigma2_init=sigma)).eval()
    fresh = draw(2048)
    with torch.no_grad():
        before = float(model.bits_per_dim(fresh).mean())
    model = train(model, draw(4096), steps=150, learning_rate=1e-2)
    after = assert_above(entropy, model, fresh)
    assert after < before - 0.3  # it did learn: the bound was put to the test


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_untrained_models_on_uniform_noise(config: ModelConfig, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(config).eval()
    perturb(model, 0.2)
    assert_above(math.log2(config.bins), model, random_images(config, 512, seed))

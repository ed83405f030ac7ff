"""Densities over two dimensions: they integrate to 1, and all images together have at most probability 1.

With D = d = 2 every quantity has an exact value by integration over a grid of w, whatever the
networks do: P(x) = ∫ p(w) Π_i [Φ((b_i − G_i(w))/σ2) − Φ((a_i − G_i(w))/σ2)] dw, x's bins [a_i, b_i).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.special import ndtr

from fvae import likelihood
from fvae.config import FAMILIES
from fvae.iwae import iwae_bits_per_dim
from fvae.model import Model
from tests.fvae.strategies import EXAMPLES, config_of, couplings, mixings, perturbed_model, seeds

pytestmark = pytest.mark.core

SHAPE = {"channels": 2, "height": 1, "width": 1, "encoder_levels": 0, "flow_levels": 0, "bins": 4}
POINTS = 301
IMAGES = torch.tensor(list(itertools.product(range(4), repeat=2))).reshape(16, 2, 1, 1).to(torch.uint8)


@torch.no_grad()
def prior_on_a_grid(model: Model) -> tuple[Tensor, Tensor]:
    """w ``[n, 2, 1, 1]`` and the probability p(w) dw of each cell ``[n]``."""
    drawn = model.flow.inverse(torch.randn(50_000, 2, dtype=torch.float64))
    reach = 1.5 * float(drawn.abs().max())  # beyond it the density is too small to matter
    axis = torch.linspace(-reach, reach, POINTS, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1, 1)
    z, log_det = model.flow(w)
    density = torch.exp(likelihood.standard_normal_log_prob(z) + log_det)
    return w, density * (axis[1] - axis[0]) ** 2


@torch.no_grad()
def exact_probabilities(model: Model) -> Tensor:
    """P(x) of each of the 16 images, by integration."""
    w, probability = prior_on_a_grid(model)
    mean = model.decoder_mean(w).reshape(-1, 2)
    scale = model.observation(w)[1].exp().expand_as(w).reshape(-1, 2, 1)
    edges = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
    if model.config.likelihood == "discretized":  # the outer bins are open
        edges[0], edges[-1] = -torch.inf, torch.inf
    below = ndtr((edges - mean[..., None]) / scale)  # [n, 2, 5]
    bins = below.diff(dim=-1)
    return torch.einsum("n,ni,nj->ij", probability, bins[:, 0], bins[:, 1]).flatten()


@EXAMPLES
@given(seed=seeds, coupling=couplings, mixing=mixings)
def test_density_of_the_flow_integrates_to_one(seed: int, coupling: str, mixing: str) -> None:
    model = perturbed_model(config_of("flow", **SHAPE, coupling=coupling, mixing=mixing), seed, scale=0.2)
    assert prior_on_a_grid(model)[1].sum().item() == pytest.approx(1, abs=2e-3)


CASES: dict[str, dict[str, Any]] = {
    "vae": {"family": "vae"},
    "flow": {"family": "flow"},
    "flow-variational": {"family": "flow", "dequantization": "variational"},
    "fvae": {"family": "fvae"},
    "fvae-networks": {"family": "fvae", "posterior_scale": "network", "decoder_scale": "network"},
    "vae-discretized": {"family": "vae", "likelihood": "discretized", "posterior_scale": "scalar"},
    "fvae-discretized": {"family": "fvae", "likelihood": "discretized", "decoder_scale": "network"},
}


@pytest.mark.parametrize(
    ("case", "seed"), [(case, seed) for case in CASES for seed in (range(2) if case in FAMILIES else range(1))]
)
def test_all_images_together(case: str, seed: int) -> None:
    """2^(−D·bits/dim) summed over every image is the mass that the model gives the cube: at most 1, and with a
    discretized likelihood 1.

    And image by image the bits are the exact ones, which one sample bounds from above.
    """
    # A posterior wider than the exact one keeps the importance weights bounded.
    # That of an open outer bin is as wide as the prior.
    wide = 1.5 if case.endswith("discretized") else 0.6 if case.endswith("networks") else 0.3
    options = {"sigma1_init": 0.15 if "flow" in case else wide, "sigma2_init": 0.15} | CASES[case]
    config = config_of(**SHAPE, **options)
    model = perturbed_model(config, seed, scale=0.2)
    exact = exact_probabilities(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        probabilities = torch.exp2(-2 * iwae_bits_per_dim(model, IMAGES, 40000, generator, batch_size=2**18))
        one_sample = torch.stack([model.bits_per_dim(IMAGES, generator) for _ in range(400)])
    if config.likelihood == "discretized":
        assert float(exact.sum()) == pytest.approx(1, abs=2e-3)
    assert 0.02 < exact.sum() < 1 + 2e-3
    assert probabilities.sum().item() == pytest.approx(exact.sum().item(), rel=0.02)
    torch.testing.assert_close(probabilities, exact, rtol=0.1, atol=2e-4)
    bound = -exact.log2() / 2
    assert (one_sample.mean(0) - bound > -4 * one_sample.std(0) / math.sqrt(400)).all()

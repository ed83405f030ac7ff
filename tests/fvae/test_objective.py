"""The general objective: its Jacobian with σ1, and each family as a choice of parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from torch.distributions import Normal

from fvae import likelihood
from fvae.config import ModelConfig
from fvae.iwae import iwae_bits_per_dim
from fvae.model import build
from tests.fvae.strategies import (
    EXAMPLES,
    config_of,
    log_abs_det,
    model_configs,
    perturb,
    perturbed_model,
    random_images,
    seeds,
)

pytestmark = pytest.mark.core


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_log_det_of_the_conditional_flow(config: ModelConfig, seed: int) -> None:
    """log|det ∂F_x/∂u| of the whole model, σ1 and all, equals autograd's."""
    config = dataclasses.replace(config, sigma1_init=config.sigma1_init or 0.05)  # at 0 nothing depends on u
    model = perturbed_model(config, seed)
    r, u = model.noise(1)
    x = likelihood.dequantize(random_images(config, 1, seed), config.bins, r)

    def conditional_flow(u: torch.Tensor) -> torch.Tensor:
        mean, log_sigma1 = model.posterior(x)
        return model.flow(mean + log_sigma1.exp() * u)[0]

    expected = log_abs_det(conditional_flow, u)
    torch.testing.assert_close(model.elbo_terms(x, u).log_det[0], expected, atol=1e-8, rtol=1e-9)


@EXAMPLES
@given(config=model_configs(families=("flow",)), seed=seeds)
def test_flow_family_is_the_flows_own_likelihood(config: ModelConfig, seed: int) -> None:
    """Every σ term cancels: at the same noise −ELBO is F's own NLL at x' + σu, to 1e-5 bits/dim."""
    config = dataclasses.replace(config, dequantization="uniform")
    torch.manual_seed(seed)
    model = build(config).eval()
    perturb(model)
    images = random_images(config, 6, seed)
    bits = model.bits_per_dim(images, torch.Generator().manual_seed(seed))

    r, u = model.noise(6, torch.Generator().manual_seed(seed))
    x = (images + r) / config.bins - 0.5
    z, log_det = model.flow(x + config.sigma1_init * u)
    nats = -(Normal(0.0, 1.0).log_prob(z.double()).sum(1) + log_det.double())
    expected = nats / (config.dimensions * torch.log(torch.tensor(2.0).double())) + torch.log2(
        torch.tensor(float(config.bins)).double()
    )
    torch.testing.assert_close(bits.double(), expected, atol=1e-5, rtol=0)


@EXAMPLES
@given(config=model_configs(families=("vae", "fvae")), seed=seeds)
def test_elbo_is_prior_minus_posterior_plus_reconstruction(config: ModelConfig, seed: int) -> None:
    """The VAE's side of the same formula: log p(w) + log p(x|w) − log N(w; E(x'), σ1²)."""
    model = perturbed_model(config, seed)
    r, u = model.noise(4)
    images = random_images(config, 4, seed)
    x = likelihood.dequantize(images, config.bins, r)
    mean, log_sigma1 = model.posterior(x)
    assert (log_sigma1.ndim == 0) == (config.posterior_scale == "scalar" or config.encoder_heads == 1)
    w = mean + log_sigma1.exp() * u
    z, flow_log_det = model.flow(w)
    learned_prior = Normal(0.0, 1.0).log_prob(z).sum(1) + flow_log_det
    image_mean, log_sigma2 = model.observation(w)
    assert (log_sigma2.ndim == 0) == (config.decoder_scale == "scalar")
    observation = Normal(image_mean, log_sigma2.exp())
    if config.likelihood == "gaussian":
        decoder = observation.log_prob(x).flatten(1).sum(1)
    else:
        decoder = log_mass(observation, images, config.bins).flatten(1).sum(1)
    posterior = Normal(mean, log_sigma1.exp()).log_prob(w).flatten(1).sum(1)
    expected = learned_prior + decoder - posterior
    torch.testing.assert_close(model.elbo_terms(x, u).elbo, expected, atol=1e-7, rtol=1e-8)


def log_mass(observation: Normal, images: torch.Tensor, bins: int) -> torch.Tensor:
    """log P of each level by the normal distribution function in float64, the tails by its complement."""
    levels = images.to(observation.mean.dtype)
    lower, upper = levels / bins - 0.5, (levels + 1) / bins - 0.5
    low, high = ((edge - observation.mean) / observation.stddev for edge in (lower, upper))
    low = torch.where(images == 0, -torch.inf, low)
    high = torch.where(images == bins - 1, torch.inf, high)
    mirrored = low > -high  # of two tails the smaller has the digits
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(log_low - log_high))


def test_vae_sigma_depends_on_the_image_and_fvae_sigma_does_not() -> None:
    for family, depends in (("vae", True), ("fvae", False)):
        model = perturbed_model(config_of(family), 0)  # type: ignore[arg-type]
        x = torch.rand(2, 1, 4, 4, dtype=torch.float64) - 0.5
        log_sigma1 = model.posterior(x)[1].expand(2, 1, 4, 4)
        assert torch.equal(log_sigma1[0], log_sigma1[1]) != depends


def test_fvae_starts_as_the_plain_flow_it_contains() -> None:
    """With d = D, untrained E and G are the identity; σ1 = σ2 then cancel as in ``flow``."""
    torch.manual_seed(0)
    fvae = build(config_of("fvae"))
    images = random_images(fvae.config, 8)
    r, u = fvae.noise(8, torch.Generator().manual_seed(1))
    x = likelihood.dequantize(images, 16, r)
    torch.testing.assert_close(fvae.posterior(x)[0], x)
    torch.testing.assert_close(fvae.decoder_mean(x), x)
    flow = build(config_of("flow"))
    flow.flow.load_state_dict(fvae.flow.state_dict())
    torch.testing.assert_close(fvae.elbo_terms(x, u).elbo, flow.elbo_terms(x, u).elbo, atol=1e-3, rtol=1e-5)


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_every_parameter_gets_a_gradient(config: ModelConfig, seed: int) -> None:
    """From at least one of a few random weights: a ReLU layer of four units may be dead at one of them."""
    without = None
    for attempt in range(4):
        model = perturbed_model(config, 4 * seed + attempt, scale=0.2).train()
        model.bits_per_dim(random_images(config, 8, seed)).mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
        zero = {name for name, gradient in gradients.items() if not gradient.any()}
        without = zero if without is None else without & zero
    assert not without


@pytest.mark.parametrize("family", ["vae", "fvae"])
def test_sigmas_are_trained(family: str) -> None:
    """The gradient of −ELBO to log σ2 is D − ‖x' − G(w)‖²/σ2²: D log σ2 is not left out."""
    config = config_of(family)  # type: ignore[arg-type]
    model = perturbed_model(config, 0)
    r, u = model.noise(4)
    x = likelihood.dequantize(random_images(config, 4), config.bins, r)
    (-model.elbo_terms(x, u).elbo.sum()).backward()
    mean, log_sigma1 = model.posterior(x)
    residual = x - model.decoder_mean(mean + log_sigma1.exp() * u)
    expected = 4 * config.dimensions - (residual / model.sigma2).square().sum()
    torch.testing.assert_close(model.log_sigma2.grad, expected.detach())


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_an_images_bits_do_not_depend_on_the_batch_beside_it(config: ModelConfig, seed: int) -> None:
    model = perturbed_model(config, seed).train()  # training mode too: no batch statistics
    model.initialize(random_images(config, 16))
    r, u = model.noise(5)
    x = likelihood.dequantize(random_images(config, 5, seed), config.bins, r)
    together = model.elbo_terms(x, u).elbo
    alone = torch.cat([model.elbo_terms(x[i : i + 1], u[i : i + 1]).elbo for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_bits_repeat_with_the_generators_seed(family: str) -> None:
    model = perturbed_model(config_of(family), 0)  # type: ignore[arg-type]
    images = random_images(model.config, 4)
    first, again, other = (model.bits_per_dim(images, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    state = torch.get_rng_state()
    iwae_bits_per_dim(model, images, 3, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), state)  # a given generator leaves the global one alone


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_iwae_of_one_sample_is_the_elbo(family: str) -> None:
    model = perturbed_model(config_of(family), 0)  # type: ignore[arg-type]
    images = random_images(model.config, 4)
    bits = model.bits_per_dim(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(iwae_bits_per_dim(model, images, 1, torch.Generator().manual_seed(1)), bits)

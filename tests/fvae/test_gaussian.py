"""Models with linear E, G and F are Gaussian, and their exact likelihood is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from fvae import likelihood
from fvae.config import Family
from fvae.iwae import iwae_bits_per_dim
from fvae.model import Model, build
from tests.fvae.strategies import config_of

pytestmark = pytest.mark.core

SHAPE = (3, 1, 1)  # d = D = 3
GRID = {"channels": 3, "height": 1, "width": 1, "encoder_levels": 0, "flow_levels": 0, "bins": 8}


class Linear(nn.Module):
    """v → M·v + b on flattened images; as F it also gives the log_det."""

    def __init__(self, matrix: Tensor, offset: Tensor, log_scale: Tensor | None = None, *, heads: bool) -> None:
        super().__init__()
        self.matrix, self.offset, self.log_scale, self.heads = matrix, offset, log_scale, heads

    def forward(self, v: Tensor) -> Tensor | tuple[Tensor, ...]:
        image = (v.flatten(1) @ self.matrix.T + self.offset).reshape(-1, *SHAPE)
        if not self.heads:
            return image
        return (image,) if self.log_scale is None else (image, self.log_scale.expand(len(v), 3).reshape(-1, *SHAPE))


class AffineFlow(nn.Module):
    """z = A·w + b."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.matrix, self.offset = matrix, offset

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.matrix).logabsdet
        return w.flatten(1) @ self.matrix.T + self.offset, log_det.expand(len(w))


def rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]


def gaussian_model(family: Family, *, dense: bool = True) -> tuple[Model, MultivariateNormal]:
    """A model of linear parts, with the exact distribution of x' that it stands for.

    Its posterior is close to the exact one and not equal: E is off by a tenth.
    """
    turn, turn_back = (rotation(1), rotation(2)) if dense else (torch.eye(3, dtype=torch.float64),) * 2
    flow_matrix = turn @ torch.diag(torch.tensor([4.0, 5.0, 7.0], dtype=torch.float64))
    flow_offset = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    decoder_matrix = turn_back @ torch.diag(torch.tensor([0.9, 1.1, 0.7], dtype=torch.float64))
    decoder_offset = torch.tensor([0.05, -0.1, 0.02], dtype=torch.float64)
    sigma2 = 0.15
    if family == "vae":
        flow_matrix, flow_offset = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        decoder_matrix = decoder_matrix / 4
    if family == "flow":
        decoder_matrix, decoder_offset = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    prior_covariance = torch.linalg.inv(flow_matrix.T @ flow_matrix)
    prior_mean = -torch.linalg.solve(flow_matrix, flow_offset)
    exact = MultivariateNormal(
        decoder_matrix @ prior_mean + decoder_offset,
        decoder_matrix @ prior_covariance @ decoder_matrix.T + sigma2**2 * torch.eye(3, dtype=torch.float64),
    )
    precision = flow_matrix.T @ flow_matrix + decoder_matrix.T @ decoder_matrix / sigma2**2
    encoder_matrix = torch.linalg.solve(precision, decoder_matrix.T) / sigma2**2
    encoder_offset = -torch.linalg.solve(
        precision, flow_matrix.T @ flow_offset + decoder_matrix.T @ decoder_offset / sigma2**2
    )
    sigma1 = sigma2 if family == "flow" else float(precision.diagonal().mean().rsqrt())
    config = config_of(family, **GRID, sigma1_init=sigma1, sigma2_init=sigma2)
    model = build(config).double().eval()
    if family != "flow":
        log_scale = torch.zeros(3, dtype=torch.float64) if family == "vae" else None
        model.encoder = Linear(1.1 * encoder_matrix, encoder_offset, log_scale, heads=True)  # type: ignore[assignment]
        model.decoder = Linear(decoder_matrix, decoder_offset, heads=False)  # type: ignore[assignment]
    if family != "vae":
        model.flow = AffineFlow(flow_matrix, flow_offset)  # type: ignore[assignment]
    # The σ's are float32 constants of the config: give the model the float64 ones that `exact` has.
    model.log_sigma1.data.fill_(math.log(sigma1))
    model.log_sigma2.data.fill_(math.log(sigma2))
    return model, exact


@torch.no_grad()
def elbo_samples(model: Model, x: Tensor, count: int) -> Tensor:
    """``count`` one-sample ELBOs of each image, ``[count, B]``."""
    repeated = x.repeat(count, 1, 1, 1)
    return model.elbo_terms(repeated, torch.randn(repeated.shape, dtype=x.dtype)).elbo.reshape(count, -1)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_elbo_is_below_and_iwae_climbs_to_the_exact_likelihood(family: Family) -> None:
    torch.manual_seed(0)
    model, exact = gaussian_model(family)
    x = exact.sample((24,))
    log_likelihood = exact.log_prob(x).mean()
    elbo = elbo_samples(model, x.reshape(-1, *SHAPE), 512 * 64)
    bounds, errors = [], []
    for k in (1, 8, 64, 512):
        estimates = (torch.logsumexp(elbo.reshape(-1, k, 24), dim=1) - math.log(k)).mean(1)
        bounds.append(float(estimates.mean()))
        errors.append(float(estimates.std() / math.sqrt(len(estimates))))
    gaps = [float(log_likelihood) - bound for bound in bounds]
    assert gaps[0] > 5 * errors[0]  # a posterior that is not exact leaves a gap
    for gap, error in zip(gaps, errors, strict=True):
        assert gap > -4 * error
    for wider, narrower in zip(gaps, gaps[1:], strict=False):
        assert narrower < wider
    assert gaps[-1] < gaps[0] / 20


@pytest.mark.parametrize("family", ["vae", "fvae"])
def test_elbo_with_the_exact_posterior_is_the_likelihood(family: Family) -> None:
    """Then every sample of u gives log p(x') itself, to rounding."""
    torch.manual_seed(0)
    identity = torch.eye(3, dtype=torch.float64)
    sigma2, decoder_scale = 0.2, torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    flow_matrix = identity if family == "vae" else 3 * rotation(1)
    flow_offset = torch.zeros(3, dtype=torch.float64)
    if family == "vae":  # σ(x') may differ between dimensions
        decoder_scale = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    decoder_matrix = rotation(2) @ torch.diag(decoder_scale)
    precision = flow_matrix.T @ flow_matrix + decoder_matrix.T @ decoder_matrix / sigma2**2
    encoder_matrix = torch.linalg.solve(precision, decoder_matrix.T) / sigma2**2
    model = build(config_of(family, **GRID)).double()
    model.log_sigma1.data.fill_(-0.5 * precision[0, 0].log())
    model.log_sigma2.data.fill_(math.log(sigma2))
    log_scale = -0.5 * precision.diagonal().log() - model.log_sigma1.detach() if family == "vae" else None
    model.encoder = Linear(encoder_matrix, flow_offset, log_scale, heads=True)  # type: ignore[assignment]
    model.decoder = Linear(decoder_matrix, flow_offset, heads=False)  # type: ignore[assignment]
    if family == "fvae":
        model.flow = AffineFlow(flow_matrix, flow_offset)  # type: ignore[assignment]
    covariance = decoder_matrix @ torch.linalg.inv(flow_matrix.T @ flow_matrix) @ decoder_matrix.T
    exact = MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance + sigma2**2 * identity)
    x = exact.sample((5,))
    elbo = elbo_samples(model, x.reshape(-1, *SHAPE), 100)
    torch.testing.assert_close(elbo, exact.log_prob(x).expand(100, 5), atol=1e-9, rtol=0)


def test_optimal_sigma2_is_the_residuals_own_scale() -> None:
    """Trained, σ2 settles at the root mean square of x' − G(w); without D log σ2 it would run away."""
    torch.manual_seed(0)
    model, exact = gaussian_model("fvae")
    x = exact.sample((256,)).reshape(-1, *SHAPE)
    u = torch.randn_like(x)
    optimizer = torch.optim.Adam([model.log_sigma2], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-model.elbo_terms(x, u).elbo.mean()).backward()
        optimizer.step()
    with torch.no_grad():
        mean, log_sigma1 = model.posterior(x)
        residual = x - model.decoder_mean(mean + log_sigma1.exp() * u)
    assert model.sigma2 == pytest.approx(float(residual.square().mean().sqrt()), rel=1e-3)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_bits_of_whole_images_against_the_exact_probability(family: Family) -> None:
    """Independent Gaussian pixels: P(x) is a product of differences of the normal distribution function."""
    torch.manual_seed(0)
    model, exact = gaussian_model(family, dense=False)
    torch.testing.assert_close(exact.covariance_matrix, torch.diag(exact.variance))
    images = torch.randint(8, (16, *SHAPE)).to(torch.uint8)
    lower = images.flatten(1).double() / 8 - 0.5
    pixels = Normal(exact.mean, exact.stddev)
    probability = (pixels.cdf(lower + 1 / 8) - pixels.cdf(lower)).prod(1)
    expected = -probability.log2() / 3
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        elbo = torch.stack([model.bits_per_dim(images, generator) for _ in range(200)])
        bits = [iwae_bits_per_dim(model, images, k, generator) for k in (64, 4096)]
        whole, in_parts = (
            iwae_bits_per_dim(model, images, 100, torch.Generator().manual_seed(2), batch_size=size)
            for size in (1600, 50)
        )
    assert (elbo.mean(0) - expected > -4 * elbo.std(0) / math.sqrt(200)).all()
    assert (bits[1] - expected).abs().mean() < (bits[0] - expected).abs().mean() < (elbo.mean(0) - expected).mean()
    torch.testing.assert_close(bits[1], expected, atol=0.05, rtol=0)
    torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=0)  # the same noise, however much at once
    assert bits[1].dtype == torch.float64 and bits[1].shape == (16,)


def test_quantized_samples_follow_the_exact_distribution() -> None:
    """Samples of G(F⁻¹(u)) have the mean and covariance of the learned prior's images."""
    torch.manual_seed(0)
    config = config_of("fvae", **(GRID | {"bins": 256}), latent_channels=None)
    model = build(config).double().eval()
    with torch.no_grad():
        for step in model.flow.steps[0]:
            step.affine.log_scale.fill_(math.log(5.0) / 2)  # two steps: w = u/5
    samples = likelihood.dequantize(model.sample(20000), 256, torch.full((20000, *SHAPE), 0.5)).flatten(1)
    torch.testing.assert_close(samples.mean(0), torch.zeros(3), atol=0.006, rtol=0)
    torch.testing.assert_close(samples.T.cov(), 0.04 * torch.eye(3), atol=0.002, rtol=0)

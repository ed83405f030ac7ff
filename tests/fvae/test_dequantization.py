"""Variational dequantization: a bijection of the noise within each bin, whose log_det is autograd's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.dequantization import LEAST, VariationalDequantization
from fvae.model import build
from tests.fvae.strategies import EXAMPLES, config_of, log_abs_det, perturb, perturbed_model, random_images, seeds

pytestmark = pytest.mark.core


def dequantization(channels: int, seed: int, scale: float) -> VariationalDequantization:
    torch.manual_seed(seed)
    layer = VariationalDequantization(channels, 4).double()
    perturb(layer, scale)
    return layer


@EXAMPLES
@given(channels=st.integers(1, 3), seed=seeds)
def test_log_det_and_range(channels: int, seed: int) -> None:
    layer = dequantization(channels, seed, 0.3)
    middle = torch.rand(1, channels, 3, 4, dtype=torch.float64) - 0.5
    uniform = torch.rand(1, channels, 3, 4, dtype=torch.float64) * 0.9 + 0.05
    r, log_det = layer(middle, uniform)
    assert r.shape == uniform.shape and log_det.shape == (1,)
    assert (r > 0).all() and (r < 1).all()
    expected = log_abs_det(lambda noise: layer(middle, noise)[0].flatten(1), uniform)
    torch.testing.assert_close(log_det[0], expected, atol=1e-8, rtol=1e-9)


def test_log_det_is_of_the_map_under_bfloat16_autocast_too() -> None:
    """Only the networks may run in bfloat16: the map keeps the precision of the noise."""
    layer = dequantization(1, 0, 0.3).float()
    middle, uniform = torch.rand(1, 1, 4, 4) - 0.5, torch.rand(1, 1, 4, 4) * 0.9 + 0.05

    def noise(uniform: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(middle, uniform)[0].flatten(1)

    with torch.autocast("cpu", torch.bfloat16):
        r, log_det = layer(middle, uniform)
    assert r.dtype == log_det.dtype == torch.float32
    # The networks' own slopes are bfloat16's; the couplings' Jacobian is triangular without them.
    torch.testing.assert_close(log_det[0], log_abs_det(noise, uniform), atol=2e-3, rtol=1e-3)


def test_noise_keeps_a_width_that_float32_resolves() -> None:
    """Whatever the networks give, or a flow would be given points instead of bins."""
    layer = dequantization(1, 0, 1e3).float()
    uniform = torch.linspace(0.01, 0.99, 64).reshape(64, 1, 1, 1).expand(64, 1, 2, 2)
    for middle in (-0.5, 0.0, 0.498):
        r = layer(torch.full((64, 1, 2, 2), middle), uniform)[0]
        x = (255 + r) / 256 - 0.5  # the level at which float32 is coarsest
        assert min(len(x[:, 0, row, column].unique()) for row in range(2) for column in range(2)) >= 32


def test_it_starts_as_the_uniform_noise() -> None:
    torch.manual_seed(0)
    layer = VariationalDequantization(1, 4)
    uniform = torch.rand(5, 1, 4, 4) * (1 - 4 * LEAST) + 2 * LEAST
    r, log_det = layer(torch.zeros(5, 1, 4, 4), uniform)
    torch.testing.assert_close(r, uniform)
    torch.testing.assert_close(log_det, torch.zeros(5), atol=1e-5, rtol=0)


def test_noise_of_a_pixel_depends_on_the_image_and_on_its_neighbours_noise() -> None:
    layer = dequantization(1, 0, 0.5)
    middle, uniform = torch.zeros(1, 1, 4, 4).double(), torch.full((1, 1, 4, 4), 0.3).double()
    r = layer(middle, uniform)[0]
    other_image, other_noise = middle.clone(), uniform.clone()
    other_image[..., 1, 1] = 0.5
    other_noise[..., 1, 1] = 0.9
    for changed in (layer(other_image, uniform)[0], layer(middle, other_noise)[0]):
        assert not torch.isclose(changed[..., 1, 2], r[..., 1, 2]).any()


@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_bound_is_the_flows_density_at_that_noise_and_the_noises_own(sigma: float) -> None:
    """−log₂[p(x')/q(r|x)]/D + log₂ L, with q(r|x) = 1/|∂r/∂r₀|."""
    model = perturbed_model(config_of("flow", dequantization="variational", sigma1_init=sigma), 3)
    images = random_images(model.config, 5)
    r, u = model.noise(5, torch.Generator().manual_seed(0))
    assert model.dequantization is not None
    noise, log_det = model.dequantization((images.double() + 0.5) / 16 - 0.5, r)
    z, flow_log_det = model.flow((images + noise) / 16 - 0.5 + sigma * u)
    nats = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + flow_log_det + log_det
    expected = -nats / (16 * torch.tensor(2.0).double().log()) + 4
    torch.testing.assert_close(model.bits_per_dim(images, noise=(r, u)), expected, atol=1e-6, rtol=1e-7)


def test_trained_it_leans_towards_what_the_flow_finds_likely() -> None:
    """The bound of a fixed flow is better with trained noise than with the uniform noise that it starts from."""
    torch.manual_seed(0)
    model = build(config_of("flow", dequantization="variational", sigma1_init=0.0, bins=4)).eval()
    perturb(model.flow, 0.3)
    images = random_images(model.config, 256)
    dequantization = model.dequantization
    assert dequantization is not None

    def bound() -> float:
        with torch.no_grad():
            return float(model.bits_per_dim(images, torch.Generator().manual_seed(1)).mean())

    uniform = bound()
    optimizer = torch.optim.Adam(dequantization.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.bits_per_dim(images).mean().backward()
        optimizer.step()
    assert bound() < uniform - 0.05

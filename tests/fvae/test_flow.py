"""The whole multi-scale F: log_det, inverse and shapes, before and after training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ModelConfig
from fvae.flow import IdentityFlow, MultiScaleFlow
from fvae.model import build
from tests.fvae.strategies import (
    EXAMPLES,
    config_of,
    couplings,
    log_abs_det,
    mixings,
    model_configs,
    perturb,
    perturbed_model,
    random_images,
    seeds,
    train,
)

pytestmark = pytest.mark.core


@st.composite
def flows(draw: st.DrawFn) -> MultiScaleFlow:
    """A float64 flow of any shape and options, every parameter moved."""
    levels = draw(st.integers(0, 3))
    channels = draw(st.integers(1 if levels else 2, 3 if levels < 3 else 1))
    height, width = (2**levels * draw(st.integers(1, 2 if levels < 3 else 1)) for _ in range(2))
    torch.manual_seed(draw(seeds))
    options = {"coupling": draw(couplings), "mixing": draw(mixings)}
    flow = MultiScaleFlow((channels, height, width), levels=levels, depth=draw(st.integers(1, 3)), width=5, **options)
    flow = flow.double()
    perturb(flow)
    return flow


@EXAMPLES
@given(flow=flows(), seed=seeds)
def test_log_det_equals_autograd(flow: MultiScaleFlow, seed: int) -> None:
    w = torch.randn(1, *flow.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    log_det = flow(w)[1]
    expected = log_abs_det(lambda v: flow(v)[0], w)
    torch.testing.assert_close(log_det[0], expected, atol=1e-8, rtol=1e-9)


@EXAMPLES
@given(flow=flows(), seed=seeds)
def test_round_trip_both_ways(flow: MultiScaleFlow, seed: int) -> None:
    w = torch.randn(3, *flow.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z, log_det = flow(w)
    assert z.shape == (3, w[0].numel()) and log_det.shape == (3,)
    torch.testing.assert_close(flow.inverse(z), w, atol=1e-9, rtol=0)
    torch.testing.assert_close(flow(flow.inverse(w.flatten(1)))[0], w.flatten(1), atol=1e-9, rtol=0)
    single = flow.float()
    w32 = w.float()
    torch.testing.assert_close(single.inverse(single(w32)[0]), w32, atol=1e-4, rtol=0)


@EXAMPLES
@given(config=model_configs(families=("vae", "fvae", "flow")), seed=seeds)
def test_round_trip_of_every_models_flow(config: ModelConfig, seed: int) -> None:
    model = perturbed_model(config, seed)
    w = torch.randn(2, *config.latent_shape, dtype=torch.float64)
    torch.testing.assert_close(model.flow.inverse(model.flow(w)[0]), w, atol=1e-9, rtol=0)


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("mixing", ["plu", "permutation"])
def test_after_training(coupling: str, mixing: str) -> None:
    """Real training steps leave log_det and inverse exact: 1e-4 in float32, 1e-9 in float64."""
    torch.manual_seed(0)
    config = config_of("flow", channels=3, flow_levels=2, flow_depth=3, coupling=coupling, mixing=mixing)
    smooth = random_images(config, 512) // 4 + 4 * torch.arange(4, dtype=torch.uint8)  # a gradient: not just noise
    model = train(build(config), smooth, steps=60)
    w = torch.rand(16, 3, 4, 4) - 0.5
    torch.testing.assert_close(model.flow.inverse(model.flow(w)[0]), w, atol=1e-4, rtol=0)
    model = model.double()
    w64 = w.double()
    z, log_det = model.flow(w64)
    torch.testing.assert_close(model.flow.inverse(z), w64, atol=1e-9, rtol=0)
    expected = log_abs_det(lambda v: model.flow(v)[0], w64[:1])
    torch.testing.assert_close(log_det[0], expected, atol=1e-8, rtol=1e-9)


def test_half_of_the_channels_leave_at_each_level() -> None:
    flow = MultiScaleFlow((3, 8, 8), levels=3, depth=1, width=4)
    assert flow.sizes == [(4, 4, 6), (2, 2, 12), (1, 1, 48)]


def test_no_squeeze_keeps_every_pixel_in_place() -> None:
    """With flow_levels=0 and permutation mixing an untrained F only reorders channels."""
    torch.manual_seed(0)
    flow = MultiScaleFlow((3, 2, 2), levels=0, depth=2, width=4, mixing="permutation")
    w = torch.randn(1, 3, 2, 2)
    z = flow(w)[0].reshape(2, 2, 3)
    assert torch.equal(z.sort(-1).values, w[0].permute(1, 2, 0).sort(-1).values)


def test_identity_flow() -> None:
    flow = IdentityFlow((2, 3, 4))
    w = torch.randn(5, 2, 3, 4)
    z, log_det = flow(w)
    assert torch.equal(z, w.flatten(1)) and torch.equal(log_det, torch.zeros(5))
    assert torch.equal(flow.inverse(z), w)

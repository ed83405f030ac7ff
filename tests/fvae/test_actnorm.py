"""ActNorm: initialised from the first batch, once, and remembered by the weights' file."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fvae.bijections import ChannelAffine
from fvae.flow import FlowStep, MultiScaleFlow
from fvae.model import build
from tests.fvae.strategies import config_of, random_images

pytestmark = pytest.mark.core


def normalized(layer: ChannelAffine, x: Tensor) -> Tensor:
    """ActNorm's own output, before the mixing, as ``[pixels, C]``."""
    return layer.mixing.unmix(layer(x)[0]).flatten(0, 2)


@pytest.mark.parametrize("mixing", ["plu", "permutation"])
def test_output_has_mean_zero_and_variance_one(mixing: str) -> None:
    torch.manual_seed(0)
    layer = ChannelAffine(6, mixing).double()  # type: ignore[arg-type]
    x = torch.randn(32, 4, 4, 6, dtype=torch.float64) * torch.logspace(-2, 2, 6) + torch.arange(6.0)
    layer.initialize(x)
    output = normalized(layer, x)
    torch.testing.assert_close(output.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.var(0, correction=0), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_every_step_sees_the_output_of_those_before_it() -> None:
    torch.manual_seed(0)
    flow = MultiScaleFlow((2, 8, 8), levels=2, depth=3, width=8)
    w = 0.1 * torch.randn(64, 2, 8, 8) + 0.3
    flow.initialize(w)
    seen: list[tuple[ChannelAffine, Tensor]] = []
    steps = [module for module in flow.modules() if isinstance(module, FlowStep)]
    hooks = [
        step.register_forward_hook(lambda step, inputs, _: seen.append((step.affine, inputs[0]))) for step in steps
    ]
    flow(w)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 6
    for layer, x in seen:
        output = normalized(layer, x)
        torch.testing.assert_close(output.mean(0), torch.zeros(output.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.std(0, correction=0), torch.ones(output.shape[1]), atol=1e-3, rtol=0)


def test_happens_once() -> None:
    layer = ChannelAffine(3, "permutation")
    layer.initialize(torch.randn(16, 4, 4, 3))
    before = layer.bias.clone(), layer.log_scale.clone()
    layer.initialize(5 + 7 * torch.randn(16, 4, 4, 3))
    assert torch.equal(layer.bias, before[0]) and torch.equal(layer.log_scale, before[1])


def test_constant_channel_stays_finite() -> None:
    layer = ChannelAffine(2, "plu")
    x = torch.zeros(8, 2, 2, 2)
    layer.initialize(x)
    y, log_det = layer(x)
    assert torch.isfinite(y).all() and torch.isfinite(log_det)
    torch.testing.assert_close(layer.inverse(y), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["flow", "fvae"])
def test_first_training_batch_initialises_and_evaluation_never_does(family: str) -> None:
    torch.manual_seed(0)
    config = config_of(family)  # type: ignore[arg-type]
    model = build(config)
    layer = model.flow.steps[0][0].affine
    model.eval().bits_per_dim(random_images(config, 16))
    assert not layer.initialized and not layer.bias.any()
    model.train().bits_per_dim(random_images(config, 16))
    assert layer.initialized and layer.bias.any()
    first = layer.log_scale.clone()
    model.bits_per_dim(random_images(config, 16, seed=1) // 3)
    assert torch.equal(layer.log_scale, first)


def test_survives_the_state_dict() -> None:
    """A loaded model goes on training without another initialisation."""
    torch.manual_seed(0)
    config = config_of("flow")
    model = build(config)
    model.initialize(random_images(config, 32))
    assert "flow.steps.0.0.affine.initialized" in model.state_dict()
    other = build(config)
    other.load_state_dict(model.state_dict())
    other.train().bits_per_dim(random_images(config, 32, seed=1) // 4)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_weights_from_before_initialisation_can_still_be_initialised() -> None:
    torch.manual_seed(0)
    config = config_of("flow")
    model = build(config)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialize(random_images(config, 32))
    model.load_state_dict(fresh)
    model.train().bits_per_dim(random_images(config, 32))
    assert model.flow.steps[0][0].affine.initialized


@pytest.mark.parametrize("source", ["saved", "other worker"])
def test_a_state_says_once_whether_it_is_set(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward in training looks no more: within torch.compile it would be a branch on data."""
    torch.manual_seed(0)
    config = config_of("flow")
    first, second = build(config), build(config)
    first.initialize(random_images(config, 8))
    if source == "saved":
        second.load_state_dict(first.state_dict())
    else:
        for mine, theirs in zip(second.state_dict().values(), first.state_dict().values(), strict=True):
            mine.copy_(theirs)
        second.check_actnorm()
    monkeypatch.setattr(second, "_initialize", lambda *arguments: pytest.fail("looked again"))
    second.train().bits_per_dim(random_images(config, 8))
    second.load_state_dict(build(config).state_dict())  # of a model whose ActNorm is not set
    with pytest.raises(pytest.fail.Exception, match="looked again"):
        second.bits_per_dim(random_images(config, 8))

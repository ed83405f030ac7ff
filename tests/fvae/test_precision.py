"""bfloat16 networks, float32 likelihood; and the whole model in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given

from fvae import likelihood
from fvae.bijections import CouplingLayer, SplitPrior
from fvae.config import ModelConfig
from fvae.iwae import iwae_bits_per_dim
from fvae.model import build
from tests.fvae.strategies import EXAMPLES, config_of, model_configs, perturb, random_images, seeds, train

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_terms_stay_float32_under_bfloat16_autocast(config: ModelConfig, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(config).eval()
    perturb(model)
    r, u = model.noise(4)
    x = likelihood.dequantize(random_images(config, 4, seed), config.bins, r)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        terms = model.elbo_terms(x, u)
        w = model.flow.inverse(model.flow(x if config.latent_channels is None else u)[0])
    assert {term.dtype for term in terms} == {torch.float32}
    assert terms.elbo.dtype == torch.float32 and w.dtype == torch.float32


@pytest.mark.parametrize(
    "layer", [CouplingLayer(6, 8, "affine"), CouplingLayer(6, 8, "additive"), SplitPrior(6, mixed=True)]
)
def test_layers_give_float32_under_bfloat16_autocast(layer: torch.nn.Module) -> None:
    """A log_det summed in bfloat16 would keep three digits."""
    perturb(layer)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(torch.randn(2, 4, 4, 6))
    assert {output.dtype for output in outputs} == {torch.float32}


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_autocast_touches_nothing_but_the_networks(family: str) -> None:
    """Networks that still give zero make bfloat16 bits equal float32's to the last digit."""
    torch.manual_seed(0)
    config = config_of(family, channels=3, height=8, width=8, flow_levels=2)  # type: ignore[arg-type]
    model = build(config)
    images = random_images(config, 16)
    model.initialize(images)
    exact = model.bits_per_dim(images, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        short = model.bits_per_dim(images, torch.Generator().manual_seed(0))
    assert torch.equal(short, exact)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_trained_bits_in_bfloat16_are_close_to_float32(family: str) -> None:
    """Within 1e-2 bits/dim: what bf16 changes is the networks, not the bookkeeping."""
    torch.manual_seed(0)
    config = config_of(family, channels=3, height=8, width=8, flow_levels=2, bins=256)  # type: ignore[arg-type]
    images = random_images(config, 512) // 2
    model = train(build(config), images, steps=30)
    with torch.no_grad():
        exact = model.bits_per_dim(images, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            short = model.bits_per_dim(images, torch.Generator().manual_seed(0))
    assert not torch.equal(short, exact)
    assert abs(float(short.mean() - exact.mean())) < 1e-2
    assert float((short - exact).abs().max()) < 5e-2


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_training_in_bfloat16_gives_float32_gradients(family: str) -> None:
    torch.manual_seed(0)
    config = config_of(family)  # type: ignore[arg-type]
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.bits_per_dim(random_images(config, 16)).mean()
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_float32_and_float64_agree(config: ModelConfig, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(config).eval()
    perturb(model)
    r, u = model.noise(4)
    x = likelihood.dequantize(random_images(config, 4, seed), config.bins, r)
    single = likelihood.bits_per_dim(model.elbo_terms(x, u).elbo, config.dimensions, config.bins)
    model = model.double()
    terms = model.elbo_terms(x.double(), u.double())
    assert terms.elbo.dtype == torch.float64
    double = likelihood.bits_per_dim(terms.elbo, config.dimensions, config.bins)
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=1e-4)
    bits = iwae_bits_per_dim(model, random_images(config, 4, seed), 2)
    assert bits.dtype == torch.float64 and torch.isfinite(bits).all()


@pytest.mark.parametrize("family", ["vae", "fvae"])
def test_means_and_scales_are_not_rounded_to_bfloat16(family: str) -> None:
    """The last layers of E and G run in float32: at 256 levels, bfloat16 would move a mean by a seventh of a bin."""
    torch.manual_seed(0)
    networks = {"posterior_scale": "network", "decoder_scale": "network", "latent_channels": 2}
    model = build(config_of(family, channels=1, height=8, width=8, encoder_levels=2, flow_levels=1, **networks))  # type: ignore[arg-type]
    perturb(model)
    x = likelihood.dequantize(random_images(model.config, 16), model.config.bins, torch.tensor(0.5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean, log_scale = model.posterior(x)
        given = (mean, log_scale, *model.observation(mean))
    for each in given:
        assert each.dtype == torch.float32
        rounded = each.to(torch.bfloat16).float() == each
        assert float(rounded.float().mean()) < 0.1


@pytest.mark.parametrize("way", ["set_float32_matmul_precision", "fp32_precision"])
def test_evaluation_is_in_float32_whatever_the_user_allows(way: str) -> None:
    """In a process of its own: torch does not let go of the newer way once it was taken."""
    allow = {
        "set_float32_matmul_precision": "torch.set_float32_matmul_precision('high')",
        "fp32_precision": "matmul.fp32_precision = cudnn.conv.fp32_precision = 'tf32'",
    }
    program = f"""
import torch
from torch.backends import cudnn
from torch.backends.cuda import matmul
from fvae import ModelConfig, build, evaluate

model = build(ModelConfig(family="flow", channels=1, height=4, width=4, bins=8, flow_levels=1))
seen = []

def log_weight(images, r, u):
    seen.append((matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
    return torch.zeros(len(images))

model.log_weight = log_weight
{allow[way]}
with torch.autocast("cpu", torch.bfloat16):
    evaluate(model, torch.zeros(3, 1, 4, 4, dtype=torch.uint8))
assert seen == [("ieee", "ieee", False, False)], seen
assert matmul.fp32_precision == "tf32"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

"""What the tests of the model library share: random configs, random weights, images, Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fvae.config import FAMILIES, Family, ModelConfig
from fvae.model import Model, build

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True)
"""Each run draws the same configs, so that a failure can be repeated."""

seeds = st.integers(0, 2**16)
couplings = st.sampled_from(("affine", "additive"))
mixings = st.sampled_from(("plu", "permutation"))
likelihoods = st.sampled_from(("gaussian", "discretized"))
scales = st.sampled_from(("scalar", "network"))
dequantizations = st.sampled_from(("uniform", "variational"))


@st.composite
def model_configs(draw: st.DrawFn, families: tuple[Family, ...] = FAMILIES) -> ModelConfig:
    """Any valid combination of options, small enough for a Jacobian of every latent."""
    family = draw(st.sampled_from(families))
    channels = draw(st.integers(1, 3))
    encoder_levels = draw(st.integers(0, 2))
    latent_channels = None
    if family != "flow":
        latent_channels = draw(st.none() | st.integers(1, min(5, channels * 4**encoder_levels)))
    flow_channels = channels if latent_channels is None else latent_channels
    flow_levels = draw(st.integers(0 if flow_channels > 1 else 1, 2))
    flow_halvings = flow_levels if family != "vae" else 0
    encoder_halvings = encoder_levels if family != "flow" else 0
    halvings = max if latent_channels is None else lambda encoder, flow: encoder + flow
    unit = 2 ** halvings(encoder_halvings, flow_halvings)
    largest = max(1, 8 // unit)  # sides of at most 8, or one unit where that is larger
    return ModelConfig(
        family=family,
        channels=channels,
        height=unit * draw(st.integers(1, min(3, largest))),
        width=unit * draw(st.integers(1, min(3, largest))),
        bins=draw(st.sampled_from((2, 17, 256))),
        flow_levels=flow_levels,
        flow_depth=draw(st.integers(1, 2)),
        coupling_width=draw(st.integers(4, 6)),
        coupling=draw(couplings),
        mixing=draw(mixings),
        split_mixing=draw(st.booleans()),
        encoder_levels=encoder_levels,
        encoder_blocks=draw(st.integers(0, 2)),
        encoder_width=draw(st.integers(4, 6)),
        latent_channels=latent_channels,
        sigma1_init=draw(st.sampled_from((0.003, 0.05, 0.4) if family != "flow" else (0.0, 0.003, 0.4))),
        sigma2_init=draw(st.sampled_from((0.003, 0.05, 0.4))),
        **draw(observation_options(family)),
    )


@st.composite
def observation_options(draw: st.DrawFn, family: Family) -> dict[str, Any]:
    """The options of a config for how an image is observed."""
    if family == "flow":
        return {"dequantization": draw(dequantizations), "dequantization_width": draw(st.integers(2, 4))}
    return {
        "likelihood": draw(likelihoods),
        "posterior_scale": draw(scales),
        "decoder_scale": draw(scales),
    }


@torch.no_grad()
def perturb(module: nn.Module, scale: float = 0.1) -> None:
    """Move every parameter, so that no layer is at its zero or identity start."""
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn_like(parameter))


def perturbed_model(config: ModelConfig, seed: int, scale: float = 0.1) -> Model:
    """A float64 model in evaluation mode whose every parameter has been moved."""
    torch.manual_seed(seed)
    model = build(config).double().eval()
    perturb(model, scale)
    return model


def random_images(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    """Uniform noise: uint8 ``[count, C, H, W]`` with every level of the config."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.bins, (count, *config.image_shape), generator=generator).to(torch.uint8)


def jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """∂function/∂point, ``[outputs, inputs]``, of a map over one image ``[1, ...]`` → ``[1, outputs]``.

    One backward pass: row i comes from the i-th of ``outputs`` copies of the image in a batch.
    """
    outputs = function(point).numel()
    copies = point.repeat(outputs, *([1] * (point.ndim - 1))).requires_grad_()
    (rows,) = torch.autograd.grad(function(copies).flatten(1).diagonal().sum(), copies)
    return rows.flatten(1)


def log_abs_det(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """log|det| of :func:`jacobian`, a scalar."""
    return torch.linalg.slogdet(jacobian(function, point)).logabsdet


def train(model: Model, images: Tensor, *, steps: int, batch: int = 64, learning_rate: float = 3e-3) -> Model:
    """A few steps of Adam on random batches; returns the model in evaluation mode."""
    model.train()
    model.initialize(images[: 4 * batch])
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for _ in range(steps):
        loss = model.bits_per_dim(images[torch.randint(len(images), (batch,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model.eval()


def config_of(family: Family, **changes: object) -> ModelConfig:
    """A small config, 1×4×4 and 16 levels by default."""
    values: dict[str, object] = {
        "family": family,
        "channels": 1,
        "height": 4,
        "width": 4,
        "bins": 16,
        "flow_levels": 1,
        "flow_depth": 2,
        "coupling_width": 8,
        "encoder_levels": 1,
        "encoder_blocks": 1,
        "encoder_width": 8,
        "sigma1_init": 0.05,
        "sigma2_init": 0.05,
    }
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]

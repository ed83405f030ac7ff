"""The compute of a model, counted before it is trained."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from fvae.config import ModelConfig
from fvae.model import build

TRAINING_FACTOR = 3
"""A training step costs about three forward passes: the backward pass is two products per product."""


def parameters_and_flops(config: ModelConfig) -> tuple[int, int]:
    """Parameter count and FLOPs per image (2 per multiply-add) of one forward ELBO evaluation.

    Matrix products and convolutions are counted, by torch's own counter, on the meta device:
    nothing is allocated. Work that a batch shares (composing a 1×1 convolution) is left out.
    """
    with torch.device("meta"):
        model = build(config)
        counts = []
        for batch in (1, 2):
            x, u = torch.empty(batch, *config.image_shape), torch.empty(batch, *config.latent_shape)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.elbo_terms(x, u)
            counts.append(counter.get_total_flops())
    return model.parameter_count(), counts[1] - counts[0]

"""The layers that a model repeats: their activations may be computed again, and their code compiled once for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MOST_SHAPES = 64
"""Shapes for which a kind of layer is compiled in one process. By default there are 8, beyond which layers run
uncompiled: fewer than a model of several levels has with an epoch's last, smaller batch, or two models together."""


class RecomputableLayer(nn.Module):
    """A layer without randomness that defines :meth:`compute`; recomputing it changes no bit of any gradient."""

    checkpoint_activations = False
    """See :func:`set_activation_checkpointing`. No part of the saved state."""

    def forward(self, *inputs: Tensor | None) -> Any:
        """:meth:`compute`, its activations kept or not."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        return self.compute(*inputs)

    def compute(self, *inputs: Any) -> Any:
        """What the layer does."""
        raise NotImplementedError


def set_activation_checkpointing(module: nn.Module, enabled: bool) -> None:
    """Every :class:`RecomputableLayer` in ``module`` keeps its input alone for the backward pass, or (False) all.

    The same losses and gradients, for less memory and about one more forward pass a step.
    """
    for layer in module.modules():
        if isinstance(layer, RecomputableLayer):
            layer.checkpoint_activations = enabled


def compile_layers(module: nn.Module, **options: Any) -> None:
    """Compile what every :class:`RecomputableLayer` in ``module`` computes: ``torch.compile(**options)``, in place.

    Layers of one kind share their code, so that what is compiled for one serves all of its shape; a whole model takes
    as many times longer as it has layers. Shapes are compiled as they are: a training has few.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
    for layer in module.modules():
        if isinstance(layer, RecomputableLayer):
            layer.compute = torch.compile(layer.compute, dynamic=False, **options)  # type: ignore[method-assign]


def uncompile_layers(module: nn.Module) -> None:
    """Take :func:`compile_layers` back."""
    for layer in module.modules():
        if isinstance(layer, RecomputableLayer):
            layer.__dict__.pop("compute", None)  # the class's own comes to light

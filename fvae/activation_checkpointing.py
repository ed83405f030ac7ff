"""Activation checkpointing: repeated layers whose activations may be computed again in the backward pass.

:mod:`fvae.compilation` compiles the same layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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

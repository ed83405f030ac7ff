"""Small parts of a model or of its training that the product does not have, to measure what they would bring."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fvae import bijections, networks
from fvae.bijections import ChannelAffine, SplitPrior
from fvae.convolution import convolve
from fvae.flow import MultiScaleFlow
from fvae.optimizer_step import OptimizerStep

DROPOUT = 0.1


class AdamaxStep(OptimizerStep):
    """Adam with the infinity norm, as Glow and Flow++ are trained."""

    def make_optimizer(self, groups: dict[float, list[nn.Parameter]]) -> torch.optim.Optimizer:
        parameters = [{"params": parameters, "lr": peak} for peak, parameters in groups.items()]
        return torch.optim.Adamax(parameters, betas=(0.9, 0.99), foreach=True)


class ApartStep(OptimizerStep):
    """The gradients of F and of everything else are clipped apart, each to the limit."""

    def clip(self) -> Tensor:
        of_flow = {id(parameter) for parameter in self.model.flow.parameters()}
        groups = [
            [parameter for parameter in self.parameters if (id(parameter) in of_flow) == flow] for flow in (True, False)
        ]
        norms = [
            torch.nn.utils.clip_grad_norm_(group, self.config.gradient_clip, foreach=True) for group in groups if group
        ]
        return torch.stack(norms).norm()


class NormalizedFlow(MultiScaleFlow):
    """With one more ActNorm at the end of the last scale."""

    def __init__(self, shape: tuple[int, int, int], **sizes: Any) -> None:
        super().__init__(shape, **sizes)
        self.last = ChannelAffine(self.sizes[-1][2], "permutation")

    def _run(self, w: Tensor, *, initialize: bool) -> tuple[Tensor, Tensor]:
        z, log_det = super()._run(w, initialize=initialize)
        size = self.sizes[-1]
        rest, x = z.split((z.shape[1] - math.prod(size), math.prod(size)), dim=1)
        x = x.reshape(-1, *size)
        if initialize:
            self.last.initialize(x)
        x, more = self.last(x)
        return torch.cat((rest, x.flatten(1)), dim=1), log_det + more


class MixedSplitPrior(SplitPrior):
    """The channels are mixed before half of them leave, as ``split_mixing`` does."""

    def __init__(self, channels: int, *, mixed: bool = False) -> None:
        super().__init__(channels, mixed=True)


class DroppingBlock(networks.ResidualBlock):
    """Dropout between the two convolutions of a residual block."""

    def compute(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(convolve(self.first, x.relu(), relu=True), DROPOUT, self.training)
        return x + convolve(self.second, hidden)


class DroppingCoupling(bijections.CouplingLayer):
    """Dropout before the last convolution of a coupling's network."""

    def _log_scale_and_shift(self, kept: Tensor) -> tuple[Tensor | None, Tensor]:
        hidden = convolve(self.input, kept, relu=True)
        shape = hidden.shape
        hidden = self.hidden(hidden.reshape(-1, shape[-1])).relu_().reshape(shape)
        hidden = nn.functional.dropout(hidden, DROPOUT, self.training)
        log_scale, shift = convolve(self.output, hidden).to(kept.dtype).split(self.changed, dim=-1)
        return bijections.bounded(log_scale), shift


VARIANTS: dict[str, dict[str, type]] = {
    "": {},
    "adamax": {"fvae.train.OptimizerStep": AdamaxStep},
    "clipped apart": {"fvae.train.OptimizerStep": ApartStep},
    "last ActNorm": {"fvae.objective.MultiScaleFlow": NormalizedFlow},
    "mixing before the split": {"fvae.flow.SplitPrior": MixedSplitPrior},
    "dropout 0.1": {"fvae.networks.ResidualBlock": DroppingBlock, "fvae.flow.CouplingLayer": DroppingCoupling},
}
"""The parts of each variant, which take the place of the product's while a trainer is made."""


@contextlib.contextmanager
def variant(name: str) -> Iterator[None]:
    """Trainers that are made within the block have the parts of a variant."""
    with contextlib.ExitStack() as stack:
        for place, part in VARIANTS[name].items():
            stack.enter_context(patch(place, part))
        yield

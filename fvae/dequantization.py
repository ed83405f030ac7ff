"""Variational dequantization: noise within each bin that depends on the image (Flow++, arXiv 1902.00275, §3.1).

    log P(x) ≥ E_r[log p(x') + log|det ∂r/∂r₀|],   x' = (x + r)/L − ½,   r = sigmoid(T_x(logit r₀)),   r₀ ~ U[0, 1)^D

T_x is a flow whose steps are conditioned on the image: an affine map of each pixel's noise and couplings between
checkerboards of pixels. It starts as the identity, so that r starts as the uniform noise r₀.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae.bijections import bounded
from fvae.convolution import convolve, zero_convolution

LEAST = 1e-6
"""r₀ stays so far from 0 and 1: the logit is finite."""


class VariationalDequantization(nn.Module):
    """r given the image: one affine map of all noise, then a coupling for each of the two colours of a checkerboard."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.context = nn.Conv2d(channels, width, 3, padding=1)
        self.affine = zero_convolution(width, 2 * channels)
        self.inputs = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(2))
        self.outputs = nn.ModuleList(zero_convolution(width, 2 * channels) for _ in range(2))

    def forward(self, middle: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Noise r in (0, 1) for images, and what it adds to the bound.

        Args:
            middle: the middle of each level's bin, ``[B, C, H, W]`` in [−½, ½].
            uniform: r₀ in [0, 1), of the same shape.

        Returns r, and log|det ∂r/∂r₀| in nats per image, ``[B]``.
        """
        context = convolve(self.context, middle.permute(0, 2, 3, 1))  # [B, H, W, width] from here on
        r = uniform.permute(0, 2, 3, 1).clamp(LEAST, 1 - LEAST)
        y = torch.logit(r)
        log_det = -F.logsigmoid(y) - F.logsigmoid(-y)  # of the logit
        shift, log_scale = self._shift_and_log_scale(self.affine, context, y.dtype)
        y = torch.addcmul(shift, y, log_scale.exp())
        log_det = log_det + log_scale
        rows = torch.arange(y.shape[1], device=y.device)[:, None]
        odd = ((rows + torch.arange(y.shape[2], device=y.device)) % 2)[:, :, None].to(y.dtype)  # [H, W, 1]
        for changed, first, last in zip((odd, 1 - odd), self.inputs, self.outputs, strict=True):
            # The noise that stays is bounded before a network reads it: a logit has no bounds.
            kept = torch.tanh(0.25 * y) * (1 - changed)
            hidden = convolve(first, kept) + context  # type: ignore[arg-type]
            shift, log_scale = self._shift_and_log_scale(last, hidden, y.dtype)  # type: ignore[arg-type]
            shift, log_scale = shift * changed, log_scale * changed
            y = torch.addcmul(shift, y, log_scale.exp())
            log_det = log_det + log_scale
        log_det = log_det + F.logsigmoid(y) + F.logsigmoid(-y)  # of the sigmoid
        return torch.sigmoid(y).permute(0, 3, 1, 2), log_det.flatten(1).sum(1)

    @staticmethod
    def _shift_and_log_scale(layer: nn.Conv2d, hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both bounded, so that r never lies in a part of its bin that float32 does not resolve; in ``dtype``,
        whatever precision autocast gives the network."""
        shift, raw = convolve(layer, hidden.relu()).to(dtype).chunk(2, dim=-1)
        return bounded(shift), 0.5 * bounded(raw)

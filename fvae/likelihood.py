"""Likelihoods of pixels, Gaussian and discretized, and bits per dimension from log-densities in nats.

A discretized likelihood is the probability that a Gaussian gives to one bin; it needs no dequantization:

    P(x|m, s) = Φ((x + ½ − m)/s) − Φ((x − ½ − m)/s)      in units of bins; the outer bins reach to ∓∞

Written with t = (x − m)/s and h = ½/s, so that neither the value nor its gradient is a small difference of large
numbers, in float32 too:

    the bin beside the mean (|t| ≥ h)   log φ(|t| − h) + log[R(|t| − h) − exp(−2h|t|) R(|t| + h)], R Mills' ratio Q/φ
    the bin that holds it   (|t| < h)   log ½[erf((h − |t|)/√2) + erf((h + |t|)/√2)]
    a narrow bin (h small, h|t| small)  log 2hφ(t) + log[1 + Σ h²ⁿ He₂ₙ(t)/(2n + 1)!]: the Taylor series of the integral
    an open outer bin                   log Φ(y), y = t + h or h − t: log R(−y) − y²/2 − ½ log 2π where y < 0

The derivatives come from the same parts: with g = φ(|t| − h)/P, the density at the nearer edge over P,

    ∂ log P/∂t = −sign(t)·g·(1 − exp(−2h|t|)),   ∂ log P/∂h = g·(1 + exp(−2h|t|)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
SQRT_HALF_PI = math.sqrt(math.pi / 2)
NARROW, NARROW_AT = 0.1, 0.5
"""The series serves bins with h below the first and h|t| below the second: there its error is below 1e-8."""


def dequantize(images: Tensor, bins: int, noise: Tensor) -> Tensor:
    """x' = (x + r)/L − 1/2: levels 0 … L−1 and ``noise`` r in [0, 1) to reals in [−1/2, 1/2).

    ``images`` integer ``[B, C, H, W]``; the result has the dtype and shape of ``noise``.
    """
    return (images.to(noise.dtype) + noise) / bins - 0.5


def quantize(values: Tensor, bins: int) -> Tensor:
    """The level whose bin holds each real, clamped to 0 … L−1: uint8, the same shape."""
    levels = torch.floor((values.float() + 0.5) * bins)
    return levels.clamp(0, bins - 1).to(torch.uint8)


def sum_per_image(values: Tensor) -> Tensor:
    """Sum all but the first dimension, at least in float32: ``[B, ...]`` → ``[B]``."""
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats per image, ``[B, ...]`` → ``[B]``."""
    return -0.5 * (sum_per_image(z.square()) + z[0].numel() * LOG_2PI)


def bits_per_dim(log_likelihood: Tensor, dimensions: int, bins: int) -> Tensor:
    """Log-density of x' (nats per image) to bits/dim of the image: −log p/(D ln 2) + log₂ L.

    ``bins`` is L, or 1 where the log-likelihood is of the levels themselves: a probability.
    """
    return -log_likelihood / (dimensions * math.log(2)) + uniform_bits_per_dim(bins)


def uniform_bits_per_dim(bins: int) -> float:
    """log₂ L: the bits/dim of a uniform distribution over the L = ``bins`` levels of a pixel."""
    return math.log2(bins)


def bin_log_prob(levels: Tensor, mean: Tensor, log_scale: Tensor, bins: int) -> Tensor:
    """log P of each level under a Gaussian: nats, in the shape and dtype of ``mean``.

    Args:
        levels: 0 … bins − 1, in the shape and dtype of ``mean``.
        mean: m, in units of bins: level k is the middle of its bin.
        log_scale: log s in the same units; a scalar, or of the shape of ``mean``.
        bins: L. Level 0 holds all that lies below it too, level L − 1 all that lies above.
    """
    inverse_scale = torch.exp(-log_scale)
    t = (levels - mean) * inverse_scale
    h = (0.5 * inverse_scale).expand_as(t)
    # +1 where the bin is open above, −1 where it is open below
    open_end = (levels == bins - 1).to(t.dtype) - (levels == 0).to(t.dtype)
    return _BinLogProb.apply(t, h, open_end)


class _BinLogProb(torch.autograd.Function):
    """log[Φ(t + h) − Φ(t − h)], elementwise; h > 0. Where ``open_end`` is ±1, that end lies at ±∞."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, h: Tensor, open_end: Tensor) -> Tensor:
        distance, shrink = t.abs(), torch.exp(-2 * h * t.abs())  # φ at the farther edge over φ at the nearer one
        near, far = distance - h, distance + h  # the bin's edges, seen from the mean
        beside = near.clamp_min(0)
        share = _mills_ratio(beside) - shrink * _mills_ratio(far)  # P/φ(near)
        log_prob = share.log() + _log_density(beside)
        gradient = 1 / share

        inside = 0.5 * (torch.erf(far * math.sqrt(0.5)) - torch.erf(near * math.sqrt(0.5)))
        holds_mean = near < 0
        log_prob = torch.where(holds_mean, inside.log(), log_prob)
        gradient = torch.where(holds_mean, _log_density(near).exp() / inside, gradient)

        t2, h2 = t.square(), h.square()
        # 1 + Σ h²ⁿ He₂ₙ(t)/(2n + 1)!, n up to 3
        series = 1 + h2 * (
            (t2 - 1) / 6 + h2 * (((t2 - 6) * t2 + 3) / 120 + h2 * (((t2 - 15) * t2 + 45) * t2 - 15) / 5040)
        )
        narrow = (h < NARROW) & (h * distance < NARROW_AT)
        log_prob = torch.where(narrow, (2 * h * series).log() + _log_density(t), log_prob)
        gradient = torch.where(narrow, torch.exp(h * (distance - 0.5 * h)) / (2 * h * series), gradient)

        by_t = t.sign() * gradient * torch.expm1(-2 * h * distance)
        by_h = gradient * (1 + shrink)

        y = h - open_end * t
        ratio = _mills_ratio((-y).clamp_min(0))
        below = 0.5 * torch.erfc(-y.clamp_min(0) * math.sqrt(0.5))  # Φ(y), y ≥ 0
        is_open = open_end != 0
        log_prob = torch.where(is_open, torch.where(y < 0, ratio.log() + _log_density(y), below.log()), log_prob)
        slope = torch.where(y < 0, 1 / ratio, _log_density(y).exp() / below)  # φ(y)/Φ(y)
        ctx.save_for_backward(torch.where(is_open, -open_end * slope, by_t), torch.where(is_open, slope, by_h))
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_t, by_h = ctx.saved_tensors
        return gradient * by_t, gradient * by_h, None


def _log_density(x: Tensor) -> Tensor:
    """log φ(x) of the standard normal."""
    return -0.5 * x.square() - 0.5 * LOG_2PI


def _mills_ratio(x: Tensor) -> Tensor:
    """Q(x)/φ(x) of the standard normal, for x ≥ 0: √(π/2)·erfcx(x/√2)."""
    return SQRT_HALF_PI * torch.special.erfcx(x * math.sqrt(0.5))

"""From log-densities in nats to bits per dimension: dequantization, Gaussians, importance weighting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


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
    return -log_likelihood / (dimensions * math.log(2)) + math.log2(bins)

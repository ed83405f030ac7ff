"""Metrics of an epoch: bits/dim, gradient norm, throughput, scales. It needs no torch, as what reads runs does."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch measured."""

    epoch: int
    """Epochs finished, from 1."""
    train_bpd: float
    """Mean bits/dim over the epoch's images as they were trained on."""
    val_bpd: float
    """Mean bits/dim (k = 1) of the validation images under the averaged weights."""
    grad_norm: float
    """Mean gradient norm before clipping."""
    images_per_second: float
    """Training throughput of all workers, validation not counted. Of this process's part of the epoch."""
    images: int
    """Training images seen since the start."""
    seconds: float
    """Seconds of training and validation since the start, over every process that took part."""
    sigma1: float
    """σ1 of the averaged weights; where a network gives it, its geometric mean over validation images."""
    sigma2: float
    """σ2 of the averaged weights; where a network gives it, its geometric mean over validation images."""
    time_ms: int
    """When it was measured: milliseconds since 1970."""

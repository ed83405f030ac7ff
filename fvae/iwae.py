"""The importance-weighted bound on bits/dim (IWAE, arXiv 1509.00519)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fvae.data.images import Array
from fvae.model import Model, images_at_once

SAMPLES_AT_ONCE = {"cpu": 4, "cuda": 8}
"""Importance samples of :func:`fvae.model.images_at_once` images that go through the model together."""


@torch.no_grad()
def iwae_bits_per_dim(
    model: Model,
    images: Array,
    k: int,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    *,
    samples: int = 1,
) -> Tensor:
    """Importance-weighted upper bound on bits/dim with k samples (IWAE, arXiv 1509.00519, eq. 8): float64 ``[B]``.

    ``images`` are an array or a tensor ``[B, C, H, W]`` of levels 0 … bins − 1, as everywhere in :class:`Model`.

    Each sample has fresh dequantization noise r and posterior noise u, so the bound falls towards
    the exact −log₂ P(x)/D as k grows; k = 1 is the ELBO. ``batch_size`` bounds the samples in
    memory at once (default: by the images' size); the noise does not depend on it. The mean of ``samples``
    such bounds is the same bound with a lower variance. Raises ``ValueError`` for k < 1 and for images that do not fit.
    """
    if not (isinstance(k, int) and k >= 1):
        raise ValueError(f"k={k!r}: must be an integer of at least 1")
    log_weights = _log_weights(model, images, samples * k, generator, batch_size).reshape(samples, k, -1)
    return model._bits_per_dim(torch.logsumexp(log_weights, dim=1) - math.log(k)).mean(0)


def _log_weights(
    model: Model, images: Array, samples: int, generator: torch.Generator | None, batch_size: int | None
) -> Tensor:
    """:meth:`Model.log_weight` of ``samples`` samples of each image: nats, float64 ``[samples, B]``."""
    config = model.config
    images = model._checked(images)
    batch_size = batch_size or SAMPLES_AT_ONCE.get(images.device.type, 4) * images_at_once(config)
    at_once = max(1, min(samples, batch_size // len(images)))
    most = min(at_once * len(images), model.most_images_at_once or at_once * len(images))
    log_weights = []
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        drawn = [model.noise(len(images), generator) for _ in range(count)]
        r, u = (torch.cat(noise) for noise in zip(*drawn, strict=True))  # [count·B, …]
        repeated = images.repeat(count, 1, 1, 1)  # [count·B, C, H, W]
        found, most = log_weight_in_parts(model, repeated, r, u, most)
        if most < at_once * len(images):
            model.most_images_at_once = most  # no need to run out of memory with every batch
        log_weights.append(found.double().reshape(count, -1))
    return torch.cat(log_weights)


def log_weight_in_parts(model: Model, images: Tensor, r: Tensor, u: Tensor, most: int) -> tuple[Tensor, int]:
    """:meth:`Model.log_weight`, ``[B]``, at most ``most`` images at a time, and half as many wherever a GPU's memory
    does not hold them. Returns that number, too. Raises ``torch.OutOfMemoryError`` where it does not hold one image.
    """
    done: list[Tensor] = []
    start = 0
    while start < len(images):
        part = slice(start, start + most)
        try:
            done.append(model.log_weight(images[part], r[part], u[part]))
            start += most
            continue
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        most = most // 2  # not in the handler, where the error's traceback still holds the memory
        torch.cuda.empty_cache()
    return torch.cat(done), most

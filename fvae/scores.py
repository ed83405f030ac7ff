"""Bits/dim of images as they come: an image's figure depends on the image and the seed, and on nothing beside it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fvae.data import derived_seed
from fvae.evaluation import NonFiniteError
from fvae.iwae import log_weight_in_parts
from fvae.model import Model, images_at_once
from fvae.precision import true_float32

LEAST_ROWS, MOST_ROWS = 8, 64
"""Rows of one pass through the model. A pass has always as many, filled up where there are fewer: how a sum is rounded
depends on the shape of the arrays."""


@torch.no_grad()
def score(model: Model, images: Tensor, *, k: int = 1, seed: int = 0) -> Tensor:
    """Bits/dim of each image from k samples (k = 1: the ELBO; more: IWAE), float64 ``[N]`` on the CPU.

    ``images`` uint8 ``[N, C, H, W]``. The noise of an image comes from ``seed`` and the image's pixels: the same image
    has the same figure whatever images are scored with it, in whichever order. :func:`fvae.evaluate` instead gives
    every place in a split a noise of its own. Runs in float32.

    Raises :class:`fvae.NonFiniteError` where any image's figure is not finite.
    """
    device = model.log_sigma1.device
    rows = min(max(LEAST_ROWS, min(k, MOST_ROWS)), images_at_once(model.config))
    log_weights = torch.empty(len(images) * k, dtype=torch.float64)
    training = model.training
    model.eval()
    try:
        with true_float32(device.type):
            most, done = rows, 0
            for numbers, r, u in _passes(model, images, k, seed, rows):
                found, most = log_weight_in_parts(model, images[numbers].to(device), r, u, most)
                count = min(rows, len(log_weights) - done)
                log_weights[done : done + count] = found[:count].double().cpu()
                done += count
    finally:
        model.train(training)
    means = torch.logsumexp(log_weights.reshape(-1, k), dim=1) - math.log(k)
    bits = model._bits_per_dim(means)
    bad = (~bits.isfinite()).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"bits/dim of {len(bad)} of {len(bits)} images is not finite (image {int(bad[0])}: {float(bits[bad[0]])})"
        )
    return bits


def _passes(model: Model, images: Tensor, k: int, seed: int, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every pass through the model: the number of each row's image, and its noises r and u; the last is filled up."""
    numbers: list[int] = []
    noises: list[tuple[Tensor, Tensor]] = []
    for number, image in enumerate(images):
        generator = torch.Generator(model.log_sigma1.device)
        content = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
        generator.manual_seed(derived_seed(seed, f"image/{content}"))
        for _ in range(k):
            numbers.append(number)
            noises.append(model.noise(1, generator))
            if len(numbers) == rows:
                yield _together(numbers, noises)
                numbers, noises = [], []
    if numbers:
        missing = rows - len(numbers)
        yield _together(numbers + numbers[-1:] * missing, noises + noises[-1:] * missing)


def _together(numbers: list[int], noises: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    r, u = (torch.cat(noise) for noise in zip(*noises, strict=True))
    return torch.tensor(numbers), r, u

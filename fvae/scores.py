"""Scores of single images: the bits/dim of an image depend on the image and the seed, not on the images beside it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fvae.data.images import derived_seed
from fvae.evaluation import require_finite
from fvae.iwae import log_weight_in_parts
from fvae.model import Model, images_at_once
from fvae.precision import true_float32

_ROWS = {"cpu": 32, "cuda": 128}
"""Rows of one pass through the model. On one core, the default models take for each of many images 1.2 to 2.8 times
as long with 8 rows as with 32, and up to a third less with 64; one image alone takes 0.35 to 0.7 times as long with 8,
and 1.5 to 2.3 times as long with 64."""
_ROWS_OF_SAMPLES = 64
"""At least as many for as many samples of an image."""


def rows_at_once(model: Model, k: int = 1) -> int:
    """Rows of every pass through ``model`` for ``k`` samples of each image, filled up where there are fewer.

    Arrays of another shape would round a sum in another way, so the number depends on nothing else.
    """
    rows = _ROWS.get(model.log_sigma1.device.type, _ROWS["cpu"])
    return min(max(rows, min(k, _ROWS_OF_SAMPLES)), images_at_once(model.config))


@torch.no_grad()
def score(model: Model, images: Tensor, *, k: int = 1, seed: int = 0) -> Tensor:
    """Bits/dim of each image from k samples (k = 1: the ELBO; more: IWAE), float64 ``[N]`` on the CPU.

    ``images`` uint8 ``[N, C, H, W]``. The noise of an image comes from ``seed`` and the image's pixels: the same image
    has the same figure whatever images are scored with it, in whichever order. :func:`fvae.evaluate` instead gives
    every place in a split a noise of its own. Runs in float32.

    Raises :class:`fvae.NonFiniteError` where any image's figure is not finite.
    """
    device = model.log_sigma1.device
    rows = rows_at_once(model, k)
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
    require_finite(bits)
    return bits


def _passes(model: Model, images: Tensor, k: int, seed: int, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every pass through the model: the number of each row's image, and its noises r and u; the last is filled up."""
    numbers: list[int] = []
    noises: list[tuple[Tensor, Tensor]] = []
    for number, image in enumerate(images):
        generator = torch.Generator(model.log_sigma1.device)
        content = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
        generator.manual_seed(derived_seed(seed, f"image/{content}"))
        for start in range(0, k, rows):
            count = min(rows, k - start)
            numbers += [number] * count
            noises.append(model.noise(count, generator))
            if len(numbers) >= rows:
                r, u = _together(noises)
                yield torch.tensor(numbers[:rows]), r[:rows], u[:rows]
                numbers, noises = numbers[rows:], [(r[rows:], u[rows:])]
    if numbers:
        r, u = _together(noises)
        filled = torch.arange(rows).clamp(max=len(numbers) - 1)
        yield torch.tensor(numbers)[filled], r[filled.to(r.device)], u[filled.to(u.device)]


def _together(noises: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    r, u = (torch.cat(noise) for noise in zip(*noises, strict=True))
    return r, u

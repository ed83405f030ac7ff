"""Sanity checks of a model, whatever its bits/dim: its samples, the inverse of its flow, saving and loading."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fvae.checkpoint import load, save
from fvae.data.images import derived_seed
from fvae.evaluation import NonFiniteError, evaluate
from fvae.model import Model

SAMPLES = 64
ROUND_TRIP = 1e-3
"""Largest |F⁻¹(F(w)) − w| in float32, where the range of a pixel is 1: a quarter of one of 256 levels."""
LEAST_SPREAD = 0.1
"""Least ratio of the samples' standard deviation per pixel to that of images."""


@torch.no_grad()
def problems(model: Model, images: Tensor, seed: int) -> list[str]:
    """What is wrong with a model, a line each; empty where nothing is.

    Args:
        model: on the CPU, in evaluation mode.
        images: some of the data set's, integer ``[B, C, H, W]``, B ≥ 1.
        seed: seed of the samples and the noise.
    """
    found = _samples(model, images, seed)
    found += _there_and_back(model, images)
    return found or _on_disk(model, images, seed)


def _samples(model: Model, images: Tensor, seed: int) -> list[str]:
    bins = model.config.bins
    generator = torch.Generator().manual_seed(derived_seed(seed, "sanity"))
    latents = model.noise(SAMPLES, generator)[1].flatten(1)
    values = model.decoder_mean(model.flow.inverse(latents))
    wrong = int((~values.isfinite()).flatten(1).any(1).sum())
    if wrong:
        return [f"{wrong} of {SAMPLES} samples are not finite"]
    samples = model.decode(latents)
    low, high = int(samples.min()), int(samples.max())
    if samples.dtype != torch.uint8 or low < 0 or high >= bins:
        return [f"samples have levels from {low} to {high}, and images 0 to {bins - 1}"]
    if len(images) > 1:
        theirs, mine = _spread(images), _spread(samples)
        if mine < LEAST_SPREAD * theirs:
            return [f"samples are all alike: their pixels vary by {mine:.3g} levels, those of images by {theirs:.3g}"]
    # Images may be mostly black and white; samples may not be so where images are not.
    theirs, mine = _extreme(images, bins), _extreme(samples, bins)
    if mine > theirs + (1 - theirs) / 2 and bins > 2:
        return [
            f"samples are saturated: {mine:.0%} of their pixels are at the ends of the range, {theirs:.0%} of images'"
        ]
    return []


def _there_and_back(model: Model, images: Tensor) -> list[str]:
    latents = model.encode(images)
    if not bool(latents.isfinite().all()):
        return ["latents of images are not finite"]
    w = model.flow.inverse(latents)
    found = []
    error = float((model.flow.inverse(model.flow(w)[0]) - w).abs().max())
    if not error <= ROUND_TRIP:  # NaN neither
        found.append(f"the flow does not come back: |F⁻¹(F(w)) − w| is up to {error:.2g}, more than {ROUND_TRIP:g}")
    rebuilt, there_and_back = model.reconstruct(images), model.decode(latents)
    apart = int((rebuilt.int() - there_and_back.int()).abs().max())
    if apart > 1:  # 1: a value at the border of two levels
        found.append(f"decode(encode(image)) is up to {apart} levels from the image's reconstruction")
    if not model.config.has_encoder and not torch.equal(rebuilt, images.to(rebuilt.dtype)):
        found.append("a flow's reconstructions are not the images themselves")
    return found


def _on_disk(model: Model, images: Tensor, seed: int) -> list[str]:
    try:
        before = evaluate(model, images, seed=seed)
        with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
            save(model, Path(folder))
            after = evaluate(load(Path(folder)), images, seed=seed)
    except NonFiniteError as error:
        return [str(error)]
    if not torch.equal(before, after):
        return [f"saved and loaded it gives other bits/dim ({before.mean():.4f} before, {after.mean():.4f} after)"]
    # A probability is at most 1, and these are bounds from above on −log₂ of one, but for the noise of one sample.
    if float(before.mean()) <= 0:
        return [f"{before.mean():.4f} bits/dim: below 0, which no model of images can reach"]
    return []


def _spread(images: Tensor) -> float:
    """Standard deviation over images, root of the mean over pixels, in levels."""
    return float(images.float().var(dim=0).mean().sqrt())


def _extreme(images: Tensor, bins: int) -> float:
    """Share of pixels at the lowest and highest level."""
    return float(((images == 0) | (images == bins - 1)).float().mean())

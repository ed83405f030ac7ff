"""What a model makes of images: samples, reconstructions, interpolations, and samples at several temperatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fvae.data.images import ImageSource, derived_seed
from fvae.model import Model, images_at_once
from pipelines.training.image_grids import png_grid, png_rows
from pipelines.training.model_files import INTERPOLATIONS, RECONSTRUCTIONS, SAMPLES

TEMPERATURES = "temperatures.png"
PICTURES = (SAMPLES, RECONSTRUCTIONS, INTERPOLATIONS, TEMPERATURES)

SIDE = 64
"""Images are enlarged to about this many pixels."""
SAMPLE_COLUMNS, ROW, LINES, STEPS = 16, 12, 4, 12
"""Images in a row of samples, and of the labelled pictures; interpolations, and images of each."""


@torch.no_grad()
def pictures(
    model: Model, images: ImageSource, *, seed: int, samples: int, temperatures: Sequence[float]
) -> Iterator[tuple[str, bytes]]:
    """Each picture's name and PNG.

    - ``samples.png``: ``samples`` images at temperature 1;
    - ``reconstructions.png``: the first images of the split above what the model makes of them;
    - ``interpolations.png``: lines between the latents of two images each (none where there is only one image);
    - ``temperatures.png``: a row per temperature, sampled from the same noise.
    """
    bins, device = model.config.bins, model.log_sigma1.device
    originals = images.first(2 * ROW)
    drawn = sample(model, samples, 1.0, derived_seed(seed, "samples"))
    yield SAMPLES, png_grid(drawn, bins, min(SAMPLE_COLUMNS, samples), SIDE)

    at_once = images_at_once(model.config)
    rebuilt = torch.cat([model.reconstruct(part.to(device)).cpu() for part in originals.split(at_once)])
    rows = []
    for start in range(0, len(originals), ROW):
        rows.append(("image", originals[start : start + ROW].cpu().numpy()))
        rows.append(("reconstruction", rebuilt[start : start + ROW].numpy()))
    yield RECONSTRUCTIONS, png_rows(rows, bins, SIDE)

    ends = originals.to(device)
    pairs = min(LINES, len(ends) // 2)
    lines = [model.interpolate(ends[2 * pair], ends[2 * pair + 1], STEPS).cpu() for pair in range(pairs)]
    if lines:
        yield INTERPOLATIONS, png_grid(torch.cat(lines).numpy(), bins, STEPS, SIDE)

    same = derived_seed(seed, "temperatures")
    rows = [(f"T = {temperature:g}", sample(model, ROW, temperature, same)) for temperature in temperatures]
    yield TEMPERATURES, png_rows(rows, bins, SIDE)


def sample(model: Model, count: int, temperature: float, seed: int) -> np.ndarray:
    """Images from the model, uint8 ``[count, C, H, W]``, from noise that ``seed`` fixes."""
    generator = torch.Generator(model.log_sigma1.device).manual_seed(seed)
    at_once = images_at_once(model.config)
    parts = [min(at_once, count - start) for start in range(0, count, at_once)]
    return torch.cat([model.sample(part, temperature, generator).cpu() for part in parts]).numpy()

"""Grids of images as PNG."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

MINIMUM_SIDE = 32
"""Small images are enlarged, in whole steps, until their longer side has this many pixels."""


def png_grid(images: np.ndarray, bins: int, columns: int) -> bytes:
    """Images uint8 ``[N, C, H, W]`` with levels 0 … bins − 1 (C = 1 or 3), in rows of ``columns``, as PNG."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    scale = max(1, MINIMUM_SIDE // max(height, width))
    gap = 2
    cell_height, cell_width = height * scale + gap, width * scale + gap
    canvas = np.full((rows * cell_height + gap, columns * cell_width + gap, channels), 255, np.uint8)
    levels = (images.astype(np.float64) * 255 / (bins - 1)).round().astype(np.uint8)
    for index, image in enumerate(levels.repeat(scale, axis=2).repeat(scale, axis=3)):
        row, column = divmod(index, columns)
        top, left = gap + row * cell_height, gap + column * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(canvas[..., 0] if channels == 1 else canvas).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

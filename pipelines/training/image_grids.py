"""Grids of images as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

MINIMUM_SIDE = 32
"""Small images are enlarged, in whole steps, until their longer side has this many pixels."""
GAP = 2
"""White pixels around each image of a grid."""
_INCH, _TEXT_POINTS, _CHARACTER = 100, 10, 8
"""Layout of a labelled picture: pixels per inch, height of its text, pixels that a character may take."""


def png_grid(images: np.ndarray, bins: int, columns: int, minimum_side: int = MINIMUM_SIDE) -> bytes:
    """Images uint8 ``[N, C, H, W]`` with levels 0 … bins − 1 (C = 1 or 3), in rows of ``columns``, as PNG."""
    canvas = _grid(images, bins, columns, minimum_side)
    buffer = io.BytesIO()
    Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_rows(rows: Sequence[tuple[str, np.ndarray]], bins: int, minimum_side: int = MINIMUM_SIDE) -> bytes:
    """Rows of images as in :func:`png_grid`, all of the same shape, each with its label to its left, as PNG."""
    from matplotlib.figure import Figure  # it takes a second to import, which a grid does not need

    grids = [_grid(images, bins, len(images), minimum_side) for _, images in rows]
    left = _CHARACTER * max(len(label) for label, _ in rows) + 3 * GAP
    height, width = sum(len(grid) for grid in grids), left + max(grid.shape[1] for grid in grids)
    size = ((width + 0.1) / _INCH, (height + 0.1) / _INCH)  # which is cut off to whole pixels
    figure = Figure(figsize=size, dpi=_INCH, facecolor="white")
    top = 0
    for (label, _), grid in zip(rows, grids, strict=True):
        figure.figimage(grid.repeat(3 // grid.shape[2], axis=2), left, height - top - len(grid))
        middle = 1 - (top + len(grid) / 2) / height
        figure.text(
            (left - 2 * GAP) / width, middle, label, ha="right", va="center", fontsize=_TEXT_POINTS, parse_math=False
        )
        top += len(grid)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _grid(images: np.ndarray, bins: int, columns: int, minimum_side: int) -> np.ndarray:
    """The pixels of a grid, uint8 ``[height, width, C]``."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    scale = max(1, minimum_side // max(height, width))
    cell_height, cell_width = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * cell_height + GAP, columns * cell_width + GAP, channels), 255, np.uint8)
    levels = (images.astype(np.float64) * 255 / (bins - 1)).round().astype(np.uint8)
    for index, image in enumerate(levels.repeat(scale, axis=2).repeat(scale, axis=3)):
        row, column = divmod(index, columns)
        top, left = GAP + row * cell_height, GAP + column * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = image.transpose(1, 2, 0)
    return canvas

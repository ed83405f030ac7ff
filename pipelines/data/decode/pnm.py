"""Portable anymaps (.pgm, .ppm) of other depths than 8 bits, which Pillow widens or cuts to its own."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.data.decode.conversion import Conversion, Decoding, check_size
from pipelines.data.decode.headers import BadImage
from pipelines.data.decode.value_levels import TOP, WIDE_TOP

_HEADER = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" + rb"(?=\s)")
_COMMENT = re.compile(rb"#[^\r\n]*")


class Pnm(NamedTuple):
    """An anymap."""

    values: np.ndarray
    """uint8 or uint16 ``[H, W]`` or ``[H, W, 3]``, as the file holds them."""
    top: int
    """The value that is white."""


def read_pnm(content: bytes, conversion: Conversion) -> Pnm | None:
    """The values of a grey or a colour anymap; None where its white is 255, or where Pillow is to find what is wrong.

    Raises ``BadImage`` where it is damaged or too large.
    """
    header = _HEADER.match(content)
    if header is None:
        return None
    kind, width, height, top = map(int, header.groups())
    if top in (0, TOP) or top > WIDE_TOP:
        return None
    check_size((width, height), conversion)
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    count = int(np.prod(shape))
    if kind in (2, 3):
        values = _written(_COMMENT.sub(b"", content[header.end() :]), count)
    else:
        stored = np.dtype(">u2" if top > TOP else np.uint8)
        body = content[header.end() + 1 : header.end() + 1 + count * stored.itemsize]
        values = np.frombuffer(body[: len(body) // stored.itemsize * stored.itemsize], stored)
    if len(values) < count:
        raise BadImage("truncated PPM")
    if values.max() > top or values.min() < 0:
        raise BadImage(f"damaged PPM: holds values outside of the 0 … {top} of its header")
    return Pnm(values.astype(np.uint16 if top > TOP else np.uint8).reshape(shape), top)


def _written(text: bytes, count: int) -> np.ndarray:
    words = text.split(maxsplit=count)[:count]
    if any(len(word) > 9 or not word.isdigit() for word in words):
        raise BadImage("damaged PPM: holds something else than numbers")
    return np.array(words, dtype=bytes).astype(np.int64) if words else np.zeros(0, np.int64)


def flatten_pnm(pnm: Pnm, decoding: Decoding) -> Image.Image:
    """An anymap in mode L or RGB. Raises ``BadImage``.

    A range of values that is asked for is one of the values in the file, or, where its white is above the file's, one
    of 8 or 16 bits.
    """
    values, top = pnm
    levels = decoding.conversion.levels
    whole = WIDE_TOP if top > TOP else TOP
    if levels.given and levels.span[1] > top:
        values, top = _widened(values, top, whole), whole
    decoding.add_range(values, top)
    if whole > TOP:
        decoding.notes.append("spread" if levels.given else "16-bit")
    return Image.fromarray(levels.spread(values) if levels.given else _widened(values, top, TOP))


def _widened(values: np.ndarray, top: int, whole: int) -> np.ndarray:
    """Values of which ``top`` is white as values of which ``whole`` is, rounded."""
    table = np.floor(np.arange(top + 1) * (whole / top) + 0.5)
    return table.astype(np.uint16 if whole > TOP else np.uint8)[values]

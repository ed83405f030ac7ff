"""From the many ways in which files hold pixels to 8-bit grey or RGB, noting what happened."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pipelines.image_headers import FORMATS, BadImage

_ROUNDED = ((np.arange(1 << 16, dtype=np.uint32) + 128) // 257).astype(np.uint8)
_PHOTOMETRIC, _WHITE_IS_ZERO = 0x0106, 0
_BITS_PER_SAMPLE = 0x0102
# Pillow has no 16-bit colour mode: it keeps one byte of the two. Read with the other byte order it keeps the other.
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint16 values / 257, rounded, as uint8 of the same shape. 8-bit values that were widened come back exactly."""
    return _ROUNDED[values]


def flatten(
    image: Image.Image, rawmode: str, content: bytes, file_format: str, depth: int, notes: list[str]
) -> Image.Image:
    """A loaded image in mode L or RGB, without alpha; what was done is added to ``notes``.

    ``rawmode``: how the pixels lie in the file, in Pillow's terms; ``content``: the file; ``depth``: bits per channel
    as a PNG's header says. Raises ``BadImage`` where the pixels fit no 8 bits.
    """
    key = image.info.get("transparency") if file_format == "PNG" else None  # one colour that stands for nothing
    if rawmode == "I;12":
        raise BadImage("12 bits per channel; save it with 8 or 16")
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # a TIFF file's
    if 16 in tags.get(_BITS_PER_SAMPLE, ()) and "16" not in rawmode:
        raise BadImage("16 bits per channel in separate planes; save it with interleaved channels")
    if image.mode.startswith("I;16"):
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        values = np.asarray(image).astype(np.uint16)
        notes.append("16-bit")
        return _without_key(to_8_bits(~values if inverted else values), values, key, notes)
    if rawmode in _OTHER_BYTE:
        notes.append("16-bit")
        values = _16_bit_colour(image, rawmode, content, file_format)
        colours = to_8_bits(values)
        if colours.shape[2] == 3:
            return _without_key(colours, values, key, notes)
        return _over_white(Image.fromarray(colours[..., :3]), Image.fromarray(colours[..., 3]), notes)
    if ";16" in rawmode:
        notes.append("16-bit cut")
    if image.mode == "1":
        notes.append("1-bit")
        image = image.convert("L")
    if image.mode in ("L", "RGB"):
        if key is not None and file_format == "PNG":
            scale = 255 // (2**depth - 1) if 1 < depth < 8 else 1  # Pillow widens the pixels, but not the key
            key = key * scale if isinstance(key, int) else key
            return _without_key(np.asarray(image), np.asarray(image), key, notes)
        return image
    if image.mode in ("P", "PA"):
        notes.append("palette")
        if image.mode == "P" and "transparency" not in image.info:
            palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            grey = bool((palette == palette[:, :1]).all())
            return image.convert("L" if grey else "RGB")
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        image = image.convert(image.mode.upper())
        alpha = image.getchannel("A")
        grey = image.mode == "LA" or rawmode == "LA;16B"  # the latter is held as RGBA
        return _over_white(image.getchannel(0) if grey else image.convert("RGB"), alpha, notes)
    if image.mode in ("CMYK", "YCbCr", "RGBX"):
        if image.mode != "RGBX":
            notes.append(image.mode.lower())
        return image.convert("RGB")
    raise BadImage(f"{FORMATS[file_format]} of mode {image.mode}; save it as grey or RGB with 8 or 16 bits per channel")


def _16_bit_colour(image: Image.Image, rawmode: str, content: bytes, file_format: str) -> np.ndarray:
    """uint16 ``[H, W, C]`` of an image of which Pillow kept only the upper byte."""
    with Image.open(io.BytesIO(content), formats=(file_format,)) as other:
        swapped = _OTHER_BYTE[rawmode]
        other.tile = [
            tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in other.tile
        ]
        other.load()
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)


def _without_key(colours: np.ndarray, values: np.ndarray, key: object, notes: list[str]) -> Image.Image:
    """``colours`` uint8 ``[H, W]`` or ``[H, W, 3]``, white where the file's own ``values`` equal the key."""
    image = Image.fromarray(colours)
    if key is None:
        return image
    hidden = values == np.array(key)
    if values.ndim == 3:
        hidden = hidden.all(axis=2)
    return _over_white(image, Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255))), notes)


def _over_white(colours: Image.Image, alpha: Image.Image, notes: list[str]) -> Image.Image:
    if alpha.getextrema()[0] == 255:
        notes.append("opaque alpha")
        return colours
    notes.append("alpha")
    white = Image.new(colours.mode, colours.size, "white")
    white.paste(colours, mask=alpha)
    return white

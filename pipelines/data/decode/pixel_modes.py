"""Conversion of all of Pillow's modes (palette, alpha, CMYK, 16 bits …) to 8-bit grey or RGB, with notes."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pipelines.data.decode.conversion import Decoding
from pipelines.data.decode.headers import FORMATS, BadImage
from pipelines.data.decode.value_levels import TOP, WIDE_TOP, to_8_bits

_PHOTOMETRIC, _WHITE_IS_ZERO = 0x0106, 0
_BITS_PER_SAMPLE = 0x0102
# Pillow has no 16-bit colour mode: it keeps one byte of the two. Read with the other byte order it keeps the other.
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def flatten(image: Image.Image, rawmode: str, content: bytes, file_format: str, decoding: Decoding) -> Image.Image:
    """A loaded image in mode L or RGB, without alpha.

    Args:
        image: any mode.
        rawmode: how the pixels lie in the file, in Pillow's terms.
        content: the file.
        file_format: Pillow's name of it.
        decoding: what is asked for; takes the notes and the range of values.

    Raises ``BadImage`` where the pixels fit no 8 bits.
    """
    notes, levels = decoding.notes, decoding.conversion.levels
    key = image.info.get("transparency") if file_format == "PNG" else None  # one colour that stands for nothing
    if rawmode == "I;12":
        raise BadImage("12 bits per channel; save it with 8 or 16")
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # a TIFF file's
    if 16 in tags.get(_BITS_PER_SAMPLE, ()) and "16" not in rawmode:
        raise BadImage("16 bits per channel in separate planes; save it with interleaved channels")
    if image.mode.startswith("I;16"):
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        values = np.asarray(image).astype(np.uint16)
        return _without_key(decoding.spread(~values if inverted else values, WIDE_TOP), values, key, notes)
    if rawmode == "LA;16B" and file_format == "PNG":
        values = _16_bit_grey_alpha(content)
        grey = Image.fromarray(decoding.spread(values[..., 0], WIDE_TOP))
        return _over_white(grey, Image.fromarray(to_8_bits(values[..., 1])), notes)
    if rawmode in _OTHER_BYTE:
        values = _16_bit_colour(image, rawmode, content, file_format)
        colours = decoding.spread(np.ascontiguousarray(values[..., :3]), WIDE_TOP)
        if rawmode.startswith("RGBX"):
            notes.append("extra channel")
        if not rawmode.startswith("RGBA"):
            return _without_key(colours, values, key, notes)
        return _over_white(Image.fromarray(colours), Image.fromarray(to_8_bits(values[..., 3])), notes)
    if image.mode in ("I", "F") and levels.given:
        return Image.fromarray(decoding.spread(np.asarray(image), 0))
    if rawmode in ("BGR;15", "BGR;16"):
        notes.append("15 or 16 bits")
    elif ";16" in rawmode:
        notes.append("16-bit cut")
    one_bit = image.mode == "1"
    if one_bit:
        notes.append("1-bit")
        image = image.convert("L")
    if image.mode in ("L", "RGB"):
        if file_format == "TIFF" and rawmode.startswith("RGBX"):
            notes.append("extra channel")
        scale = 17 if rawmode.startswith("L;4") else 85 if rawmode.startswith("L;2") else 1  # by which Pillow widens
        # A range that fits 2 or 4 bits is one of the values in the file.
        narrow = scale > 1 and levels.given and levels.span[1] <= TOP // scale
        stored = Image.fromarray(np.asarray(image) // np.uint8(scale)) if narrow else image
        spread = image if one_bit else decoding.spread_image(stored)  # the two values of one bit are black and white
        if key is not None and file_format == "PNG":
            key = key * scale if isinstance(key, int) else key  # which Pillow does not widen
            return _without_key(np.asarray(spread), np.asarray(image), key, notes)
        return spread
    if image.mode in ("P", "PA"):
        notes.append("palette")
        if image.mode == "P" and "transparency" not in image.info:
            palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            mode = "L" if (palette == palette[:, :1]).all() else "RGB"
            return decoding.spread_image(image.convert(mode))
        image = image.convert("RGBA")
        return _over_white(decoding.spread_image(image.convert("RGB")), image.getchannel("A"), notes)
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        image = image.convert(image.mode.upper())
        colour = image.getchannel(0) if image.mode == "LA" else image.convert("RGB")
        return _over_white(decoding.spread_image(colour), image.getchannel("A"), notes, file_format)
    if image.mode in ("CMYK", "YCbCr", "RGBX"):
        notes.append("extra channel" if image.mode == "RGBX" else image.mode.lower())
        return decoding.spread_image(image.convert("RGB"))
    if image.mode in ("I", "F"):
        raise BadImage(f"{FORMATS[file_format]} of mode {image.mode}; save it as grey or RGB with 8 or 16 bits per "
                       "channel, or give --value-range")  # fmt: skip
    raise BadImage(f"{FORMATS[file_format]} of mode {image.mode}; save it as grey or RGB with 8 or 16 bits per channel")


def _16_bit_grey_alpha(content: bytes) -> np.ndarray:
    """uint16 ``[H, W, 2]`` of a PNG of which Pillow would keep only the upper bytes.

    Its two channels of two bytes are read as four channels of one: the same bytes in the same rows.
    """
    header = content[12:24] + bytes([8, 6]) + content[26:29]
    patched = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    with Image.open(io.BytesIO(patched), formats=("PNG",)) as image:
        image.load()
        return np.asarray(image).view(">u2").astype(np.uint16)


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


def _over_white(colours: Image.Image, alpha: Image.Image, notes: list[str], file_format: str = "") -> Image.Image:
    least, most = alpha.getextrema()
    if least == 255:
        notes.append("opaque alpha")
        return colours
    if most == 0 and file_format == "BMP":  # screen-capture programs leave the fourth byte empty
        notes.append("alpha of zero")
        return colours
    notes.append("alpha")
    white = Image.new(colours.mode, colours.size, "white")
    white.paste(colours, mask=alpha)
    return white

"""Decoding one image file to 8-bit grey or RGB pixels, with notes on what was lost.

Only numpy, Pillow and simplejpeg are imported: every decoding process loads this file.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib

import numpy as np
from PIL import (  # each reader registers itself; a missing one would make Pillow load all forty
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from pipelines.data.decode.conversion import MAX_PIXELS, MAX_REDUCED, Conversion, Decoded, Decoding, check_size, convert
from pipelines.data.decode.headers import FORMATS, BadImage, Png, image_format, read_png
from pipelines.data.decode.jpeg import check_jpeg_tiff, plain_jpeg, read_jpeg
from pipelines.data.decode.pixel_modes import flatten
from pipelines.data.decode.pnm import flatten_pnm, read_pnm

__all__ = ["MAX_PIXELS", "BadImage", "Conversion", "Decoded", "convert", "decode", "describe"]

_NOTES = {
    "alpha": "with transparency: laid over white (lossy)",
    "alpha of zero": "with an alpha channel of zero everywhere: the colours kept, the alpha dropped",
    "opaque alpha": "with an alpha channel that hides nothing: dropped",
    "palette": "with a palette: expanded to its colours",
    "1-bit": "of 1 bit: expanded to 0 and 255",
    "16-bit": "of 16 bits per channel: rounded to 8 (lossy)",
    "15 or 16 bits": "of 15 or 16 bits per pixel: each channel expanded to 8 bits",
    "booleans": "of booleans: 0 and 255",
    "spread": "of more than 8 bits per channel: the range of values asked for spread over 8 bits",
    "extra channel": "with a channel that is neither colour nor transparency: dropped (lossy)",
    "16-bit cut": "of 16 bits per channel: the upper 8 kept (lossy)",
    "cmyk": "in CMYK: converted to RGB (lossy)",
    "ycbcr": "in YCbCr: converted to RGB (lossy)",
    "rotated": "turned as their EXIF orientation says",
    "damaged exif": "whose EXIF cannot be read: not turned",
    "frames": "with several frames or pages: only the first used (lossy)",
    "colour profile": "with a colour profile other than sRGB: profile ignored, pixel values kept",
    "colour to grey": "in colour: made grey by Rec. 601 luma (lossy)",
    "equal channels": "with three equal channels: one kept",
    "grey to colour": "in grey: repeated in three channels",
    "cropped": "not square: the central square kept (lossy)",
    "resized": "larger than asked: reduced by averaging areas (lossy)",
    "enlarged": "smaller than asked: enlarged",
}

# Whatever Pillow's readers raise on damaged bytes. They parse headers in Python, so next to the errors that they mean
# (OSError, SyntaxError, EOFError, bombs) any slip of index, type or arithmetic there is the file's fault as well.
_DAMAGE = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Image.MAX_IMAGE_PIXELS = MAX_REDUCED // 2  # Pillow refuses from twice of it
# What it reports of damaged files is in the causes already.
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)


def describe(note: str, count: int) -> str:
    """A note as a plain line: ``"alpha", 12`` → ``"12 images with transparency: laid over white (lossy)"``."""
    return f"{count:,} image{'' if count == 1 else 's'} {_NOTES[note]}"


def decode(content: bytes, conversion: Conversion) -> Decoded:
    """The pixels of an image file of one of ``FORMATS``. Raises ``BadImage`` for anything else or damaged."""
    file_format = image_format(content)
    decoding = Decoding(conversion)
    if file_format == "PNG":
        png = read_png(content)
        check_size(png.size, conversion)
        plain = _plain_png(png)
        if plain is not None:
            return decoding.fit(decoding.spread_image(plain))
    if file_format == "PPM" and (pnm := read_pnm(content, conversion)) is not None:
        return decoding.fit(flatten_pnm(pnm, decoding))
    if file_format == "JPEG":
        pixels = _plain_jpeg(content, conversion)
        if pixels is not None:
            return convert(pixels, conversion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata and sizes: judged here
        try:
            return decoding.fit(_decode_any(content, file_format, decoding))
        except BadImage:
            raise
        except _DAMAGE as error:
            raise BadImage(_cause(error, FORMATS[file_format])) from None


def _plain_png(png: Png) -> Image.Image | None:
    """Straight through the codec; None where the file is not plain, or damaged (Pillow then finds the cause)."""
    if png.mode is None:
        return None
    try:
        return Image.frombytes(png.mode, png.size, png.stream, "zip", png.mode, 0)
    except (ValueError, OSError, MemoryError):
        return None


def _plain_jpeg(content: bytes, conversion: Conversion) -> np.ndarray | None:
    """uint8 ``[H, W, 1 or 3]``; None where the file is not plain. Raises ``BadImage`` where it is damaged."""
    found = plain_jpeg(content)
    if found is None:
        return None
    mode, size = found
    check_size(size, conversion)
    return read_jpeg(content, "GRAY" if mode == "L" else "RGB")


def _decode_any(content: bytes, file_format: str, decoding: Decoding) -> Image.Image:
    """Any file of a format that is read, as an image of mode L or RGB."""
    with Image.open(io.BytesIO(content), formats=(file_format,)) as image:
        notes = decoding.notes
        check_size(image.size, decoding.conversion)
        if getattr(image, "n_frames", 1) > 1:
            notes.append("frames")
        args = image.tile[0].args if image.tile else None
        rawmode = str(args[0]) if isinstance(args, tuple) else args or ""
        turned_by_pillow = file_format == "TIFF"
        if turned_by_pillow:
            _orientation(image, notes)
        pixels = _jpeg_pixels(image, content) if file_format == "JPEG" else None
        if pixels is None:
            image.load()
        if turned_by_pillow:
            check_jpeg_tiff(image.tag_v2, content)  # type: ignore[attr-defined]
        turn = None if turned_by_pillow else _orientation(image, notes)  # now: a PNG may say it behind the pixels
        if pixels is not None:
            flat = decoding.spread_image(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        else:
            flat = flatten(image, rawmode, content, file_format, decoding)
        profile = image.info.get("icc_profile") or b""
        if profile and not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be")):
            notes.append("colour profile")
        return flat if turn is None else flat.transpose(turn)


def _jpeg_pixels(image: Image.Image, content: bytes) -> np.ndarray | None:
    """uint8 ``[H, W, 1 or 3]``; None where Pillow is to decode the file, which is whole. Raises ``BadImage``."""
    if image.mode in ("L", "RGB"):
        return read_jpeg(content, "GRAY" if image.mode == "L" else "RGB")
    read_jpeg(content, "CMYK", least=True)
    return None


def _orientation(image: Image.Image, notes: list[str]) -> Image.Transpose | None:
    try:
        value = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        notes.append("damaged exif")
        return None
    turn = _TURNS.get(value) if isinstance(value, int) else None
    if turn is not None:
        notes.append("rotated")
    return turn


def _cause(error: BaseException, name: str) -> str:
    """What Pillow's error means, in a few words."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_REDUCED:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"damaged or truncated header, or a kind of {name} that is not read"
    if text == "could not create decoder object":
        return f"damaged or truncated {name}"
    if isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "not enough", "eof")):
        return f"truncated {name}"
    return f"damaged {name}: {text[:80] or type(error).__name__}"

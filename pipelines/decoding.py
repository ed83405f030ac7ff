"""One encoded image to 8-bit grey or RGB pixels, saying what was lost on the way.

Only numpy, Pillow and simplejpeg are imported: every decoding process loads this file.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import struct
import warnings
import zlib

import numpy as np
from PIL import (  # each reader registers itself; a missing one would make Pillow load all forty
    BmpImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from pipelines.area_average import area_average
from pipelines.image_headers import FORMATS, BadImage, Png, image_format, read_png
from pipelines.jpeg import check_jpeg_tiff, plain_jpeg, read_jpeg
from pipelines.pixel_modes import flatten

__all__ = ["MAX_PIXELS", "BadImage", "Conversion", "Decoded", "convert", "decode", "describe"]

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: a file of a few KB can claim to be one of many GB."""
MAX_SIZE = 4096

_NOTES = {
    "alpha": "with transparency: laid over white (lossy)",
    "opaque alpha": "with an alpha channel that hides nothing: dropped",
    "palette": "with a palette: expanded to its colours",
    "1-bit": "of 1 bit: expanded to 0 and 255",
    "16-bit": "of 16 bits per channel: rounded to 8 (lossy)",
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
# What it reports of damaged files is in the causes already.
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is asked of every image. Raises ``fvae.config.ConfigError`` for what cannot be."""

    size: int | None = None
    """Side in pixels of the square that comes out; None: as the image is."""
    channels: int | None = None
    """1: grey, 3: RGB, None: as the image is."""

    def __post_init__(self) -> None:
        size_fits = self.size is None or (type(self.size) is int and 1 <= self.size <= MAX_SIZE)
        if size_fits and self.channels in (None, 1, 3):
            return
        from fvae.config import ConfigError  # here, because it loads torch, which a decoding process does not need

        if not size_fits:
            raise ConfigError(f"size={self.size!r}: must be an integer from 1 to {MAX_SIZE}")
        raise ConfigError(f"channels={self.channels!r}: must be 1 (grey) or 3 (RGB)")


@dataclasses.dataclass(slots=True)
class Decoded:
    """An image's pixels."""

    pixels: np.ndarray
    """uint8 ``[H, W]`` (grey) or ``[H, W, 3]`` (RGB), contiguous, possibly read-only."""
    notes: tuple[str, ...] = ()
    """Codes of what was done to it, for :func:`describe`."""


def describe(note: str, count: int) -> str:
    """A note as a plain line: ``"alpha", 12`` → ``"12 images with transparency: laid over white (lossy)"``."""
    return f"{count:,} image{'' if count == 1 else 's'} {_NOTES[note]}"


def decode(content: bytes, conversion: Conversion) -> Decoded:
    """The pixels of a PNG, JPEG, WebP, BMP or TIFF file. Raises ``BadImage`` for anything else or damaged."""
    file_format = image_format(content)
    png = read_png(content) if file_format == "PNG" else None
    if png:
        _check_size(png.size)
        plain = _plain_png(png)
        if plain is not None:
            return _fit(plain, conversion, [])
    if file_format == "JPEG":
        pixels = _plain_jpeg(content)
        if pixels is not None:
            return convert(pixels, conversion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata and sizes: judged here
        try:
            notes: list[str] = []
            return _fit(_decode_any(content, file_format, png, notes), conversion, notes)
        except BadImage:
            raise
        except _DAMAGE as error:
            raise BadImage(_cause(error, FORMATS[file_format])) from None


def convert(pixels: np.ndarray, conversion: Conversion) -> Decoded:
    """Size and channels of an array uint8 ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``. Raises ``BadImage``."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise BadImage(f"{pixels.dtype} array of shape {pixels.shape}, not uint8 [H, W] or [H, W, 1 or 3]")
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    height, width = pixels.shape[:2]
    _check_size((width, height))
    channels = 1 if pixels.ndim == 2 else 3
    if conversion.channels in (None, channels) and (conversion.size is None or height == width == conversion.size):
        return Decoded(np.ascontiguousarray(pixels))
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), conversion, [])


def _plain_png(png: Png) -> Image.Image | None:
    """Straight through the codec; None where the file is not plain, or damaged (Pillow then finds the cause)."""
    if png.mode is None:
        return None
    try:
        return Image.frombytes(png.mode, png.size, png.stream, "zip", png.mode, 0)
    except (ValueError, OSError, MemoryError):
        return None


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """uint8 ``[H, W, 1 or 3]``; None where the file is not plain. Raises ``BadImage`` where it is damaged."""
    found = plain_jpeg(content)
    if found is None:
        return None
    mode, size = found
    _check_size(size)
    return read_jpeg(content, "GRAY" if mode == "L" else "RGB")


def _decode_any(content: bytes, file_format: str, png: Png | None, notes: list[str]) -> Image.Image:
    """Any file of a format that is read, as an image of mode L or RGB."""
    with Image.open(io.BytesIO(content), formats=(file_format,)) as image:
        _check_size(image.size)
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
            flat = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        else:
            flat = flatten(image, rawmode, content, file_format, png.depth if png else 8, notes)
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


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"{width}×{height}: no pixels")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}×{height}: more than {MAX_PIXELS:,} pixels")


def _fit(image: Image.Image, conversion: Conversion, notes: list[str]) -> Decoded:
    """An image of mode L or RGB with the channels and the size asked for."""
    if conversion.channels == 1 and image.mode == "RGB":
        red, green, blue = (image.getchannel(channel) for channel in "RGB")
        equal = red.tobytes() == green.tobytes() == blue.tobytes()
        notes.append("equal channels" if equal else "colour to grey")
        image = red if equal else image.convert("L")
    if conversion.size is not None and image.size != (conversion.size, conversion.size):
        image = _square(image, conversion.size, notes)
    if conversion.channels == 3 and image.mode == "L":
        notes.append("grey to colour")
        image = image.convert("RGB")
    width, height = image.size
    shape = (height, width) if image.mode == "L" else (height, width, 3)
    return Decoded(np.frombuffer(image.tobytes(), np.uint8).reshape(shape), tuple(notes))


def _square(image: Image.Image, size: int, notes: list[str]) -> Image.Image:
    """The central square, ``size`` pixels wide. The square lies on whole pixels: cropping alone changes none."""
    width, height = image.size
    side = min(width, height)
    if width != height:
        notes.append("cropped")
    if side != size:
        notes.append("resized" if side > size else "enlarged")
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    if side < size:
        return image.resize((size, size), Image.Resampling.BOX, box=box)
    return Image.fromarray(area_average(np.asarray(image.crop(box)), size))


def _cause(error: BaseException, name: str) -> str:
    """What Pillow's error means, in a few words."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"damaged or truncated header, or a kind of {name} that is not read"
    if text == "could not create decoder object":
        return f"damaged or truncated {name}"
    if isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "not enough", "eof")):
        return f"truncated {name}"
    return f"damaged {name}: {text[:80] or type(error).__name__}"

"""What is asked of every image, and how an image of pixels becomes that: levels, channels and size.

Only numpy and Pillow are imported: every decoding process loads this file.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image

from pipelines.data.decode.headers import BadImage
from pipelines.data.decode.value_levels import TOP, WIDE_TOP, Levels, Stored, to_8_bits

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: a file of a few KB can claim to be one of many GB."""
MAX_REDUCED = 200_000_000
"""The same where images are reduced to a size: cameras have so many pixels."""
MAX_SIZE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is asked of every image. Raises ``fvae.config.ConfigError`` for what cannot be."""

    size: int | None = None
    """Side in pixels of the square that comes out; None: as the image is."""
    channels: int | None = None
    """1: grey, 3: RGB, None: as the image is."""
    levels: Levels = Levels()
    """Which values are black and white, and on how many levels."""

    @property
    def asks_nothing(self) -> bool:
        """Whether every image stays as it is."""
        return self.size is None and self.channels is None and not self.levels.given

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
    stored: tuple[Stored, ...] = ()
    """The range of the values in the file, where these are no 8-bit ones or a range is asked for."""


def convert(values: np.ndarray, conversion: Conversion) -> Decoded:
    """Levels, size and channels of an array ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``. Raises ``BadImage``.

    Of the types of whole numbers, uint8 and uint16 say what is white, booleans are black and white, and others hold
    8-bit values; with a range of values that is asked for, they and floats hold these.
    """
    if values.dtype == np.uint8 and conversion.asks_nothing and (values.ndim == 2 or values.shape[2:] == (3,)):
        check_size((values.shape[1], values.shape[0]), conversion)  # most images of most sets
        return Decoded(np.ascontiguousarray(values))
    levels, kind = conversion.levels, values.dtype.kind
    if kind not in ("bui" if not levels.given else "buif") or values.ndim not in (2, 3):
        raise BadImage(f"{values.dtype} array of shape {values.shape}, not uint8 [H, W] or [H, W, 1 or 3]")
    if values.shape[2:] not in ((), (1,), (3,)):
        raise BadImage(f"{values.dtype} array of shape {values.shape}, not uint8 [H, W] or [H, W, 1 or 3]")
    if values.shape[2:] == (1,):
        values = values[..., 0]
    height, width = values.shape[:2]
    check_size((width, height), conversion)
    notes: list[str] = []
    stored: tuple[Stored, ...] = ()
    if values.dtype == np.uint8:
        pixels = levels.spread(values) if levels.given else values
        stored = (Stored(TOP, values.min().item(), values.max().item()),) if levels.given else ()
    else:
        pixels, stored = _to_bytes(values, levels, notes)
    channels = 1 if pixels.ndim == 2 else 3
    if conversion.channels in (None, channels) and (conversion.size is None or height == width == conversion.size):
        return Decoded(np.ascontiguousarray(levels.reduce(pixels)), tuple(notes), stored)
    decoded = fit(Image.fromarray(np.ascontiguousarray(pixels)), conversion, notes)
    decoded.stored = stored
    return decoded


def _to_bytes(values: np.ndarray, levels: Levels, notes: list[str]) -> tuple[np.ndarray, tuple[Stored, ...]]:
    """Values of another type than uint8 as uint8, and their range."""
    if values.dtype.kind == "b":
        notes.append("booleans")
        return values.astype(np.uint8) * np.uint8(255), ()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("holds values that are not finite")
    deep = values.dtype.kind == "u" and values.dtype.itemsize == 2
    stored = Stored(WIDE_TOP if deep else 0, values.min().item(), values.max().item())
    if levels.given:
        notes.append("spread")
        return levels.spread(values.astype(np.uint16) if deep else values), (stored,)
    if deep:
        notes.append("16-bit")
        return to_8_bits(values.astype(np.uint16, copy=False)), (stored,)
    return np.clip(values, 0, 255).astype(np.uint8), (stored,)  # a range that does not fit is asked about at the end


def check_size(size: tuple[int, int], conversion: Conversion) -> None:
    """Raise ``BadImage`` where an image of (width, height) has no pixels, or too many."""
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"{width}×{height}: no pixels")
    if width * height > MAX_REDUCED:
        raise BadImage(f"{width}×{height}: more than {MAX_REDUCED:,} pixels")
    if width * height > MAX_PIXELS and conversion.size is None:
        raise BadImage(f"{width}×{height}: more than {MAX_PIXELS:,} pixels, which only --size reduces")


def fit(image: Image.Image, conversion: Conversion, notes: list[str]) -> Decoded:
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
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
    return Decoded(conversion.levels.reduce(pixels), tuple(notes))


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


def area_average(square: np.ndarray, size: int) -> np.ndarray:
    """uint8 ``[S, S]`` or ``[S, S, C]`` to ``[size, size]`` or ``[size, size, C]``, size < S: each pixel is the exact,
    rounded mean of the area that it covers. Pillow's BOX takes border pixels whole or not at all.

    Whole numbers throughout: in units of 1/size of a source pixel, an output pixel is S of them wide.
    """
    side = len(square)
    if side <= 256:  # 255 · 256² is still exact in float32
        overlaps = _overlaps(side, size)
        strips = (overlaps @ square.reshape(side, -1)).reshape(size, side, -1)
        sums = (overlaps @ strips).astype(np.int64).reshape(size, size, *square.shape[2:])
    else:
        sums = _strip_sums(_strip_sums(square, size, np.int32).swapaxes(0, 1), size, np.int64).swapaxes(0, 1)
    return ((2 * sums + side * side) // (2 * side * side)).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _overlaps(side: int, size: int) -> np.ndarray:
    """float32 ``[size, side]``: how much of each source pixel lies in each output pixel, in units of 1/size."""
    unit = np.arange(side * size)
    overlaps = np.zeros((size, side), np.float32)
    np.add.at(overlaps, (unit // side, unit // size), 1)
    return overlaps


def _strip_sums(values: np.ndarray, size: int, dtype: type) -> np.ndarray:
    """Sums over ``size`` strips of the first axis, whose borders may cut through a row, in units of 1/size."""
    first, cut = np.divmod(np.arange(size) * len(values), size)
    cut = cut.astype(dtype).reshape(-1, *(1,) * (values.ndim - 1))
    before = cut * values[first]  # what of a strip's first row belongs to the strip before
    last = [*first[1:], len(values)]
    # strip by strip: np.add.reduceat takes twenty times as long for a photograph
    sums = np.stack([values[i:j].sum(axis=0, dtype=dtype) for i, j in zip(first, last, strict=True)])
    sums = sums * dtype(size) - before
    sums[:-1] += before[1:]
    return sums

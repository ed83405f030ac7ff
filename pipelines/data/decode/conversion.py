"""Converting an image of pixels: its levels, its channels, its size (the exact mean of areas).

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
    """What is asked of every image. Raises ``fvae.config.ConfigError`` for a size or channels that no image has."""

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
    """Codes of what was done to it, for ``pipelines.data.decode.image.describe``."""
    stored: tuple[Stored, ...] = ()
    """The range of the values in the file, where these are not 8-bit ones or a range is asked for."""


@dataclasses.dataclass(slots=True)
class Decoding:
    """One image on its way to 8-bit pixels: what is asked for, what is done, and the values that its file holds."""

    conversion: Conversion
    notes: list[str] = dataclasses.field(default_factory=list)
    stored: list[Stored] = dataclasses.field(default_factory=list)

    def add_range(self, values: np.ndarray, top: int) -> None:
        """Record the range of values of which ``top`` is white; 0 where their type does not define white."""
        self.stored.append(Stored(top, values.min().item(), values.max().item()))

    def spread(self, values: np.ndarray, top: int) -> np.ndarray:
        """uint8 of the same shape: values spread as asked for, else 16-bit ones rounded and 8-bit ones as they are.

        ``top`` is as for :meth:`add_range`. Raises ``BadImage`` where a value lies outside of the range asked for.
        """
        levels = self.conversion.levels
        if top == TOP and not levels.given:
            return values
        self.add_range(values, top)
        if top != TOP:
            self.notes.append("spread" if levels.given else "16-bit")
        return levels.spread(values) if levels.given else to_8_bits(values)

    def spread_image(self, image: Image.Image) -> Image.Image:
        """An image of mode L or RGB with its values spread as asked for. Raises what :meth:`spread` raises."""
        return Image.fromarray(self.spread(np.asarray(image), TOP)) if self.conversion.levels.given else image

    def fit(self, image: Image.Image) -> Decoded:
        """An image of mode L or RGB with the channels, the size and the levels asked for."""
        conversion = self.conversion
        if conversion.channels == 1 and image.mode == "RGB":
            red, green, blue = (image.getchannel(channel) for channel in "RGB")
            equal = red.tobytes() == green.tobytes() == blue.tobytes()
            self.notes.append("equal channels" if equal else "colour to grey")
            image = red if equal else image.convert("L")
        if conversion.size is not None and image.size != (conversion.size, conversion.size):
            image = self._square(image, conversion.size)
        if conversion.channels == 3 and image.mode == "L":
            self.notes.append("grey to colour")
            image = image.convert("RGB")
        width, height = image.size
        shape = (height, width) if image.mode == "L" else (height, width, 3)
        return self.done(np.frombuffer(image.tobytes(), np.uint8).reshape(shape))

    def done(self, pixels: np.ndarray) -> Decoded:
        """The result: uint8 0 … 255 on the levels asked for, with all that was noted."""
        return Decoded(self.conversion.levels.reduce(pixels), tuple(self.notes), tuple(self.stored))

    def _square(self, image: Image.Image, size: int) -> Image.Image:
        """The central square, ``size`` pixels wide. The square lies on whole pixels: cropping alone changes none."""
        width, height = image.size
        side = min(width, height)
        if width != height:
            self.notes.append("cropped")
        if side != size:
            self.notes.append("resized" if side > size else "enlarged")
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        if side == size:
            return image.crop(box)
        if side < size:
            return image.resize((size, size), Image.Resampling.BOX, box=box)
        return Image.fromarray(area_average(np.asarray(image.crop(box)), size))


def convert(values: np.ndarray, conversion: Conversion) -> Decoded:
    """Levels, size and channels of an array ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``. Raises ``BadImage``.

    Of the types of whole numbers, uint8 and uint16 define white, booleans are black and white, and others hold
    8-bit values; with a range of values that is asked for, they and floats hold these.
    """
    if values.dtype == np.uint8 and conversion.asks_nothing and (values.ndim == 2 or values.shape[2:] == (3,)):
        check_size((values.shape[1], values.shape[0]), conversion)  # most images of most sets
        return Decoded(np.ascontiguousarray(values))
    kinds = "buif" if conversion.levels.given else "bui"
    if values.dtype.kind not in kinds or values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,)):
        raise BadImage(f"{values.dtype} array of shape {values.shape}, not uint8 [H, W] or [H, W, 1 or 3]")
    if values.shape[2:] == (1,):
        values = values[..., 0]
    height, width = values.shape[:2]
    check_size((width, height), conversion)
    decoding = Decoding(conversion)
    pixels = np.ascontiguousarray(_to_bytes(values, decoding))
    channels = 1 if pixels.ndim == 2 else 3
    if conversion.channels in (None, channels) and (conversion.size is None or height == width == conversion.size):
        return decoding.done(pixels)
    return decoding.fit(Image.fromarray(pixels))


def _to_bytes(values: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Values of any type as uint8."""
    if values.dtype == np.uint8:
        return decoding.spread(values, TOP)
    if values.dtype.kind == "b":
        decoding.notes.append("booleans")
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("holds values that are not finite")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return decoding.spread(values.astype(np.uint16, copy=False), WIDE_TOP)
    if decoding.conversion.levels.given:
        return decoding.spread(values, 0)
    decoding.add_range(values, 0)
    return np.clip(values, 0, TOP).astype(np.uint8)  # the range is judged once all images are read


def check_size(size: tuple[int, int], conversion: Conversion) -> None:
    """Raise ``BadImage`` where an image of (width, height) has no pixels, or too many."""
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"{width}×{height}: no pixels")
    if width * height > MAX_REDUCED:
        raise BadImage(f"{width}×{height}: more than {MAX_REDUCED:,} pixels")
    if width * height > MAX_PIXELS and conversion.size is None:
        raise BadImage(f"{width}×{height}: more than {MAX_PIXELS:,} pixels, which only --size reduces")


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

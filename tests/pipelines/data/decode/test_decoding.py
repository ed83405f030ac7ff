"""Every way in which image files hold pixels, against Pillow's or hand-made references; damaged ones to one cause."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from fvae import ConfigError
from pipelines.data.decode.conversion import area_average
from pipelines.data.decode.image import BadImage, Conversion, convert, decode, describe
from pipelines.data.decode.pixel_modes import to_8_bits
from tests.images import chunk, png, saved, tiff
from tests.pipelines.data.input_builders import bmp_with_empty_alpha

pytestmark = pytest.mark.core

AS_IT_IS = Conversion()
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
WIDE = RNG.integers(0, 1 << 16, (5, 7, 3), dtype=np.uint16)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8)


def over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = (alpha / 255)[..., None] if values.ndim == 3 else alpha / 255
    return values * share + 255 * (1 - share)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["L", "RGB"]),
    st.integers(1, 100),
    st.fixed_dictionaries(
        {},
        optional={
            "progressive": st.just(True),
            "optimize": st.just(True),
            "subsampling": st.integers(0, 2),
            "restart_marker_blocks": st.integers(1, 4),
            "comment": st.binary(max_size=9),
            "dpi": st.just((72, 72)),
        },
    ),
)
def test_jpeg_pixels_are_those_of_pillow(width: int, height: int, mode: str, quality: int, options: dict) -> None:
    smooth = Image.fromarray(COLOUR).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    content = saved(smooth, "JPEG", quality=quality, **options)
    decoded = decode(content, AS_IT_IS)
    assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(content))))
    assert decoded.notes == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["L", "RGB"]), st.integers(0, 9), st.randoms())
def test_lossless_formats_return_every_pixel(width: int, height: int, mode: str, level: int, random) -> None:
    pixels = np.frombuffer(random.randbytes(width * height * len(mode)), np.uint8)
    pixels = pixels.reshape((height, width) if mode == "L" else (height, width, 3))
    for file_format, options in {
        "PNG": {"compress_level": level},
        "BMP": {},
        "TIFF": {"compression": ["raw", "tiff_lzw", "tiff_deflate"][level % 3]},
    }.items():
        decoded = decode(saved(pixels, file_format, **options), AS_IT_IS)
        assert np.array_equal(decoded.pixels, pixels)
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.flags.c_contiguous
        assert decoded.notes == ()
    if mode == "RGB":
        assert np.array_equal(decode(saved(pixels, "WEBP", lossless=True), AS_IT_IS).pixels, pixels)


def test_png_in_several_chunks_and_interlaced() -> None:
    whole = png((14, 9), 8, 2, COLOUR.tobytes())
    at = whole.index(b"IDAT") - 4
    stream = whole[at + 8 : whole.index(b"IEND") - 8]
    split = whole[:at] + chunk(b"IDAT", stream[:50]) + chunk(b"IDAT", stream[50:]) + chunk(b"IEND", b"")
    assert np.array_equal(decode(split, AS_IT_IS).pixels, COLOUR)
    passes = zlib.compress(b"\0\1" + b"\0\2" + b"\0\3\4")  # Adam7: the first, the sixth and the seventh hold pixels
    whole = png((2, 2), 8, 0, b"", interlace=1)
    at = whole.index(b"IDAT") - 4
    assert decode(whole[:at] + chunk(b"IDAT", passes) + chunk(b"IEND", b""), AS_IT_IS).pixels.tolist() == [
        [1, 2],
        [3, 4],
    ]


def test_16_bits_are_rounded_not_cut() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(to_8_bits(every), rounded(every))
    big = WIDE.astype(">u2").tobytes()
    alpha = np.concatenate([WIDE, np.full((5, 7, 1), 65535, np.uint16)], axis=2)
    for content in (
        png((7, 5), 16, 2, big),
        tiff(WIDE),
        tiff(WIDE, ">"),
        tiff(WIDE, t259=8),
        tiff(WIDE, ">", t259=8),
        png((7, 5), 16, 6, alpha.astype(">u2").tobytes()),
    ):
        decoded = decode(content, AS_IT_IS)
        assert np.array_equal(decoded.pixels, rounded(WIDE))
        assert decoded.notes[0] == "16-bit"
    grey = WIDE[..., 0]
    for content in (saved(grey, "PNG"), saved(grey, "TIFF"), tiff(grey, ">", 1), tiff(~grey, "<", 0)):
        decoded = decode(content, AS_IT_IS)
        assert np.array_equal(decoded.pixels, rounded(grey))
        assert decoded.notes == ("16-bit",)
    grey_alpha = np.stack([grey, np.full_like(grey, 65535)], axis=2)
    decoded = decode(png((7, 5), 16, 4, grey_alpha.astype(">u2").tobytes()), AS_IT_IS)
    assert np.array_equal(decoded.pixels, rounded(grey))
    assert decoded.notes == ("16-bit", "opaque alpha")
    grey_alpha[..., 1] = 0x8000
    decoded = decode(png((7, 5), 16, 4, grey_alpha.astype(">u2").tobytes()), AS_IT_IS)
    assert np.abs(decoded.pixels - over_white(rounded(grey), np.full(grey.shape, 128))).max() <= 0.51
    assert decoded.notes == ("16-bit", "alpha")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white(mode: str, file_format: str) -> None:
    colours = GREY if mode == "LA" else COLOUR
    for alpha, notes in ((GREY[::-1], ("alpha",)), (np.full_like(GREY, 255), ("opaque alpha",))):
        image = Image.fromarray(np.dstack([colours, alpha]))
        content = saved(image, file_format, **({"lossless": True, "exact": True} if file_format == "WEBP" else {}))
        decoded = decode(content, AS_IT_IS)
        shown = decoded.pixels
        if file_format == "WEBP" and mode == "LA":  # WebP knows no grey
            assert np.ptp(shown, axis=2).max() == 0
            shown = shown[..., 0]
        assert np.abs(shown - over_white(colours, alpha)).max() <= 0.51
        assert decoded.notes == (() if file_format == "WEBP" and notes == ("opaque alpha",) else notes)  # it drops it


def test_one_transparent_colour() -> None:
    for content, shown in (
        (png((3, 1), 8, 0, b"\x05\x06\x07", chunk(b"tRNS", b"\0\x06")), [[5, 255, 7]]),
        (png((4, 1), 2, 0, b"\x1b", chunk(b"tRNS", b"\0\x01")), [[0, 255, 170, 255]]),
        (png((2, 1), 1, 0, b"\x40", chunk(b"tRNS", b"\0\x00")), [[255, 255]]),
        (png((2, 1), 16, 0, b"\x05\0\x05\x01", chunk(b"tRNS", b"\x05\x01")), [[5, 255]]),
        (png((2, 1), 8, 2, b"\1\2\3\1\2\4", chunk(b"tRNS", b"\0\1\0\2\0\4")), [[[1, 2, 3], [255, 255, 255]]]),
        (png((2, 1), 16, 2, b"\1\0\2\0\3\0\1\0\2\0\3\1", chunk(b"tRNS", b"\1\0\2\0\3\1")), [[[1, 2, 3], [255] * 3]]),
    ):
        decoded = decode(content, AS_IT_IS)
        assert decoded.pixels.tolist() == shown
        assert decoded.notes[-1] == "alpha"


def test_palette_and_bits() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    decoded = decode(png((2, 1), 8, 3, b"\1\0", palette), AS_IT_IS)
    assert (decoded.pixels.tolist(), decoded.notes) == ([[[40, 50, 60], [10, 20, 30]]], ("palette",))
    grey = chunk(b"PLTE", bytes([10, 10, 10, 40, 40, 40]))
    decoded = decode(png((2, 1), 8, 3, b"\1\0", grey), AS_IT_IS)
    assert (decoded.pixels.tolist(), decoded.notes) == ([[40, 10]], ("palette",))
    decoded = decode(png((2, 1), 8, 3, b"\1\0", palette, chunk(b"tRNS", b"\0\xff")), AS_IT_IS)
    assert (decoded.pixels.tolist(), decoded.notes) == ([[[40, 50, 60], [255] * 3]], ("palette", "alpha"))
    for file_format in ("PNG", "BMP", "TIFF"):
        decoded = decode(saved(Image.fromarray(GREY > 128), file_format), AS_IT_IS)
        assert np.array_equal(decoded.pixels, np.where(GREY > 128, 255, 0))
        assert decoded.notes == ("1-bit",)


def test_a_picture_that_is_transparent_everywhere_is_white() -> None:
    for file_format in ("PNG", "TIFF"):
        for colours in (GREY, COLOUR):
            decoded = decode(saved(np.dstack([colours, np.zeros_like(GREY)]), file_format), AS_IT_IS)
            assert decoded.pixels.shape == colours.shape
            assert (decoded.pixels == 255).all()
            assert decoded.notes == ("alpha",)


def test_an_empty_fourth_byte_of_a_bmp_hides_nothing() -> None:
    decoded = decode(bmp_with_empty_alpha(COLOUR), AS_IT_IS)
    assert np.array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ("alpha of zero",)


@pytest.mark.parametrize("file_format", ["GIF", "AVIF", "PPM", "JPEG2000"])
def test_formats_that_are_read_by_pillow_alone(file_format: str) -> None:
    content = saved(COLOUR, file_format)
    with Image.open(io.BytesIO(content)) as image:
        shown = np.asarray(image.convert("RGB"))
    decoded = decode(content, AS_IT_IS)
    assert np.array_equal(decoded.pixels, shown)
    assert decoded.notes == (("palette",) if file_format == "GIF" else ())
    if file_format in ("GIF", "AVIF"):
        frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1])]
        moving = decode(saved(frames[0], file_format, save_all=True, append_images=frames[1:]), AS_IT_IS)
        assert moving.notes[0] == "frames"
        assert moving.pixels.shape == COLOUR.shape


def test_a_portable_map_of_16_bits_is_rounded() -> None:
    header = b"P5 7 5 65535\n"
    decoded = decode(header + WIDE[..., 0].astype(">u2").tobytes(), AS_IT_IS)
    assert np.array_equal(decoded.pixels, rounded(WIDE[..., 0]))
    assert decoded.notes == ("16-bit",)


def test_a_portable_bitmap_is_black_and_white() -> None:
    for content in (b"P1 3 2\n1 0 1\n0 1 0\n", b"P4 3 2\n\xa0\x40"):
        decoded = decode(content, AS_IT_IS)
        assert decoded.pixels.tolist() == [[0, 255, 0], [255, 0, 255]]
        assert decoded.notes == ("1-bit",)


def test_a_channel_that_is_no_colour_is_dropped() -> None:
    decoded = decode(tiff(np.dstack([COLOUR, GREY]), t338=0), AS_IT_IS)
    assert np.array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ("extra channel",)


def test_a_photo_of_more_pixels_is_read_where_it_is_reduced() -> None:
    content = saved(Image.new("L", (9000, 6000), 77), "PNG")
    with pytest.raises(BadImage, match=r"9000×6000: more than 50,000,000 pixels, which only --size reduces"):
        decode(content, AS_IT_IS)
    assert (decode(content, Conversion(size=4)).pixels == 77).all()


def test_cmyk_and_ycbcr() -> None:
    for file_format in ("JPEG", "TIFF"):
        content = saved(Image.fromarray(COLOUR).convert("CMYK"), file_format)
        decoded = decode(content, AS_IT_IS)
        assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        assert decoded.notes == ("cmyk",)
    content = saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF")
    decoded = decode(content, AS_IT_IS)
    assert np.abs(decoded.pixels.astype(int) - COLOUR).max() <= 3
    assert decoded.notes == ("ycbcr",)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(COLOUR, file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {}))
    decoded = decode(content, AS_IT_IS)
    with Image.open(io.BytesIO(content)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decoded.pixels, upright)
    assert decoded.pixels.shape == ((14, 9, 3) if 5 <= orientation <= 8 else (9, 14, 3))
    assert decoded.notes == (("rotated",) if 2 <= orientation <= 8 else ())


def test_exif_that_cannot_be_read_costs_no_image() -> None:
    content = saved(COLOUR, "PNG", exif=b"Exif\0\0II*\0" + bytes(2))
    assert np.array_equal(decode(content, AS_IT_IS).pixels, COLOUR)


def test_several_frames() -> None:
    frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1])]
    for file_format, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        decoded = decode(saved(frames[0], file_format, save_all=True, append_images=frames[1:], **options), AS_IT_IS)
        assert np.array_equal(decoded.pixels, COLOUR)
        assert decoded.notes[0] == "frames"
    decoded = decode(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]), AS_IT_IS)  # a camera's JPEG
    assert decoded.notes == ("frames",)


def test_colour_profiles() -> None:
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert decode(saved(COLOUR, file_format, icc_profile=other), AS_IT_IS).notes == ("colour profile",)
        assert decode(saved(COLOUR, file_format, icc_profile=srgb), AS_IT_IS).notes == ()


def test_sizes() -> None:
    square = COLOUR[:, :9]
    assert np.array_equal(decode(saved(square, "PNG"), Conversion(size=9)).pixels, square)
    assert decode(saved(square, "PNG"), Conversion(size=9)).notes == ()
    cropped = decode(saved(COLOUR, "PNG"), Conversion(size=9))
    assert np.array_equal(cropped.pixels, COLOUR[:, 2:11])
    assert cropped.notes == ("cropped",)
    enlarged = decode(saved(square, "PNG"), Conversion(size=18))
    assert np.array_equal(enlarged.pixels, square.repeat(2, axis=0).repeat(2, axis=1))
    assert enlarged.notes == ("enlarged",)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["L", "RGB"]))
def test_resizing_averages_areas(width: int, height: int, size: int, mode: str) -> None:
    """Against the exact mean: every source pixel weighs as much of it as lies in the new one."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = pixels if mode == "RGB" else pixels[..., 0]
    side = min(width, height)
    if size > side:
        return
    square = pixels[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    overlap = np.zeros((size, side), int)  # in units of 1/size of a source pixel
    np.add.at(overlap, (np.arange(size * side) // side, np.arange(size * side) // size), 1)
    sums = np.einsum("ai,bj,ij...->ab...", overlap, overlap, square.astype(int))
    for decoded in (decode(saved(pixels, "PNG"), Conversion(size=size)), convert(pixels, Conversion(size=size))):
        assert np.array_equal(decoded.pixels, (2 * sums + side**2) // (2 * side**2))
        assert ("resized" in decoded.notes) == (size < side)
        assert ("cropped" in decoded.notes) == (width != height)


@pytest.mark.parametrize("side", [255, 256, 257, 700])
def test_large_squares_average_exactly_too(side: int) -> None:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
    for size in (1, 3, 32):
        wide = pixels.repeat(size, axis=0).astype(int).reshape(size, side, side).sum(axis=1)
        sums = wide.repeat(size, axis=1).reshape(size, size, side).sum(axis=2)
        assert np.array_equal(area_average(pixels, size), (2 * sums + side**2) // (2 * side**2))


def test_channels() -> None:
    grey = decode(saved(COLOUR, "PNG"), Conversion(channels=1))
    assert np.abs(grey.pixels - COLOUR @ [0.299, 0.587, 0.114]).max() <= 0.51
    assert grey.notes == ("colour to grey",)
    same = decode(saved(GREY[..., None].repeat(3, axis=2), "PNG"), Conversion(channels=1))
    assert np.array_equal(same.pixels, GREY)
    assert same.notes == ("equal channels",)
    repeated = decode(saved(GREY, "PNG"), Conversion(channels=3))
    assert np.array_equal(repeated.pixels, GREY[..., None].repeat(3, axis=2))
    assert repeated.notes == ("grey to colour",)
    assert decode(saved(same.pixels, "PNG"), AS_IT_IS).pixels.ndim == 2


def test_arrays() -> None:
    assert np.shares_memory(convert(COLOUR, AS_IT_IS).pixels, COLOUR)
    assert np.array_equal(convert(GREY[..., None], Conversion(channels=1)).pixels, GREY)
    assert np.array_equal(convert(COLOUR.transpose(1, 0, 2), AS_IT_IS).pixels, COLOUR.transpose(1, 0, 2))
    assert convert(COLOUR, Conversion(size=4, channels=1)).pixels.shape == (4, 4)
    for wrong in (GREY.astype(float), COLOUR[..., :2], GREY[0], GREY[:0]):
        with pytest.raises(BadImage, match="array of shape|no pixels"):
            convert(wrong, AS_IT_IS)


def test_settings_that_cannot_be() -> None:
    for wrong in ({"size": 0}, {"size": 5000}, {"size": True}, {"size": 2.0}, {"channels": 2}, {"channels": 4}):
        with pytest.raises(ConfigError, match=rf"{next(iter(wrong))}=.*: must be"):
            Conversion(**wrong)


def test_notes_become_lines() -> None:
    assert describe("alpha", 1200) == "1,200 images with transparency: laid over white (lossy)"
    assert describe("palette", 1) == "1 image with a palette: expanded to its colours"

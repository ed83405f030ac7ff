"""JPEG files: what libjpeg only warns of is a bad file where pixels are missing, and harmless where none is."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data.decode.image import BadImage, Conversion, decode
from tests.images import by_pillow, saved

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((72, 56), Image.Resampling.BICUBIC)
EXIF = Image.Exif()
EXIF[0x0112] = 1
ICC = b"sRGB profile" * 9
KINDS = {
    "baseline": saved(SMOOTH, "JPEG", quality=90),
    "grey": saved(SMOOTH.convert("L"), "JPEG", quality=90),
    "progressive": saved(SMOOTH, "JPEG", quality=90, progressive=True),
    "with restarts": saved(SMOOTH, "JPEG", quality=90, restart_marker_blocks=4),
    "with EXIF": saved(SMOOTH, "JPEG", quality=90, exif=EXIF),
    "with a profile": saved(SMOOTH, "JPEG", quality=90, icc_profile=ICC),
    "CMYK": saved(SMOOTH.convert("CMYK"), "JPEG", quality=90),
}


def scan(content: bytes) -> int:
    """Where the data of the pixels are half over."""
    start = content.index(b"\xff\xda")
    return start + (len(content) - start) // 2


def segment(content: bytes) -> int:
    """Where the first segment of the header ends."""
    return 4 + int.from_bytes(content[4:6], "big")


DAMAGE = {
    "half of the data, and the end mark": lambda content: content[: scan(content)] + b"\xff\xd9",
    "an end mark in the middle": lambda content: content[: scan(content)] + b"\xff\xd9" + content[scan(content) + 2 :],
    "a restart mark in the middle": lambda content: (
        content[: scan(content)] + b"\xff\xd3" + content[scan(content) + 2 :]
    ),
    "half of the data": lambda content: content[: scan(content)],
    "no end mark": lambda content: content[:-2],
    "zeros for the last of the data": lambda content: content[:-40] + bytes(40),
    "zeros for half of the data": lambda content: content[: scan(content)] + bytes(4096),
}
HARMLESS = {
    "zeros behind the end": lambda content: content + bytes(100),
    "text behind the end": lambda content: content + b"a camera's notes " * 9,
    "another picture behind the end": lambda content: content + saved(SMOOTH, "JPEG", quality=20),
    "zeros for the end mark": lambda content: content[:-2] + bytes(16),
    "a block of zeros for the end mark": lambda content: content[:-2] + bytes(512),
    "zeros before the end": lambda content: content[:-2] + bytes(64) + content[-2:],
    "padding in the header": lambda content: content[: segment(content)] + bytes(7) + content[segment(content) :],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_picture_with_missing_pixels_is_bad(kind: str, damage: str) -> None:
    content = DAMAGE[damage](KINDS[kind])
    with pytest.raises(BadImage, match=r"^(damaged JPEG: |truncated JPEG)"):
        decode(content, Conversion())


@pytest.mark.parametrize("kind", ["baseline", "grey", "with restarts", "with EXIF", "with a profile", "CMYK"])
def test_pillow_would_say_nothing(kind: str) -> None:
    """What the check is for: half of the picture is one colour, without a word."""
    content = DAMAGE["half of the data, and the end mark"](KINDS[kind])
    assert by_pillow(content).shape == by_pillow(KINDS[kind]).shape
    assert (by_pillow(content) != by_pillow(KINDS[kind])).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", HARMLESS)
def test_bytes_that_belong_to_no_pixel_are_harmless(kind: str, harm: str) -> None:
    whole = decode(KINDS[kind], Conversion())
    found = decode(HARMLESS[harm](KINDS[kind]), Conversion())
    assert np.array_equal(found.pixels, whole.pixels)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["L", "RGB"]),
    st.fixed_dictionaries(
        {"exif": st.just(EXIF)},
        optional={
            "progressive": st.just(True),
            "subsampling": st.integers(0, 2),
            "icc_profile": st.just(ICC),
            "quality": st.integers(1, 100),
            "restart_marker_rows": st.integers(1, 3),
        },
    ),
)
def test_pixels_of_cameras_are_those_of_pillow(width: int, height: int, mode: str, options: dict) -> None:
    content = saved(SMOOTH.resize((width, height)).convert(mode), "JPEG", **options)
    assert np.array_equal(decode(content, Conversion()).pixels, by_pillow(content))


def test_three_channels_that_are_no_ycbcr() -> None:
    content = saved(SMOOTH, "JPEG", quality=90, keep_rgb=True)
    assert np.array_equal(decode(content, Conversion()).pixels, by_pillow(content))


def test_a_damaged_jpeg_inside_a_tiff_is_bad() -> None:
    content = saved(SMOOTH, "TIFF", compression="jpeg")
    assert np.array_equal(decode(content, Conversion()).pixels, by_pillow(content))
    with Image.open(io.BytesIO(content)) as image:
        offset, size = image.tag_v2[273][0], image.tag_v2[279][0]  # type: ignore[attr-defined]
    middle = offset + size // 2
    damaged = content[:middle] + b"\xff\xd9" + content[middle + 2 :]
    assert by_pillow(damaged).shape == (56, 72, 3)
    with pytest.raises(BadImage, match="damaged JPEG: the data of its pixels end too early"):
        decode(damaged, Conversion())


def test_warnings_that_concern_no_pixel_are_none() -> None:
    content = KINDS["baseline"]
    version = content.index(b"JFIF\0") + 5
    odd = content[:version] + struct.pack("BB", 9, 9) + content[version + 2 :]  # a revision that nobody knows
    assert np.array_equal(decode(odd, Conversion()).pixels, decode(content, Conversion()).pixels)

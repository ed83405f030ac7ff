"""What is no usable image ends in one short cause: no other error, no output, no memory."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data.decode.image import BadImage, Conversion, decode
from pipelines.data.decode.pool import decode_many
from pipelines.data.sources import ImageFile
from tests.images import chunk, png, saved, tiff

pytestmark = pytest.mark.core

AS_IT_IS = Conversion()
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
WIDE = RNG.integers(0, 1 << 16, (5, 7, 3), dtype=np.uint16)

HUGE = {
    "PNG": png((20_000, 20_000), 8, 2, b""),
    "16-bit PNG": png((20_000, 20_000), 16, 2, b""),
    "BMP": saved(COLOUR, "BMP")[:18] + struct.pack("<ii", 20_000, 20_000) + saved(COLOUR, "BMP")[26:],
    "TIFF": tiff(COLOUR, t256=20_000, t257=20_000),
    "JPEG": saved(COLOUR, "JPEG").replace(struct.pack(">HH", 9, 14), struct.pack(">HH", 20_000, 20_000), 1),
    "WebP": saved(COLOUR, "WEBP", exif=b"x").replace(b"\x0d\0\0\x08\0\0", b"\x7f\x3e\0\x7f\x3e\0", 1),
}


@pytest.mark.parametrize("name", HUGE)
def test_bombs_are_refused_before_they_are_decoded(name: str) -> None:
    with pytest.raises(BadImage, match=("20000×20000: " if "PNG" in name else "") + "more than 200,000,000 pixels$"):
        decode(HUGE[name], AS_IT_IS)


TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))
CORRUPT = bytearray(saved(COLOUR, "PNG"))
CORRUPT[CORRUPT.index(b"IDAT") + 30] ^= 1
BAD = {
    "nothing": (b"", "empty file (0 bytes)"),
    "zeros": (bytes(500), "not an image"),
    "text": (b"hello world", "not an image"),
    "HEIF": (b"\0\0\0\x18ftypheic" + bytes(200), "HEIF (HEIC), not one of PNG, JPEG, WebP, BMP, TIFF"),
    "a film": (b"\0\0\0\x18ftypisom" + bytes(200), "a video, not one of"),
    "half a GIF": (saved(COLOUR, "GIF")[:-60], "truncated GIF"),
    "half an AVIF": (saved(COLOUR, "AVIF")[:-60], "AVIF"),
    "half a JPEG 2000": (saved(COLOUR, "JPEG2000")[:-60], "damaged JPEG 2000"),
    "half a PPM": (saved(COLOUR, "PPM")[:-60], "truncated PPM"),
    "HTML": (b"<!DOCTYPE html><html>404", "HTML, not one of"),
    "half a PNG": (saved(COLOUR, "PNG")[:-60], "truncated PNG"),
    "PNG without end": (saved(COLOUR, "PNG")[:-12], "truncated PNG"),
    "only the magic of a PNG": (saved(COLOUR, "PNG")[:8], "damaged PNG"),
    "PNG with one bit flipped": (bytes(CORRUPT), "damaged PNG: wrong checksum of chunk 'IDAT'"),
    "12-bit JPEG": (
        saved(COLOUR, "JPEG").replace(b"\x11\x08\0\x09\0\x0e", b"\x11\x0c\0\x09\0\x0e", 1),
        "a kind of JPEG",
    ),
    "PNG with too few rows": (png((14, 20), 8, 2, COLOUR.tobytes()[: 42 * 9]), "damaged PNG: "),
    "PNG of 0 × 3": (png((0, 3), 8, 0, b""), "0×3: no pixels"),
    "PNG text bomb": (png((14, 9), 8, 2, COLOUR.tobytes(), TEXT_BOMB), "damaged PNG: Decompressed data too large"),
    "half a JPEG": (saved(COLOUR, "JPEG")[:-60], "truncated JPEG"),
    "JPEG header only": (saved(COLOUR, "JPEG")[:200], "truncated JPEG"),
    "half a WebP": (saved(COLOUR, "WEBP")[:-60], "damaged or truncated WebP"),
    "half a BMP": (saved(COLOUR, "BMP")[:-60], "truncated BMP"),
    "half a TIFF": (saved(COLOUR, "TIFF")[:-60], "truncated TIFF"),
    "half a compressed TIFF": (
        saved(COLOUR, "TIFF", compression="tiff_lzw")[:-60],
        "damaged or truncated header, or a kind of TIFF",
    ),
    "32-bit TIFF": (saved(GREY.astype(np.int32), "TIFF"), "TIFF of mode I; save it as grey or RGB with 8 or 16 bits"),
    "float TIFF": (saved(GREY.astype(np.float32), "TIFF"), "TIFF of mode F; save it"),
    "LAB TIFF": (saved(Image.fromarray(COLOUR).convert("LAB"), "TIFF"), "TIFF of mode LAB; save it"),
    "16-bit planes": (tiff(WIDE, t284=2), "16 bits per channel in separate planes; save it with interleaved channels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_short_cause(name: str) -> None:
    content, cause = BAD[name]
    with pytest.raises(BadImage) as raised:
        decode(content, AS_IT_IS)
    assert cause in str(raised.value)
    assert len(str(raised.value)) <= 120
    assert "\n" not in str(raised.value)
    assert "object at 0x" not in str(raised.value)


EXIF = Image.Exif()
EXIF[0x0112] = 6
SEEDS = {
    "JPEG": saved(COLOUR, "JPEG"),
    "JPEG with EXIF": saved(COLOUR, "JPEG", exif=EXIF, progressive=True),
    "CMYK JPEG": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "PNG": saved(COLOUR, "PNG"),
    "PNG with a palette": saved(Image.fromarray(COLOUR).quantize(8), "PNG", transparency=3, exif=EXIF),
    "animated PNG": saved(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
    "WebP": saved(COLOUR, "WEBP"),
    "lossless WebP with EXIF": saved(COLOUR, "WEBP", lossless=True, exif=EXIF),
    "BMP": saved(COLOUR, "BMP"),
    "BMP with a palette": saved(Image.fromarray(COLOUR).quantize(8), "BMP"),
    "TIFF": saved(COLOUR, "TIFF", exif=EXIF),
    "LZW TIFF": saved(GREY, "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": saved(COLOUR, "TIFF", compression="jpeg"),
    "16-bit TIFF": tiff(WIDE, t259=8),
}


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks' checksums fit again, so that damage goes further in than the checksum."""
    start, whole = 8, bytearray(content)
    while start + 12 <= len(whole):
        end = start + 8 + int.from_bytes(whole[start : start + 4], "big")
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[start + 4 : end]))[: max(0, len(whole) - end)]
        start = end + 4
    return bytes(whole)


@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_is_either_bad_or_decoded(name: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[name])
    header = st.integers(0, min(len(content), 150) - 1)
    for position in data.draw(st.lists(header | st.integers(0, len(content) - 1), max_size=5)):
        content[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    damaged = bytes(content[:cut])
    if name.endswith("PNG") and data.draw(st.booleans()):
        damaged = with_checksums(damaged)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            pixels = decode(damaged, Conversion(size=8)).pixels
        except BadImage as error:
            assert 0 < len(str(error)) <= 120
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape in ((8, 8), (8, 8, 3))
    assert not warned


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    whole = [*SEEDS.values(), *HUGE.values(), *(content for content, _ in BAD.values())]
    contents = [
        damaged for content in whole for damaged in (content, content[:-30], content[:60] + bytes(9) + content[69:])
    ]
    files = [ImageFile(str(number), content, None, None) for number, content in enumerate(contents)]
    with caplog.at_level(logging.WARNING):
        batches = list(decode_many(files, AS_IT_IS, processes=1))
    assert sum(len(batch.bad) + len(batch.images) for batch in batches) == len(files)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_bombs_take_no_memory() -> None:
    """In a fresh process whose address space has no room for their pixels."""
    program = (
        "import resource, sys; from pipelines.data.decode.image import *\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: decode(bytes.fromhex(sys.stdin.read()), Conversion())\n"
        "except BadImage as cause: print(cause)"
    )
    for content in (HUGE["WebP"], HUGE["16-bit PNG"]):
        answer = subprocess.run(
            [sys.executable, "-c", program], input=content.hex(), capture_output=True, text=True, check=True, timeout=60
        )
        assert answer.stdout.strip().endswith("more than 200,000,000 pixels")


def test_decoding_loads_nothing_heavy() -> None:
    program = "import sys, pipelines.data.decode.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert {name.split(".")[0] for name in loaded.stdout.split()}.isdisjoint(
        {"torch", "fvae", "pyarrow", "boto3", "ray"}
    )

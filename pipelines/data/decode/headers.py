"""Headers of image files, read without decoding: the format, and whether the file is a plain case.

Most files of a data set are plain: 8-bit grey or RGB, no rotation, no colour profile. Their pixels come straight from
Pillow's codecs, without the rest of Pillow reading the header once more; everything else takes Pillow's own road.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WEBP": "WebP",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "GIF": "GIF",
    "AVIF": "AVIF",
    "PPM": "PPM",
    "JPEG2000": "JPEG 2000",
}
"""Pillow's names of the formats that are read, and how they are written."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((magic, "PPM") for magic in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_OTHERS = (  # only to say what was given
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"#?R", "Radiance HDR"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"<!DOCTYPE html", "HTML"),
    (b"<html", "HTML"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_PNG_MODES = {(8, 0): "L", (8, 2): "RGB"}
# Chunks that change no pixel. Text may hold an orientation, so it is not among them.
_PNG_PLAIN = frozenset((b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"sBIT"))


class BadImage(ValueError):
    """A file that cannot be used. ``str`` is the cause in a few words."""


class Png(NamedTuple):
    """What a PNG file's chunks say."""

    size: tuple[int, int]
    """Width and height in pixels."""
    mode: str | None
    """Pillow's mode of the pixels, where the file is plain; else None."""
    stream: bytes
    """The compressed pixels, where the file is plain."""


def image_format(content: bytes) -> str:
    """Pillow's name of the format, one of :data:`FORMATS`, decided by the content alone. Raises ``BadImage``."""
    for magic, name in _MAGIC:
        if content.startswith(magic):
            return name
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:12] in (b"ftypavif", b"ftypavis") or (content[4:12] == b"ftypmif1" and b"avif" in content[12:64]):
        return "AVIF"
    if not content:
        raise BadImage("empty file (0 bytes)")
    known = next((name for magic, name in _OTHERS if content.startswith(magic)), None)
    if content[4:8] == b"ftyp":
        known = "HEIF (HEIC)" if content[8:12] in _HEIF else "a video"
    if known:
        raise BadImage(f"{known}, not one of {', '.join(FORMATS.values())}")
    raise BadImage("not an image")


def read_png(content: bytes) -> Png:
    """Walk the chunks of a PNG file. Raises ``BadImage`` where one is cut off or its checksum is wrong.

    Pillow does not verify the checksum of pixel data, so a flipped bit would pass for an image.
    """
    if content[12:16] != b"IHDR" or len(content) < 33:
        raise BadImage("damaged PNG: no header chunk")
    size = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    depth, colour = content[24], content[25]
    mode = _PNG_MODES.get((depth, colour)) if content[26:29] == b"\0\0\0" else None  # else interlaced or unknown
    view, start, previous, kind = memoryview(content), 8, b"", b""
    streams: list[bytes] = []
    while kind != b"IEND":
        previous, kind = kind, content[start + 4 : start + 8]
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            raise BadImage("truncated PNG")
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise BadImage(f"damaged PNG: wrong checksum of chunk {kind.decode('ascii', 'replace')!r}")
        if kind not in _PNG_PLAIN or (kind == b"IDAT" and streams and previous != kind):
            mode = None
        if kind == b"IDAT" and mode:
            streams.append(content[start + 8 : end])
        start = end + 4
    return Png(size, mode, (streams[0] if len(streams) == 1 else b"".join(streams)) if mode else b"")

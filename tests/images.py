"""Image files for the tests: written by Pillow, or by hand where Pillow does not write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image | np.ndarray, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, file_format, **options)
    return file.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *others: bytes, interlace: int = 0) -> bytes:
    """A PNG of ``rows`` without their filter bytes."""
    width = len(rows) // size[1] if size[1] else 0
    filtered = b"".join(b"\0" + rows[start : start + width] for start in range(0, len(rows), width or 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace))
    body = b"".join(others) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(values: np.ndarray, order: str = "<", photometric: int = 2, **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF of one strip, uncompressed unless ``compression=8`` (deflate). Other tags by their number: t274=6."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if tags.get("t259") == 8:
        strip = zlib.compress(strip)
    bits = values.dtype.itemsize * 8
    entries = {256: width, 257: height, 258: (bits,) * samples, 259: 1, 262: photometric, 273: 8, 277: samples}
    entries |= {278: height, 279: len(strip)} | {int(name[1:]): value for name, value in tags.items()}
    start = 8 + len(strip)
    extra_at, table, extra = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, value in sorted(entries.items()):
        shorts = value if isinstance(value, tuple) else None
        if shorts is None:
            table += struct.pack(order + "HHII", tag, 4, 1, value)
        elif len(shorts) < 3:
            table += struct.pack(order + "HHI", tag, 3, len(shorts))
            table += struct.pack(order + f"{len(shorts)}H", *shorts).ljust(4, b"\0")
        else:
            table += struct.pack(order + "HHII", tag, 3, len(shorts), extra_at + len(extra))
            extra += struct.pack(order + f"{len(shorts)}H", *shorts)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        magic
        + struct.pack(order + "I", start)
        + strip
        + struct.pack(order + "H", len(entries))
        + table
        + bytes(4)
        + extra
    )

"""Small inputs of the kinds that people have, made of synthetic pixels."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.images import png as png_of_rows
from tests.images import saved

Files = Mapping[str, bytes]


def images(count: int, side: int = 16, *, grey: bool = False, seed: int = 0) -> list[np.ndarray]:
    """Different smooth pictures, uint8 ``[side, side, 3]`` or, ``grey``, ``[side, side]``, which use all levels."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        small[0, 0], small[3, 3] = 0, 255
        picture = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
        made.append(picture[..., 0] if grey else picture)
    return made


def png(image: np.ndarray) -> bytes:
    return saved(image, "PNG")


def jpeg(image: np.ndarray) -> bytes:
    return saved(image, "JPEG", quality=95)


def tree(folder: Path, files: Files) -> Path:
    """Files by their paths below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar_bytes(files: Files, links: Sequence[tuple[str, bytes, str]] = (), *, closed: bool = True) -> bytes:
    """A tar archive; ``links`` are (name, type, target); one that is not closed has no end mark."""
    buffer = io.BytesIO()
    archive = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115 (left open where it is to have no end)
    for name, content in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    for name, kind, target in links:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    if closed:
        archive.close()
    return buffer.getvalue()


def zip_bytes(files: Files, *, backslashes: bool = False) -> bytes:
    """A zip archive; as old Windows programs write it with backslashes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", "\\") if backslashes else name
            archive.writestr(member, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(*positional: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *positional, **named)  # type: ignore[arg-type]
    return buffer.getvalue()


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def packed_idx(values: np.ndarray, kind: int = 8) -> bytes:
    return gzip.compress(idx(values, kind))


def bmp_with_empty_alpha(image: np.ndarray) -> bytes:
    """A BMP of 32 bits whose fourth byte is 0 everywhere, as screen-capture programs write it."""
    height, width, _ = image.shape
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = image[..., ::-1]
    data = pixels[::-1].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0)
    header += masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + header + data


def bmp_of_16_bits(image: np.ndarray) -> bytes:
    """A BMP of 5, 6 and 5 bits per channel."""
    height, width, _ = image.shape
    red, green, blue = (image[..., channel].astype(np.uint16) for channel in range(3))
    data = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3)[::-1].astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(data), 2835, 2835, 0, 0)
    header += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 66 + len(data), 0, 0, 66) + header + data


def png_of_16_bit_grey(values: np.ndarray, *, alpha: bool) -> bytes:
    """A PNG of uint16 ``[H, W]``, with an alpha channel that hides nothing or without one."""
    if not alpha:
        return saved(values, "PNG")
    rows = np.dstack([values, np.full_like(values, 65535)]).astype(">u2").tobytes()
    return png_of_rows((values.shape[1], values.shape[0]), 16, 4, rows)


def grey_palette(values: np.ndarray, file_format: str) -> bytes:
    """uint8 ``[H, W]`` as a palette image whose colour k is the grey k."""
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([grey for grey in range(256) for _ in range(3)])
    return saved(image, file_format)


def png_of_4_bits(values: np.ndarray) -> bytes:
    """uint8 ``[H, W]`` up to 15 as a grey PNG of 4 bits; W is even."""
    height, width = values.shape
    return png_of_rows((width, height), 4, 0, (values[:, ::2] << 4 | values[:, 1::2]).tobytes())


def pnm(values: np.ndarray, top: int) -> bytes:
    """uint8 or uint16 ``[H, W]`` or ``[H, W, 3]`` as a binary anymap in which ``top`` is white."""
    height, width = values.shape[:2]
    header = f"P{5 if values.ndim == 2 else 6}\n# a comment\n{width} {height}\n{top}\n".encode()
    return header + values.astype(">u2" if top > 255 else np.uint8).tobytes()


def cut_inside(content: bytes) -> bytes:
    """A JPEG with half of its data and an end mark: Pillow decodes the rest as grey."""
    start = content.index(b"\xff\xda")
    return content[: start + (len(content) - start) // 2] + b"\xff\xd9"

"""Decoding JPEG files, where libjpeg's warnings, which Pillow ignores, mean damage or are provably harmless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import simplejpeg

from pipelines.data.decode.headers import BadImage

_PLAIN = frozenset((0xE0, 0xDB, 0xC4, 0xFE, 0xDD))  # JFIF, tables, comment, restart interval
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_SCAN = 0xDA
_END = b"\xff\xd9"
_MODES = {1: "L", 3: "RGB"}
_DAMAGE = ("premature end", "corrupt jpeg data", "inconsistent progression", "bad huffman")
_STRIPS, _TILES, _TABLES, _COMPRESSION, _AS_JPEG = (273, 279), (324, 325), 347, 259, 7


def plain_jpeg(content: bytes) -> tuple[str, tuple[int, int]] | None:
    """Pillow's mode and (width, height) of a JPEG file that is plain; None where Pillow must look closer.

    Plain: 8 bits, grey or three channels, no Exif, profile or Adobe segment, nothing between the segments.
    """
    start, found = 2, None
    while start + 10 < len(content):
        if content[start] != 0xFF:
            return None
        marker, length = content[start + 1], content[start + 2] << 8 | content[start + 3]
        if marker == _SCAN:
            return found
        if marker in _FRAMES:
            mode = _MODES.get(content[start + 9])
            if found or not mode or content[start + 4] != 8:
                return None
            found = mode, (content[start + 7] << 8 | content[start + 8], content[start + 5] << 8 | content[start + 6])
        elif marker not in _PLAIN:
            return None
        start += 2 + length
    return None


def read_jpeg(content: bytes, colours: str, *, least: bool = False) -> np.ndarray | None:
    """The pixels of a JPEG file, as Pillow's in less than half the time.

    Args:
        content: the file.
        colours: ``GRAY``, ``RGB`` or ``CMYK``.
        least: reduce the picture as far as the decoder can, which reads all of the file nonetheless.

    Returns:
        uint8 ``[H, W, C]``; None where the decoder does not know this kind of JPEG.

    Raises ``BadImage`` where pixels are missing: Pillow would hand out grey in their place.
    """
    try:
        return _decode(content, colours, least)
    except ValueError as error:
        if not _is_damage(error):
            return None
        cause = error
    except MemoryError:  # Pillow then says so
        return None
    for tidied in _tidied(content, str(cause)):
        try:
            return _decode(tidied, colours, least)
        except ValueError as error:
            if not _is_damage(error):
                return None
    raise BadImage(_explained(str(cause)))


def _decode(content: bytes, colours: str, least: bool) -> np.ndarray:
    if not least:
        return simplejpeg.decode_jpeg(content, colours)
    return simplejpeg.decode_jpeg(content, colours, min_height=1, min_width=1, min_factor=8)


def _is_damage(error: ValueError) -> bool:
    return any(words in str(error).lower() for words in _DAMAGE)


def _tidied(content: bytes, warning: str) -> Iterator[bytes]:
    """The file without bytes that may be harmless; where they stood for pixels, its data now end too early."""
    if "extraneous" in warning and (tidied := without_padding(content)) != content:
        yield tidied
    if warning.startswith("Premature end of JPEG") and content.endswith(b"\0"):  # a block of a disk, filled up
        whole = content.rstrip(b"\0")
        yield whole + _END
        if whole.endswith(b"\xff"):  # then one zero belongs to the data
            yield whole + b"\0" + _END


def _explained(warning: str) -> str:
    if warning.startswith("Premature end of JPEG"):
        return "truncated JPEG"
    if "premature end of data" in warning:
        return "damaged JPEG: the data of its pixels end too early"
    if "extraneous" in warning:
        return "damaged JPEG: bytes among its data that belong to no pixel"
    return "damaged JPEG: the data of its pixels are corrupt"


def without_padding(content: bytes) -> bytes:
    """The file without bytes between the segments of its header, and without a run of one value before its end.

    Cameras and editors write both. Bytes that stand there for another reason are those of a damaged picture.
    """
    kept, start = [content[:2]], 2
    while start + 4 <= len(content):
        if content[start] != 0xFF or content[start + 1] in (0, 0xFF):
            start += 1
            continue
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        kept.append(content[start:end])
        if content[start + 1] == _SCAN:
            kept.append(_without_run(content[end:]))
            return b"".join(kept)
        start = end
    return content


def _without_run(scans: bytes) -> bytes:
    """The scans, whose last bytes before the end mark may repeat one value."""
    end = scans.rfind(_END)
    if end < 2:
        return scans
    filled = scans[:end]
    stripped = filled.rstrip(filled[-1:])
    return stripped + filled[len(stripped) : len(stripped) + 1] + scans[end:]


def check_jpeg_tiff(tags: Mapping[int, Any], content: bytes) -> None:
    """Raise ``BadImage`` where a JPEG inside a TIFF file is damaged: libtiff goes on, and Pillow does not ask."""
    if tags.get(_COMPRESSION) != _AS_JPEG:
        return
    tables = tags.get(_TABLES) or b"\xff\xd8\xff\xd9"
    offsets, sizes = _STRIPS if _STRIPS[0] in tags else _TILES
    for offset, size in zip(_all(tags.get(offsets)), _all(tags.get(sizes)), strict=False):
        read_jpeg(tables[:-2] + content[offset + 2 : offset + size], "GRAY", least=True)


def _all(values: Any) -> tuple[int, ...]:
    return values if isinstance(values, tuple) else () if values is None else (values,)

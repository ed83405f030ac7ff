"""Spool of decoded images between a source and shards: pixels in one temporary file, all else in memory.

Splits can be cut only when the digest of every image is known, and a set may be larger than memory; so the pixels
wait on disk. About 60 bytes of memory per image.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType

import numpy as np

from fvae.config import ConfigError
from fvae.data.manifest import SPLITS, image_digest

UNSPLIT = -1
"""Split code of an image whose source names none; else the position in ``SPLITS``."""
UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class SpooledImages:
    """What is known of the spooled images, row by row."""

    offsets: np.ndarray
    """int64 ``[N]``: where the pixels start in the file."""
    shapes: np.ndarray
    """int32 ``[N, 3]``: channels, height, width."""
    digests: np.ndarray
    """uint8 ``[N, 32]``: SHA-256 of the pixels, channels first."""
    splits: np.ndarray
    """int8 ``[N]``: position in ``SPLITS``, or :data:`UNSPLIT`."""
    labels: np.ndarray
    """int32 ``[N]``: position in the spool's ``classes``, or :data:`UNLABELLED`."""

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, rows: np.ndarray) -> SpooledImages:
        """The images of ``rows`` (indices or mask)."""
        return SpooledImages(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


class Spool:
    """Collects decoded images; a context manager whose file goes with it, however the block ends."""

    def __init__(self) -> None:
        self.classes: dict[str, int] = {}
        """Class names in order of appearance."""
        # Has no name, so nothing stays after a kill either.
        self._file = tempfile.TemporaryFile(prefix="fvae-ingest-")  # noqa: SIM115 (closed by __exit__)
        self._end = self._count = 0
        self._parts: list[SpooledImages] = []
        self._paths: list[tuple[int, bytes]] = []  # (images so far, the batch's paths, compressed)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        digests: np.ndarray,
        paths: Sequence[str],
        splits: Iterable[str | None],
        labels: Iterable[str | None],
    ) -> None:
        """Add uint8 images ``[N, C, H, W]`` (or N of ``[C, H, W]``) with their digests uint8 ``[N, 32]``
        and their paths in the source.

        Raises ``ConfigError`` where the temporary file's disk is full.
        """
        if not len(images):
            return
        shapes = np.array([image.shape for image in images], np.int32)
        sizes = shapes.prod(axis=1, dtype=np.int64)
        try:
            self._file.write(b"".join(np.ascontiguousarray(image).data for image in images))
        except OSError as error:
            raise _no_room(error) from error
        self._parts.append(
            SpooledImages(
                offsets=self._end + np.concatenate(([0], sizes.cumsum()[:-1])),
                shapes=shapes,
                digests=digests,
                splits=np.array([UNSPLIT if split is None else SPLITS.index(split) for split in splits], np.int8),
                labels=np.array([self._class(label) for label in labels], np.int32),
            )
        )
        self._end += int(sizes.sum())
        self._count += len(images)
        self._paths.append((self._count, zlib.compress("\0".join(paths).encode(errors="surrogateescape"))))

    def images(self) -> SpooledImages:
        """Everything added, in order."""
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error
        if not self._parts:
            empty = np.zeros(0, np.int32)
            return SpooledImages(
                empty.astype(np.int64), np.zeros((0, 3), np.int32), np.zeros((0, 32), np.uint8), empty, empty
            )
        fields = [field.name for field in dataclasses.fields(SpooledImages)]
        whole = SpooledImages(*(np.concatenate([getattr(part, name) for part in self._parts]) for name in fields))
        self._parts = [whole]
        return whole

    def read(self, images: SpooledImages, channels: int) -> np.ndarray:
        """Pixels uint8 ``[N, channels, H, W]`` of images of one size; grey ones are repeated over ``channels``."""
        height, width = (int(side) for side in images.shapes[0, 1:])
        pixels = np.empty((len(images), channels, height, width), np.uint8)
        size = channels * height * width
        whole = pixels.data.cast("B")
        for row, (offset, own) in enumerate(zip(images.offsets.tolist(), images.shapes[:, 0].tolist(), strict=True)):
            if own == channels:
                os.preadv(self._file.fileno(), [whole[row * size : (row + 1) * size]], offset)
            else:
                content = os.pread(self._file.fileno(), height * width, offset)
                pixels[row] = np.frombuffer(content, np.uint8).reshape(1, height, width)  # spreads over the channels
        return pixels

    def path(self, row: int) -> str:
        """Where the image that was added as number ``row`` lies in the source."""
        start = 0
        for end, packed in self._paths:
            if row < end:
                return zlib.decompress(packed).decode(errors="surrogateescape").split("\0")[row - start]
            start = end
        raise IndexError(row)

    def _class(self, label: str | None) -> int:
        return UNLABELLED if label is None else self.classes.setdefault(label, len(self.classes))


def _no_room(error: OSError) -> ConfigError:
    return ConfigError(
        f"temporary folder {tempfile.gettempdir()}: cannot be written ({error.strerror}); make room there, or set "
        "TMPDIR to a folder that has room for the decoded pixels"
    )


def image_digests(images: np.ndarray) -> np.ndarray:
    """SHA-256 of each image's pixels ``[C, H, W]``, uint8 ``[N, 32]``."""
    return np.frombuffer(b"".join(map(image_digest, images)), np.uint8).reshape(-1, 32)


def most_common_size(images: SpooledImages) -> tuple[int, int]:
    """``(height, width)`` of most images; the smaller one of two that are as common."""
    counts = Counter(map(tuple, images.shapes[:, 1:].tolist()))
    return min(counts, key=lambda size: (-counts[size], size))

"""Images in Parquet shards: differences of neighbours, compressed with zstd; lossless.

A shard has the columns ``pixels`` (fixed-size binary: the C·H·W bytes of :func:`difference`) and
``label`` (int32, −1 = none), one row an image. zstd alone saves 2% of raw CIFAR-10 pixels;
differences of neighbours make it 48%, smaller than the same images as PNG.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fvae.config import ConfigError, require
from fvae.data.manifest import FORMAT, Manifest, Shard, require_split

if TYPE_CHECKING:  # pyarrow is imported where a shard is read or written: the model itself runs without
    import pyarrow.parquet as pq

Fetch = Callable[[str], bytes]
"""The bytes of a data set's file, by its key. Raises what its storage raises."""

ENCODING = "difference"
ROW_GROUP = 1024
"""Images per Parquet row group."""
SERIAL = 32768
"""Torch splits loops longer than this over threads, which would take them from the model in training."""


def difference(images: np.ndarray) -> np.ndarray:
    """Differences of neighbouring pixels, mod 256: uint8 ``[N, C, H, W]`` → the same shape.

    Of three channels the middle one is taken from the others; then along H, then along W.
    """
    coded = images.copy()
    if coded.shape[1] == 3:
        coded[:, 0] -= coded[:, 1]
        coded[:, 2] -= coded[:, 1]
    coded[:, :, 1:] -= coded[:, :, :-1].copy()
    coded[..., 1:] -= coded[..., :-1].copy()
    return coded


def undo_difference(coded: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The images of :func:`difference`: uint8 ``[N, C, H, W]``; into ``out`` (C-contiguous) where given."""
    import torch  # its cumsum is three times as fast as numpy's; writing shards does without it

    out = np.empty(coded.shape, np.uint8) if out is None else out
    count, channels, height, width = coded.shape
    at_once = max(1, SERIAL // (channels * max(height, width)))  # also few enough to stay in cache
    scratch = np.empty((min(at_once, count), *coded.shape[1:]), np.uint8)
    for start in range(0, count, at_once):
        part = out[start : start + at_once]
        rows = scratch[: len(part)]
        rows[...] = coded[start : start + at_once]  # ``coded`` may be read-only memory, which torch refuses
        pixels = torch.from_numpy(part)
        torch.cumsum(torch.from_numpy(rows), 3, dtype=torch.uint8, out=pixels)
        torch.cumsum(pixels, 2, dtype=torch.uint8, out=torch.from_numpy(rows))
        part[...] = rows
        if channels == 3:
            part[:, 0] += part[:, 1]
            part[:, 2] += part[:, 1]
    return out


def encode_shard(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A Parquet file of ``images`` uint8 ``[N, C, H, W]`` and ``labels`` int32 ``[N]``; the same bytes each time.

    Raises ``ValueError`` for arrays of another type or shape, or without an image.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(f"images are {images.dtype} {images.shape}; needs uint8 [N, C, H, W], at least one")
    if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; needs int32 [{len(images)}]")
    shape = images.shape[1:]
    size = math.prod(shape)
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(images), [None, pa.py_buffer(difference(np.ascontiguousarray(images)))]
    )
    schema = pa.schema(
        [pa.field("pixels", pa.binary(size), nullable=False), pa.field("label", pa.int32(), nullable=False)]
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        # Not pa.array: that imports pandas where there is one, for half a second.
        label = pa.Array.from_buffers(pa.int32(), len(labels), [None, pa.py_buffer(np.ascontiguousarray(labels))])
        writer.write_table(pa.Table.from_arrays([pixels, label], schema=schema), ROW_GROUP)
        writer.add_key_value_metadata(_metadata(shape))
    return sink.getvalue().to_pybytes()


def decode_shard(
    content: bytes, shape: tuple[int, int, int], out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The images uint8 ``[N, C, H, W]`` and labels int32 ``[N]`` of :func:`encode_shard`'s bytes, in their order.

    The images go into ``out`` (C-contiguous ``[N, C, H, W]``) where given. Raises ``ConfigError``, one line,
    where the bytes are damaged, something else, of another shape, or of another N than ``out``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = math.prod(shape)
    try:
        # Without Arrow's own threads: decoding in the background leaves the cores to the model.
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True)
        _check_layout(file, shape)
        rows = file.metadata.num_rows
        images = np.empty((rows, *shape), np.uint8) if out is None else out
        require(rows == len(images), f"{rows} images, not {len(images)}")
        labels = np.empty(len(images), np.int32)
        row = 0
        for batch in file.iter_batches(ROW_GROUP, use_threads=False):
            end = row + batch.num_rows
            pixels, label = batch.column(0), batch.column(1)
            require(not pixels.null_count and not label.null_count, "a row without pixels or label")
            start = pixels.offset * size
            coded = np.frombuffer(pixels.buffers()[1], np.uint8)[start : start + batch.num_rows * size]
            undo_difference(coded.reshape(-1, *shape), images[row:end])
            labels[row:end] = label.to_numpy()
            row = end
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # ConfigError is a ValueError
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"not a complete shard of a data set ({cause})") from error
    require(row == len(images), f"not a complete shard of a data set ({row} of {len(images)} rows)")
    return images, labels


def _metadata(shape: tuple[int, ...]) -> dict[str, str]:
    return {"fvae.format": str(FORMAT), "shape": ",".join(map(str, shape)), "encoding": ENCODING}


def _check_layout(file: pq.ParquetFile, shape: tuple[int, int, int]) -> None:
    import pyarrow as pa

    found = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
    for key, value in _metadata(shape).items():
        require(found.get(key) == value, f"{key} is {found.get(key)}, not {value}")
    fields = [(field.name, field.type) for field in file.schema_arrow]
    require(fields == [("pixels", pa.binary(math.prod(shape))), ("label", pa.int32())], f"columns are {fields}")


def fetch_shard(
    manifest: Manifest, shard: Shard, fetch: Fetch, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, C, H, W]`` (into ``out`` where given) and labels int32 ``[N]`` of one shard, verified.

    Raises ``ConfigError`` that names the shard where it is missing or not what the manifest says; and what
    ``fetch`` raises.
    """
    try:
        content = fetch(shard.key)
    except FileNotFoundError as error:
        raise ConfigError(f"{shard.key}: missing from the data set; ingest it again") from error
    found = hashlib.sha256(content).hexdigest()
    require(
        found == shard.sha256,
        f"{shard.key}: damaged ({len(content)} bytes of sha256 {found[:8]}…, where the manifest has "
        f"{shard.bytes} bytes of {shard.sha256[:8]}…); ingest the data set again",
    )
    try:
        images, labels = decode_shard(content, manifest.shape, out)
        require(len(images) == shard.images, f"{len(images)} images, where the manifest has {shard.images}")
        # On a GPU the model cannot afford this look: a level out of range would corrupt the figures silently.
        highest = 0 if manifest.bins == 256 else int(images.max())
        require(highest < manifest.bins, f"holds level {highest}, where the manifest has bins={manifest.bins}")
    except ConfigError as error:
        raise ConfigError(f"{shard.key}: {error}") from error
    return images, labels


def load_images(manifest: Manifest, split: str, fetch: Fetch) -> np.ndarray:
    """Every image of a split, in stored order: uint8 ``[N, C, H, W]``. Raises as :func:`fetch_shard`."""
    require_split(split, manifest.counts)
    images = np.empty((manifest.counts[split], *manifest.shape), np.uint8)
    row = 0
    for shard in manifest.of_split(split):
        fetch_shard(manifest, shard, fetch, images[row : row + shard.images])
        row += shard.images
    return images

"""How to keep pixels without loss: bytes per image and µs to write and to read one, for shards of a data set.

    python benchmarks/encoding.py data/cifar10 --images 5000

DATASET is what `python -m pipelines.ingest` wrote. Every encoding holds the same validation images in one Parquet
file in memory; writing and reading include the encoding and its inverse, on one thread.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fvae.data.images import ImageDataset
from fvae.data.shards import decode_shard, encode_shard
from pipelines.data.datasets import load_dataset

Write, Read = Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]


def raw(compression: str) -> tuple[Write, Read]:
    """Pixels as they are, compressed by Parquet."""

    def write(images: np.ndarray) -> bytes:
        flat = np.ascontiguousarray(images).reshape(len(images), -1)
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), len(images), [None, pa.py_buffer(flat)])
        return parquet(pa.table({"pixels": column}), compression)

    def read(content: bytes) -> np.ndarray:
        column = pq.read_table(pa.BufferReader(content), use_threads=False)["pixels"].combine_chunks()
        return np.frombuffer(column.buffers()[1], np.uint8)

    return write, read


def files(image_format: str, **options: bool) -> tuple[Write, Read]:
    """An image file in each row."""

    def write(images: np.ndarray) -> bytes:
        contents = []
        for image in images:
            buffer = io.BytesIO()
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(buffer, image_format, **options)
            contents.append(buffer.getvalue())
        return parquet(pa.table({"image": pa.array(contents, pa.binary())}), "none")

    def read(content: bytes) -> np.ndarray:
        rows = pq.read_table(pa.BufferReader(content), use_threads=False)["image"].to_pylist()
        return np.stack([np.asarray(Image.open(io.BytesIO(row))) for row in rows])

    return write, read


def parquet(table: pa.Table, compression: str) -> bytes:
    """One file, as shards are written: no dictionary, no statistics."""
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression=compression, use_dictionary=False, write_statistics=False, row_group_size=1024
    )
    return sink.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    dataset = load_dataset(options.dataset, "never")
    assert isinstance(dataset, ImageDataset)
    images = dataset.val[: options.images]
    encodings: dict[str, tuple[Write, Read]] = {
        "raw": raw("none"),
        "raw, zstd": raw("zstd"),
        "PNG": files("PNG", optimize=True),
        "WebP, lossless": files("WEBP", lossless=True),
        "differences, zstd (shards)": (
            lambda part: encode_shard(part, np.zeros(len(part), np.int32)),
            lambda content: decode_shard(content, dataset.shape)[0],
        ),
    }
    print(f"{len(images):,} images of {dataset.shape} from {dataset.name}")
    print(f"{'':28}{'bytes/image':>12}{'write µs':>10}{'read µs':>10}")
    for name, (write, read) in encodings.items():
        read(write(images[:100]))  # imports
        started = time.perf_counter()
        content = write(images)
        written = time.perf_counter()
        read(content)
        ended = time.perf_counter()
        per_image = [(written - started) / len(images) * 1e6, (ended - written) / len(images) * 1e6]
        print(f"{name:28}{len(content) / len(images):12,.0f}{per_image[0]:10.1f}{per_image[1]:10.1f}")


if __name__ == "__main__":
    main()

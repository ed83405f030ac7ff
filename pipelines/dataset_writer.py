"""From spooled images to a data set on disk: shards first, the manifest last, then whatever it replaced goes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fvae.config import ConfigError
from fvae.digests import content_hash
from fvae.manifest import MANIFEST, Manifest, Shard
from fvae.shards import encode_shard
from pipelines.spool import Spool, SpooledImages
from pipelines.storage import Storage

SHARD_BYTES = 16 * 2**20
"""Raw pixels of a shard at most: what a reader needs at once, and twice that a writer."""
WRITERS = 2
"""Shards encoded and sent at a time."""
BAD_FILES = "bad-files.csv"
LOCK = ".lock"
OURS = re.compile(r"(train|val|test)-\d{5}-[0-9a-f]{8}\.parquet")


def check_destination(storage: Storage) -> None:
    """Raise ``ConfigError`` where something lies at the destination that no data set of ours put there."""
    for entry in storage.list():
        if not (OURS.fullmatch(entry.key) or entry.key in (MANIFEST, BAD_FILES, LOCK)):
            raise ConfigError(f"{storage.uri}: holds {entry.key}, which is no part of a data set; give an empty place")


def is_whole(storage: Storage, manifest: Manifest) -> bool:
    """Whether every shard of the manifest is there with its size."""
    sizes = {entry.key: entry.size for entry in storage.list()}
    return all(sizes.get(shard.key) == shard.bytes for shard in manifest.shards)


def write_shards(
    storage: Storage,
    spool: Spool,
    images: SpooledImages,
    rows: Mapping[str, np.ndarray],
    channels: int,
    classes: np.ndarray,
    existing: Mapping[str, int],
    written: Callable[[int], None],
) -> tuple[Shard, ...]:
    """Write the images of each split as shards; what ``existing`` holds already (bytes by key) is not sent again.

    Args:
        classes: int32, the label to store by the spool's label; the last entry is for unlabelled images (−1).
        written: told the number of images after each shard.
    """

    def write(split: str, number: int, chosen: np.ndarray) -> Shard:
        part = images.take(chosen)
        content = encode_shard(spool.read(part, channels), classes[part.labels])
        checksum = hashlib.sha256(content).hexdigest()
        key = f"{split}-{number:05d}-{checksum[:8]}.parquet"
        if existing.get(key) != len(content):
            storage.write(key, content)
        return Shard(key=key, split=split, images=len(chosen), bytes=len(content), sha256=checksum)

    shards: list[Shard] = []
    pending: list[Future[Shard]] = []
    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            for split, number, chosen in _parts(rows, channels * int(images.shapes[0, 1:].prod())):
                if len(pending) > WRITERS:  # bounds the memory
                    shards.append(pending.pop(0).result())
                    written(shards[-1].images)
                pending.append(pool.submit(write, split, number, chosen))
            for future in pending:
                shards.append(future.result())
                written(shards[-1].images)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(shards)


def dataset_hash(bins: int, shape: tuple[int, int, int], images: SpooledImages, rows: Mapping[str, np.ndarray]) -> str:
    """The content hash of the images that ``rows`` chose: ``ImageDataset.content_hash`` of the same pixels."""
    return content_hash(bins, shape, {split: map(bytes, images.digests[chosen]) for split, chosen in rows.items()})


def put_in_place(storage: Storage, manifest: Manifest) -> None:
    """Write the manifest, which makes the data set exist, then delete what no longer belongs to it."""
    storage.write(MANIFEST, manifest.to_json().encode())
    belongs = {shard.key for shard in manifest.shards}
    storage.delete(*(entry.key for entry in storage.list() if OURS.fullmatch(entry.key) and entry.key not in belongs))


def _parts(rows: Mapping[str, np.ndarray], image_bytes: int) -> Iterator[tuple[str, int, np.ndarray]]:
    size = max(1, SHARD_BYTES // image_bytes)
    for split, chosen in rows.items():
        for number, start in enumerate(range(0, len(chosen), size)):
            yield split, number, chosen[start : start + size]

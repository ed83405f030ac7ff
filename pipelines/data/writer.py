"""Writing a data set: the destination is checked, shards come first, the manifest last, then what it replaced goes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fvae.config import ConfigError
from fvae.data.manifest import MANIFEST, Manifest, Shard
from fvae.data.shards import encode_shard
from pipelines.data.sources.file_names import is_clutter
from pipelines.data.spool import Spool, SpooledImages
from pipelines.storage import Storage

SHARD_BYTES = 16 * 2**20
"""Raw pixels of a shard at most: what a reader needs at once, and twice that a writer."""
WRITERS = 2
"""Shards encoded and sent at a time."""
BAD_FILES, REFUSED_FILES = "bad-files.csv", "bad-files-refused.csv"
"""Reports of bad files: those of this data set, and those of an ingest that was refused for too many of them."""
LOCK = ".lock"
OURS = re.compile(r"(train|val|test)-\d{5}-[0-9a-f]{8}\.parquet")


def make_folder(storage: Storage) -> None:
    """Make a local destination. Raises ``ConfigError`` where that cannot be."""
    folder = Path(storage.uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); give another place") from error


def require_folder(storage: Storage) -> None:
    """Raise ``ConfigError`` where :func:`make_folder` would, and make nothing."""
    folder = Path(storage.uri)
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if there.is_dir():
            cause = 0 if os.access(there, os.W_OK | os.X_OK) else errno.EACCES
        else:
            cause = errno.EEXIST if there == folder else errno.ENOTDIR
    except OSError as error:
        cause = error.errno or errno.EIO
    if cause:
        raise ConfigError(f"{folder}: cannot be made ({os.strerror(cause)}); give another place")


def check_destination(storage: Storage) -> None:
    """Raise ``ConfigError`` where something lies at the destination that no data set of ours put there.

    What systems leave in every folder may stay.
    """
    for entry in storage.list():
        ours = OURS.fullmatch(entry.key) or entry.key in (MANIFEST, BAD_FILES, REFUSED_FILES, LOCK)
        if not ours and not is_clutter(entry.key, hidden=False):
            raise ConfigError(f"{storage.uri}: holds {entry.key}, which is no part of a data set; give an empty place")


def is_whole(storage: Storage, manifest: Manifest) -> bool:
    """Whether every shard of the manifest is there with its checksum."""
    return all(_holds(storage, shard.key, shard.sha256) for shard in manifest.shards)


def _holds(storage: Storage, key: str, checksum: str) -> bool:
    try:
        return storage.checksum(key) == checksum
    except FileNotFoundError:
        return False


def write_shards(
    storage: Storage,
    spool: Spool,
    images: SpooledImages,
    rows: Mapping[str, np.ndarray],
    channels: int,
    written: Callable[[int], None],
) -> tuple[Shard, ...]:
    """Write the images of each split as shards; one that is there already is not sent again.

    ``written`` is called with the number of images after each shard.
    """
    given_up = threading.Event()

    def write(split: str, number: int, chosen: np.ndarray) -> Shard:
        part = images.take(chosen)
        content = encode_shard(spool.read(part, channels), part.labels)
        checksum = hashlib.sha256(content).hexdigest()
        key = f"{split}-{number:05d}-{checksum[:8]}.parquet"
        with storage.cancelled_by(given_up):
            if not _holds(storage, key, checksum):
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
            given_up.set()  # ends the retries of a store that fails
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(shards)


def put_in_place(storage: Storage, manifest: Manifest, bad_files: bytes) -> None:
    """Write the manifest, which makes the data set exist, and its report of bad files; then delete all else."""
    storage.write(MANIFEST, manifest.to_json().encode())
    if manifest.bad_files:
        storage.write(BAD_FILES, bad_files)
    remove_others(storage, manifest)


def remove_others(storage: Storage, manifest: Manifest) -> None:
    """Delete what an earlier version of the data set, or an ingest that did not end, has left."""
    belongs = {MANIFEST, LOCK, *(shard.key for shard in manifest.shards)}
    if manifest.bad_files:
        belongs.add(BAD_FILES)
    left = (entry.key for entry in storage.list() if entry.key not in belongs)
    storage.delete(*(key for key in left if not is_clutter(key, hidden=False)))


def _parts(rows: Mapping[str, np.ndarray], image_bytes: int) -> Iterator[tuple[str, int, np.ndarray]]:
    size = max(1, SHARD_BYTES // image_bytes)
    for split, chosen in rows.items():
        for number, start in enumerate(range(0, len(chosen), size)):
            yield split, number, chosen[start : start + size]

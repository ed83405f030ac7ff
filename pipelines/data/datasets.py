"""Loading a data set by its name, path or URI: into memory where it fits, otherwise streamed from its shards."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fvae.config import ConfigError, require
from fvae.data.images import Dataset, ImageDataset
from fvae.data.manifest import MANIFEST, SPLITS, Manifest
from fvae.data.shards import load_images
from fvae.data.streaming import StreamedDataset
from pipelines.cli.progress import Steps
from pipelines.cli.run_settings import Streaming
from pipelines.data.ingest import ingest, read_manifest
from pipelines.data.preparation import TooManyBadFiles
from pipelines.data.settings import IngestSettings
from pipelines.data.sources.base import Question
from pipelines.data.sources.opening import EMBEDDED
from pipelines.storage import Storage, open_storage

MEMORY_SHARE = 0.25
"""Share of this machine's memory that a data set may take before it is streamed: the models need the rest."""


def load_dataset(location: str, streaming: Streaming = "auto", say: Callable[[str], None] | None = None) -> Dataset:
    """The data set that ``location`` names.

    A data set made by ``python -m pipelines.ingest`` (a folder or ``s3://bucket/prefix`` with a manifest) is read as it
    is; anything else that ingest understands (``digits``, ``photos``, a folder, an archive …) goes through ingest with
    its defaults on the way, and no file of it may be bad.

    Args:
        location: name, path or URI.
        streaming: ``auto`` streams what would take more than a quarter of this machine's memory.
        say: called with each decision about the images, one line at a time.

    Raises ``ConfigError`` with one line for anything that is no data set, ``StorageError`` for a store that fails.
    """
    require(location != "", "--dataset: empty; give 'digits', 'photos', or a folder, archive or data set")
    storage = None if location in EMBEDDED else _prepared(location)
    if storage is not None:
        manifest = read_manifest(storage)
        if manifest is not None:
            return _open(manifest, storage, streaming)
    require(
        streaming != "always",
        f"--streaming always: {location} must be a data set for that; make one with python -m pipelines.ingest",
    )
    with tempfile.TemporaryDirectory(prefix="fvae-dataset-") as folder:
        manifest = _ingest(location, folder)
        if say is not None and location not in EMBEDDED:
            for decision in manifest.decisions:
                say(f"{manifest.name}: {decision}")
        return _open(manifest, open_storage(folder), "never")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Name, hash, shape, bins and images by split of a data set, as they are kept with figures measured on it."""
    return {
        "name": dataset.name,
        "hash": dataset.content_hash(),
        "shape": list(dataset.shape),
        "bins": dataset.bins,
        **dataset.counts(),
    }


def _prepared(location: str) -> Storage | None:
    """The storage at ``location`` if a manifest lies there."""
    storage = open_storage(location)
    if storage.local_path is None:
        if storage.exists(MANIFEST) and any(entry.key.endswith(".parquet") for entry in storage.list()):
            return storage
        return None
    with contextlib.suppress(OSError):  # no path of this machine: what opens sources says why
        folder = storage.local_path
        # Other people's files are called manifest.json too.
        if (folder / MANIFEST).is_file() and any(folder.glob("*.parquet")):
            return storage
    return None


def _ingest(location: str, folder: str) -> Manifest:
    settings = IngestSettings(source=location, dest=folder, max_bad="0")
    try:
        return ingest(settings, lambda line: None, Steps(Console(quiet=True)))
    except Question as error:
        raise ConfigError(f"{error}: options of python -m pipelines.ingest {shlex.quote(location)} DEST") from error
    except TooManyBadFiles as error:
        raise ConfigError(
            f"{error.summary}; python -m pipelines.ingest {shlex.quote(location)} DEST can leave some out"
        ) from error


def _open(manifest: Manifest, storage: Storage, streaming: Streaming) -> Dataset:
    raw = manifest.images * math.prod(manifest.shape)
    if streaming == "always" or (streaming == "auto" and raw > MEMORY_SHARE * memory_bytes()):
        return StreamedDataset(manifest, storage.read)
    images = {split: load_images(manifest, split, storage.read) for split in SPLITS}
    dataset = ImageDataset(name=manifest.name, bins=manifest.bins, **images)
    found = dataset.content_hash()
    require(
        found == manifest.hash,
        f"{storage.uri}: its pixels hash to {found}, its manifest says {manifest.hash}; ingest it again",
    )
    return dataset


def memory_bytes() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int(Path(path).read_text()))
    return min([physical, *limits])

"""What ingest prints of a data set: one screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from fvae.manifest import Manifest
from pipelines.dataset_writer import BAD_FILES
from pipelines.ingest_settings import IngestSettings


def summary(settings: IngestSettings, manifest: Manifest) -> Iterator[str]:
    """What the data set holds, and how it came about."""
    channels, height, width = manifest.shape
    counts = ", ".join(f"{count:,} {split_name}" for split_name, count in manifest.counts.items())
    stored = sum(shard.bytes for shard in manifest.shards) / manifest.images
    classes = f", {len(manifest.classes)} classes" if manifest.classes else ""
    yield f"{manifest.name}: {counts} images of {width}×{height}×{channels}, {manifest.bins} levels{classes}"
    for decision in manifest.decisions:
        yield f"  - {decision}"
    if manifest.bad_files:
        yield f"  - {manifest.bad_files:,} files could not be used: see {settings.dest.rstrip('/')}/{BAD_FILES}"
    yield f"  - {stored:,.0f} bytes per image in {len(manifest.shards)} shards ({channels * height * width:,} raw)"
    yield f"Content hash {manifest.hash}"
    yield f"Data set in {settings.dest}; search it with: python tune/search.py --dataset {shlex.quote(settings.dest)}"

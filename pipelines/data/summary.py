"""What ingest prints of a data set: one screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from fvae.data.manifest import Manifest
from pipelines.data.preparation import Prepared
from pipelines.data.settings import IngestSettings
from pipelines.data.sources.base import shortened
from pipelines.data.writer import BAD_FILES

LINES = 20
"""Decisions that are printed; all of them are in the manifest."""
CLASSES = 8
"""Class names that are printed."""


def summary(settings: IngestSettings, made: Manifest | Prepared) -> Iterator[str]:
    """What the data set holds or will hold, and how that came about."""
    channels, height, width = made.shape
    counts = ", ".join(f"{count:,} {split_name}" for split_name, count in made.counts.items())
    yield f"{made.name}: {counts} images of {width}×{height}×{channels}, {made.bins} levels"
    yield f"  - {class_line(made.classes)}"
    for decision in made.decisions[:LINES]:
        yield f"  - {decision}"
    if len(made.decisions) > LINES:
        where = "which manifest.json will hold" if isinstance(made, Prepared) else "in manifest.json"
        yield f"  - and {len(made.decisions) - LINES} more decisions, {where}"
    if isinstance(made, Prepared):
        yield f"Content hash {made.hash}"
        yield f"Nothing was written; without --dry-run the data set goes to {settings.dest}"
        return
    if made.bad_files:
        yield f"  - {made.bad_files:,} files could not be used: see {settings.dest.rstrip('/')}/{BAD_FILES}"
    stored = sum(shard.bytes for shard in made.shards) / made.images
    yield f"  - {stored:,.0f} bytes per image in {len(made.shards)} shards ({channels * height * width:,} raw)"
    yield f"Content hash {made.hash}"
    yield f"Data set in {settings.dest}; search it with: python tune/search.py --dataset {shlex.quote(settings.dest)}"


def class_line(classes: Sequence[str]) -> str:
    """``3 classes: cat, dog, horse``; the first and the last where there are many."""
    if not classes:
        return "no classes"
    names = [shortened(name, 30) for name in classes]
    if len(names) > CLASSES:
        names = [*names[: CLASSES - 1], "…", names[-1]]
    return f"{len(classes):,} class{'' if len(classes) == 1 else 'es'}: {', '.join(names)}"

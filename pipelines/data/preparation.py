"""Preparing a data set: every image of the source is decoded, checked, placed in a split, and accounted for."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import Callable

import numpy as np

from fvae.config import ConfigError
from fvae.data.manifest import content_hash
from pipelines.cli.progress import Steps
from pipelines.data.decode.image import describe
from pipelines.data.decode.pool import decode_source
from pipelines.data.decode.value_levels import Seen
from pipelines.data.selection import BadFiles, placed, same_shape
from pipelines.data.settings import IngestSettings, bad_limit
from pipelines.data.sources import Source
from pipelines.data.sources.base import shortened
from pipelines.data.splits import split
from pipelines.data.spool import Spool, SpooledImages
from pipelines.data.value_range import judge

SHOWN = 3
"""Bad files named on the screen; all of them are in the report."""


class TooManyBadFiles(ConfigError):
    """More files than ``--max-bad`` allows are no usable images."""

    def __init__(self, bad: int, files: int, limit: str, shown: str = "", report: str = "") -> None:
        self.summary = f"{bad:,} of {files:,} files cannot be used{f': {shown}' if shown else ''}"
        where = f" (all in {report})" if report else ""
        super().__init__(f"{self.summary}; more than --max-bad {limit}{where}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set that is not written yet."""

    name: str
    shape: tuple[int, int, int]
    """``(C, H, W)`` of every image."""
    bins: int
    """Levels of a pixel."""
    classes: tuple[str, ...]
    images: SpooledImages
    rows: dict[str, np.ndarray]
    """int64 rows of ``images`` by split, in the order of storing."""
    decisions: tuple[str, ...]
    """What was decided on the way, one plain line each."""
    dropped: int
    """Images left out because another split holds the same pixels."""
    bad: BadFiles

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {name: len(chosen) for name, chosen in self.rows.items()}

    @property
    def bad_files(self) -> int:
        """Files that give no image."""
        return len(self.bad)

    @property
    def hash(self) -> str:
        """The content hash: ``ImageDataset.content_hash`` of the same pixels."""
        digests = {split: map(bytes, self.images.digests[chosen]) for split, chosen in self.rows.items()}
        return content_hash(self.bins, self.shape, digests)


def prepare(
    spool: Spool, source: Source, settings: IngestSettings, steps: Steps, report: Callable[[BadFiles], str]
) -> Prepared:
    """Decode all of a source into the spool and decide what becomes of each image.

    Args:
        spool: empty.
        source: where the images come from.
        settings: what is asked for.
        steps: shows the progress.
        report: keeps the bad files where they are too many, and returns the place.

    Raises ``ConfigError`` where the images make no data set.
    """
    decisions, bad, seen = decode_into(spool, source, settings, steps)
    images, shape, more_decisions = same_shape(spool, settings, bad)
    check_bad(bad, len(images) + len(bad), settings.max_bad, report)
    bins, values = judge(seen, source, settings)
    images, classes, placing = placed(images, spool, source, settings.splits)
    splitting = split(
        images.digests, images.splits, images.labels, val=settings.val, test=settings.test, seed=settings.seed
    )
    return Prepared(
        name=settings.name or source.name,
        shape=shape,
        bins=bins,
        classes=classes,
        images=images,
        rows=splitting.rows,
        decisions=(*placing, *splitting.decisions, *values, *decisions, *more_decisions, *causes(bad)),
        dropped=splitting.dropped,
        bad=bad,
    )


def decode_into(
    spool: Spool, source: Source, settings: IngestSettings, steps: Steps
) -> tuple[list[str], BadFiles, Seen]:
    """Decode every image of the source into the spool.

    Returns what was decided on the way, the bad files, and the values that were seen.
    """
    threading.Thread(
        target=importlib.import_module, args=("pyarrow.parquet",), daemon=True
    ).start()  # while others work
    notes: dict[str, int] = {}
    bad: BadFiles = []
    seen = Seen()
    with steps.step("Decoding", source.count(), "images") as advance:
        for batch in decode_source(source, settings.conversion(), settings.processes):
            spool.add(batch.images, batch.digests, batch.paths, batch.splits, batch.labels)
            bad += batch.bad
            seen.merge(batch.seen)
            for note, count in batch.notes.items():
                notes[note] = notes.get(note, 0) + count
            advance(len(batch.images) + len(batch.bad))
    return [*source.notes, *(describe(note, count) for note, count in sorted(notes.items()))], bad, seen


def check_bad(bad: BadFiles, files: int, limit: str, report: Callable[[BadFiles], str]) -> None:
    """Raise ``TooManyBadFiles`` where they are more than the limit; ``report`` keeps them and returns the place."""
    if len(bad) <= bad_limit(limit, files):
        return
    shown = "; ".join(f"{shortened(path)}: {cause}" for path, cause in bad[:SHOWN])
    raise TooManyBadFiles(len(bad), files, limit, shown + ("; …" if len(bad) > SHOWN else ""), report(bad))


def causes(bad: BadFiles) -> list[str]:
    """The most frequent causes of bad files, a line each with the first file."""
    first: dict[str, tuple[int, str]] = {}
    for path, cause in bad:
        count, example = first.get(cause, (0, path))
        first[cause] = count + 1, example
    ranked = sorted(first.items(), key=lambda item: (-item[1][0], item[0]))
    lines = []
    for cause, (count, path) in ranked[:SHOWN]:
        files, example = ("file", "") if count == 1 else ("files", "first: ")
        lines.append(f"{count:,} {files} left out: {cause} ({example}{shortened(path)})")
    more = len(bad) - sum(count for _, (count, _) in ranked[:SHOWN])
    return [*lines, f"{more:,} more files left out for other reasons"] if more else lines

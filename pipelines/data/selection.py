"""Selection of the decoded images that make the data set, and the split and the class of each."""

from __future__ import annotations

import dataclasses

import numpy as np

from fvae.config import ConfigError
from fvae.data.manifest import SPLITS
from pipelines.data.settings import IngestSettings
from pipelines.data.sources import Source
from pipelines.data.sources.base import LEFT_OUT, shortened
from pipelines.data.sources.image_files import left_out_line
from pipelines.data.spool import UNSPLIT, Spool, SpooledImages, image_digests, most_common_size

BadFiles = list[tuple[str, str]]
"""Path and cause of each file that gives no image."""
_LEFT_OUT = -2
"""Split code of an image that an explicit ``--splits`` does not name."""


def same_shape(
    spool: Spool, settings: IngestSettings, bad: BadFiles
) -> tuple[SpooledImages, tuple[int, int, int], list[str]]:
    """The images of the most common size, in one number of channels; the others join the bad files."""
    images = spool.images()
    if not len(images):
        first = f" (first: {shortened(bad[0][0])}: {bad[0][1]})" if bad else ""
        raise ConfigError(f"{settings.source}: no usable image in it; {len(bad)} bad files{first}")
    height, width = most_common_size(images)
    fits = (images.shapes[:, 1:] == (height, width)).all(axis=1)
    for row in np.flatnonzero(~fits).tolist():
        _, own_height, own_width = images.shapes[row].tolist()
        cause = f"{own_width}×{own_height} where most images are {width}×{height}; --size makes them equal"
        bad.append((spool.path(row), cause))
    images = images.take(np.flatnonzero(fits))
    channels = int(images.shapes[:, 0].max())
    grey = np.flatnonzero(images.shapes[:, 0] < channels)
    decisions = []
    if len(grey):
        digests = images.digests.copy()
        for start in range(0, len(grey), 1024):
            rows = grey[start : start + 1024]
            digests[rows] = image_digests(spool.read(images.take(rows), channels))
        images = dataclasses.replace(images, digests=digests)
        decisions.append(f"{len(grey):,} grey images in a colour set: grey repeated in all three channels")
    return images, (channels, height, width), decisions


def placed(
    images: SpooledImages, spool: Spool, source: Source, splits: str
) -> tuple[SpooledImages, tuple[str, ...], list[str]]:
    """The images with their splits, labelled by position in the sorted class names: no order of the source changes it.

    What an explicit ``--splits`` leaves out goes. Returns the images, the names of the classes, and what was decided.
    """
    labels = list(spool.classes)
    # The last one of each list is for images without a label.
    stands_for = np.array([_split_code(source.split_of(label)) for label in labels] + [UNSPLIT], np.int8)
    codes = np.where(images.splits == UNSPLIT, stands_for[images.labels], images.splits)
    kept = np.flatnonzero(codes != _LEFT_OUT)
    decisions = left_out_line(len(images) - len(kept))
    codes = np.full_like(codes, UNSPLIT) if splits == "none" else codes
    images = dataclasses.replace(images, splits=codes).take(kept)
    of_label = [source.class_of(label) for label in labels]
    names = sorted({name for name in of_label if name is not None}, key=natural)
    position = {name: row for row, name in enumerate(names)}
    positions = np.array([-1 if name is None else position[name] for name in of_label] + [-1], np.int32)
    decisions += [] if splits == "none" else origins_line(source)
    return dataclasses.replace(images, labels=positions[images.labels]), tuple(names), decisions


def _split_code(split: str | None) -> int:
    return UNSPLIT if split is None else _LEFT_OUT if split == LEFT_OUT else SPLITS.index(split)


def origins_line(source: Source) -> list[str]:
    """Which folder became which split: ``train = train_64x64, val = valid_64x64``; none where names say nothing."""
    named = []
    for name in SPLITS:
        if origins := source.origins.get(name):
            more = f" and {len(origins) - 4:,} more" if len(origins) > 4 else ""
            named.append(f"{name} = {', '.join(map(shortened, origins[:4]))}{more}")
    return [f"splits as the source names them: {'; '.join(named)}"] if named else []


def natural(name: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10, and numbers before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)

"""Any set of images to a data set that laptops and clusters read alike: Parquet shards and a manifest.

    python -m pipelines.ingest photos/ data/photos --size 32       # a folder, archive, IDX, CIFAR, NumPy, Parquet
    python -m pipelines.ingest cifar10.tar.gz s3://bucket/cifar10  # to S3, without unpacking
    python tune/search.py --dataset s3://bucket/cifar10

What is read, what happens to an image, and the format of the data set: docs/datasets.md.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from fvae.config import ConfigError
from fvae.manifest import FORMAT, MANIFEST, SPLITS, Manifest
from pipelines import command_line
from pipelines.dataset_writer import (
    BAD_FILES,
    LOCK,
    REFUSED_FILES,
    check_destination,
    dataset_hash,
    is_whole,
    put_in_place,
    remove_others,
    write_shards,
)
from pipelines.decode_source import decode_source
from pipelines.decoding import describe
from pipelines.ingest_settings import IngestSettings, bad_limit, require_apart
from pipelines.lease import Lease, LeaseTaken, exclusive
from pipelines.progress import Steps, WarningLines
from pipelines.sources import Source, open_source
from pipelines.sources.base import shortened
from pipelines.sources.image_files import left_out_line
from pipelines.sources.layout import LEFT_OUT
from pipelines.splitting import split
from pipelines.spool import UNSPLIT, Spool, SpooledImages, image_digests, most_common_size
from pipelines.storage import Storage, is_remote, open_storage

SHOWN = 3
"""Bad files named on the screen; all of them are in the report."""

_LEFT_OUT = -2
"""Split code of an image that an explicit ``--splits`` does not name."""

BadFiles = list[tuple[str, str]]


class TooManyBadFiles(ConfigError):
    """More files than ``--max-bad`` allows are no usable images."""

    def __init__(self, bad: int, files: int, limit: str, shown: str = "", report: str = "") -> None:
        self.summary = f"{bad:,} of {files:,} files cannot be used{f': {shown}' if shown else ''}"
        where = f" (all in {report})" if report else ""
        super().__init__(f"{self.summary}; more than --max-bad {limit}{where}")


Say = Callable[[str], None]


def ingest(settings: IngestSettings, say: Say, steps: Steps) -> Manifest:
    """Make the data set, or find that it is there. Returns its manifest.

    Raises ``ConfigError`` for a source or destination that will not do, ``StorageError`` for a store that fails.
    """
    source = open_source(settings.source, settings.splits)
    storage = open_storage(settings.dest)
    require_apart(settings)
    if not is_remote(settings.dest):
        make_folder(storage)
    try:
        with exclusive(storage, LOCK) as lease:
            return _ingest(settings, source, storage, lease, say, steps)
    except LeaseTaken as taken:
        raise ConfigError(f"another ingest is writing there: {taken}") from None


def _ingest(
    settings: IngestSettings, source: Source, storage: Storage, lease: Lease, say: Say, steps: Steps
) -> Manifest:
    check_destination(storage)
    storage.clean_up()  # of a command that was killed: with the lease held, nobody else is writing here
    previous = read_manifest(storage)
    name = settings.name or source.name
    description = {"kind": source.kind, "location": settings.source, "fingerprint": source.fingerprint()}
    wanted = {"source": description, "settings": settings.in_manifest(), "name": name}
    if previous and wanted == {key: getattr(previous, key) for key in wanted} and is_whole(storage, previous):
        if previous.bad_files > bad_limit(settings.max_bad, previous.bad_files + previous.images):
            raise TooManyBadFiles(previous.bad_files, previous.bad_files + previous.images, settings.max_bad)
        remove_others(storage, previous)
        say(f"Unchanged: {storage.uri} was made of this source with these settings; nothing to do.")
        return previous

    with Spool() as spool:
        decisions, bad = decode_into(spool, source, settings, steps)
        images, shape, more_decisions = same_shape(spool, settings, bad)
        report_too_many(storage, bad, len(images) + len(bad), settings.max_bad)
        images, classes, placing = placed(images, spool, source, settings.splits)
        splitting = split(
            images.digests, images.splits, images.labels, val=settings.val, test=settings.test, seed=settings.seed
        )
        decisions += [*more_decisions, *placing, *splitting.decisions]
        counts = {split_name: len(rows) for split_name, rows in splitting.rows.items()}
        with steps.step("Writing", sum(counts.values()), "images") as advance:
            shards = write_shards(storage, spool, images, splitting.rows, shape[0], advance)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            shape=shape,
            bins=source.bins,
            counts=counts,
            classes=classes,
            hash=dataset_hash(source.bins, shape, images, splitting.rows),
            shards=shards,
            source=description,
            settings=settings.in_manifest(),
            decisions=tuple(decisions),
            duplicates_dropped=splitting.dropped,
            bad_files=len(bad),
        )
        lease.check()
        put_in_place(storage, manifest, as_csv(bad))
    if previous and previous.hash == manifest.hash:
        say("The same images as before, to the pixel: the content hash is unchanged.")
    return manifest


def decode_into(spool: Spool, source: Source, settings: IngestSettings, steps: Steps) -> tuple[list[str], BadFiles]:
    """Decode every image of the source into the spool. Returns what was decided on the way, and the bad files."""
    threading.Thread(
        target=importlib.import_module, args=("pyarrow.parquet",), daemon=True
    ).start()  # while others work
    notes: dict[str, int] = {}
    bad: BadFiles = []
    with steps.step("Decoding", source.count(), "images") as advance:
        for batch in decode_source(source, settings.conversion(), settings.processes):
            spool.add(batch.images, batch.digests, batch.paths, batch.splits, batch.labels)
            bad += batch.bad
            for note, count in batch.notes.items():
                notes[note] = notes.get(note, 0) + count
            advance(len(batch.images) + len(batch.bad))
    return [*source.notes, *(describe(note, count) for note, count in sorted(notes.items()))], bad


def same_shape(
    spool: Spool, settings: IngestSettings, bad: BadFiles
) -> tuple[SpooledImages, tuple[int, int, int], list[str]]:
    """The images of the most common size, in one number of channels; the others join the bad files."""
    images = spool.images()
    if not len(images):
        first = f" (first: {bad[0][0]}: {bad[0][1]})" if bad else ""
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


def read_manifest(storage: Storage) -> Manifest | None:
    """The manifest at a place, if there is one. Raises ``ConfigError`` where it is damaged."""
    try:
        return Manifest.from_json(storage.read(MANIFEST).decode(errors="replace"))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(f"{storage.uri}/{MANIFEST}: {error}; remove it to make the data set again") from error


def as_csv(bad: BadFiles) -> bytes:
    """The report of bad files: path and cause."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "cause"), *bad] if bad else [])
    return text.getvalue().encode()


def report_too_many(storage: Storage, bad: BadFiles, files: int, limit: str) -> None:
    """Raise ``TooManyBadFiles`` where they are more than the limit, with a report of its own beside the data set."""
    if len(bad) <= bad_limit(limit, files):
        return
    storage.write(REFUSED_FILES, as_csv(bad))
    shown = "; ".join(f"{path}: {cause}" for path, cause in bad[:SHOWN]) + ("; …" if len(bad) > SHOWN else "")
    raise TooManyBadFiles(len(bad), files, limit, shown, f"{storage.uri}/{REFUSED_FILES}")


def make_folder(storage: Storage) -> None:
    """Make a local destination. Raises ``ConfigError`` where that cannot be."""
    folder = Path(storage.uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); give another place") from error


def main(settings: IngestSettings) -> int:
    """Ingest, and say what was done. Returns the exit status."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with WarningLines(console):
        manifest = ingest(settings, say, Steps(console))
    for line in summary(settings, manifest):
        say(line)
    return 0


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


if __name__ == "__main__":
    command_line.run(main, IngestSettings)

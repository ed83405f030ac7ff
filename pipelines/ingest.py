"""Any set of images to a data set that laptops and clusters read alike: Parquet shards and a manifest.

    python -m pipelines.ingest photos/ data/photos --size 32       # a folder, archive, IDX, CIFAR, NumPy, Parquet
    python -m pipelines.ingest cifar10.tar.gz s3://bucket/cifar10  # to S3, without unpacking
    python tune/search.py --dataset s3://bucket/cifar10

What is read, what happens to an image, and the format of the data set: docs/datasets.md.
"""

from __future__ import annotations

import csv
import importlib
import io
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fvae.config import ConfigError
from fvae.manifest import FORMAT, MANIFEST, Manifest
from pipelines import command_line
from pipelines.dataset_writer import (
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
from pipelines.ingest_summary import summary
from pipelines.lease import Lease, LeaseTaken, exclusive
from pipelines.placing import BadFiles, placed, same_shape
from pipelines.progress import Steps, WarningLines
from pipelines.sources import Source, open_source
from pipelines.splitting import split
from pipelines.spool import Spool
from pipelines.storage import Storage, is_remote, open_storage
from pipelines.value_levels import Seen
from pipelines.value_range import judge, require_range

SHOWN = 3
"""Bad files named on the screen; all of them are in the report."""


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
    require_range(source, settings)
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
        decisions, bad, seen = decode_into(spool, source, settings, steps)
        images, shape, more_decisions = same_shape(spool, settings, bad)
        report_too_many(storage, bad, len(images) + len(bad), settings.max_bad)
        bins, values = judge(seen, source, settings)
        images, classes, placing = placed(images, spool, source, settings.splits)
        splitting = split(
            images.digests, images.splits, images.labels, val=settings.val, test=settings.test, seed=settings.seed
        )
        decisions += [*values, *more_decisions, *placing, *splitting.decisions]
        counts = {split_name: len(rows) for split_name, rows in splitting.rows.items()}
        with steps.step("Writing", sum(counts.values()), "images") as advance:
            shards = write_shards(storage, spool, images, splitting.rows, shape[0], advance)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            shape=shape,
            bins=bins,
            counts=counts,
            classes=classes,
            hash=dataset_hash(bins, shape, images, splitting.rows),
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


if __name__ == "__main__":
    command_line.run(main, IngestSettings)

"""Ingesting a source: it is decoded, split and written as a data set, or found unchanged; and the printed summary."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Iterator, Sequence

from fvae.config import ConfigError
from fvae.data.manifest import FORMAT, MANIFEST, Manifest
from pipelines.cli.progress import Steps
from pipelines.data.preparation import Prepared, TooManyBadFiles, prepare
from pipelines.data.selection import BadFiles
from pipelines.data.settings import IngestSettings, bad_limit, require_apart
from pipelines.data.sources import Source, open_source
from pipelines.data.sources.base import shortened
from pipelines.data.spool import Spool
from pipelines.data.value_range import require_range
from pipelines.data.writer import (
    BAD_FILES,
    LOCK,
    REFUSED_FILES,
    check_destination,
    is_whole,
    make_folder,
    put_in_place,
    remove_others,
    require_folder,
    write_shards,
)
from pipelines.storage import Storage, is_remote, open_storage
from pipelines.storage.lease import Lease, LeaseTaken, exclusive

Say = Callable[[str], None]
READER = 3
"""Version of what is made of a source: a data set of another one is made again, even if the source is unchanged."""
LINES = 20
"""Decisions that are printed; all of them are in the manifest."""
CLASSES = 8
"""Class names that are printed."""


def ingest(settings: IngestSettings, say: Say, steps: Steps) -> Manifest:
    """Make the data set, or find that it is there. Returns its manifest.

    Raises ``ConfigError`` for a source or destination that will not do, ``StorageError`` for a store that fails.
    """
    source, storage = _open(settings)
    if not is_remote(settings.dest):
        make_folder(storage)
    try:
        with exclusive(storage, LOCK) as lease:
            return _ingest(settings, source, storage, lease, say, steps)
    except LeaseTaken as taken:
        raise ConfigError(f"another ingest is writing there: {taken}") from None


def rehearse(settings: IngestSettings, say: Say, steps: Steps) -> None:
    """Print what :func:`ingest` would make, and write nothing. Raises what it raises."""
    source, storage = _open(settings)
    if not is_remote(settings.dest):
        require_folder(storage)
    check_destination(storage)
    with Spool() as spool:
        for line in summary(settings, prepare(spool, source, settings, steps, lambda bad: "")):
            say(line)


def _open(settings: IngestSettings) -> tuple[Source, Storage]:
    source = open_source(settings.source, settings.splits, anonymous=settings.anonymous)
    storage = open_storage(settings.dest)
    require_apart(settings)
    require_range(source, settings)
    return source, storage


def _ingest(
    settings: IngestSettings, source: Source, storage: Storage, lease: Lease, say: Say, steps: Steps
) -> Manifest:
    check_destination(storage)
    storage.clean_up()  # of a command that was killed: with the lease held, no other one is writing here
    previous = read_manifest(storage)
    name = settings.name or source.name
    description = {
        "kind": source.kind,
        "location": settings.source,
        "fingerprint": source.fingerprint(),
        "reader": READER,
    }
    wanted = {"source": description, "settings": settings.in_manifest(), "name": name}
    if previous and wanted == {key: getattr(previous, key) for key in wanted} and is_whole(storage, previous):
        if previous.bad_files > bad_limit(settings.max_bad, previous.bad_files + previous.images):
            raise TooManyBadFiles(previous.bad_files, previous.bad_files + previous.images, settings.max_bad)
        remove_others(storage, previous)
        say(f"Unchanged: {storage.uri} was made of this source with these settings; nothing to do.")
        return previous

    def report(bad: BadFiles) -> str:
        storage.write(REFUSED_FILES, as_csv(bad))
        return f"{storage.uri}/{REFUSED_FILES}"

    with Spool() as spool:
        made = prepare(spool, source, settings, steps, report)
        with steps.step("Writing", sum(made.counts.values()), "images") as advance:
            shards = write_shards(storage, spool, made.images, made.rows, made.shape[0], advance)
        manifest = Manifest(
            format=FORMAT,
            name=made.name,
            shape=made.shape,
            bins=made.bins,
            counts=made.counts,
            classes=made.classes,
            hash=made.hash,
            shards=shards,
            source=description,
            settings=settings.in_manifest(),
            decisions=made.decisions,
            duplicates_dropped=made.dropped,
            bad_files=made.bad_files,
        )
        lease.check()
        put_in_place(storage, manifest, as_csv(made.bad))
    if previous and previous.hash == manifest.hash:
        say("The same images as before, to the pixel: the content hash is unchanged.")
    return manifest


def read_manifest(storage: Storage) -> Manifest | None:
    """The manifest at a place, if there is one. Raises ``ConfigError`` where it is damaged."""
    try:
        return Manifest.from_json(storage.read(MANIFEST).decode(errors="replace"))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(f"{storage.uri}/{MANIFEST}: {error}; remove it to make the data set again") from error


def as_csv(bad: BadFiles) -> bytes:
    """The report of bad files as CSV: path and cause."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "cause"), *bad] if bad else [])
    return text.getvalue().encode()


def summary(settings: IngestSettings, made: Manifest | Prepared) -> Iterator[str]:
    """Lines on what the data set holds or will hold, and on each decision about the images; one screen."""
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

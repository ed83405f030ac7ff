"""An ingest: a source decoded, split and written as a data set, or found unchanged."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

from fvae.config import ConfigError
from fvae.data.manifest import FORMAT, MANIFEST, Manifest
from pipelines.cli.progress import Steps
from pipelines.data.preparation import TooManyBadFiles, prepare
from pipelines.data.selection import BadFiles
from pipelines.data.settings import IngestSettings, bad_limit, require_apart
from pipelines.data.sources import Source, open_source
from pipelines.data.spool import Spool
from pipelines.data.summary import summary
from pipelines.data.value_range import require_range
from pipelines.data.writer import (
    LOCK,
    REFUSED_FILES,
    check_destination,
    is_whole,
    put_in_place,
    remove_others,
    write_shards,
)
from pipelines.storage import Storage, is_remote, open_storage
from pipelines.storage.lease import Lease, LeaseTaken, exclusive

Say = Callable[[str], None]
READER = 3
"""Version of what is made of a source: a data set of another one is made again, even if the source is unchanged."""


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
    """Say what :func:`ingest` would make, and write nothing. Raises what it raises."""
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
    storage.clean_up()  # of a command that was killed: with the lease held, nobody else is writing here
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
    """The report of bad files: path and cause."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "cause"), *bad] if bad else [])
    return text.getvalue().encode()


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

"""Choice of the reader for the files of a folder, a prefix of a store or a zip archive."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from fvae.config import require
from pipelines.data.sources.archives import ARCHIVE_SUFFIX, Found, Oddities, members_of_all
from pipelines.data.sources.base import Source, digest, printable, suffix_of
from pipelines.data.sources.files import Files
from pipelines.data.sources.image_files import ImageStream, ImageTree, no_images
from pipelines.data.sources.splits.option import SplitOption
from pipelines.data.sources.streams import OneFile

OpenFile = Callable[[str, OneFile], Source]
"""Opens a file by its name."""


def from_files(name: str, files: Files, splits: SplitOption, open_file: OpenFile) -> Source:
    """The source that some files make.

    Args:
        name: of the source.
        files: all of them.
        splits: what the user says about splits.
        open_file: what opens a file, where there is a single one to be read.

    Raises ``ConfigError`` where there is nothing to read, or where files of several kinds lie together.
    """
    from pipelines.data.sources.shards import Shards, is_data_set
    from pipelines.data.sources.tables import EncodedRows

    name = printable(name)
    if is_data_set(files):
        return Shards(name, files)
    images = [entry.key for entry in files.images]
    others = {entry.key for entry in files.entries} - {entry.key for entry in files.images}
    tables, notes = _tables(files, sorted(others), beside=bool(images))
    special = _folders_of_arrays(sorted(others))
    kinds = {
        "image files": images[:1],
        "Parquet files": tables[:1],
        "IDX or CIFAR files": [f"in {folder or 'it'}" for folder in special[:1]],
    }
    held = [f"{kind} ({example})" for kind, examples in kinds.items() for example in examples]
    require(len(held) < 2, f"{files.where}: holds {' and '.join(held)}; give the folder of one kind")
    if special:
        return _from_folders_of_arrays(name, files, special)
    if images:
        return ImageTree(name, files, splits, notes)
    if tables:
        return EncodedRows(name, [(key, files.file(key)) for key in tables], files.where, splits, notes)
    return _from_packed(name, files, sorted(others), splits, open_file, notes)


def _tables(files: Files, keys: Sequence[str], *, beside: bool) -> tuple[list[str], list[str]]:
    """The Parquet or Arrow files that hold images, and the notes on the others.

    Args:
        files: all of them.
        keys: of all files that are no images.
        beside: whether image files lie beside them.
    """
    from pipelines.data.sources.table_files import holds_images
    from pipelines.data.sources.tables import SUFFIXES

    found = [key for key in keys if suffix_of(key) in SUFFIXES and not key.rpartition("/")[2].startswith("cache-")]
    # Spark, Delta Lake and Hive keep their own tables in such folders.
    kept = [key for key in found if not any(part.startswith("_") for part in key.split("/"))] or found
    ignored = len(found) - len(kept)
    notes = [f"{ignored:,} table{'' if ignored == 1 else 's'} below folders called _… ignored"] if ignored else []
    packed = any(ARCHIVE_SUFFIX.search(key) for key in keys)
    if kept and (beside or packed) and not holds_images(files.file(kept[0])):
        return [], [*notes, f"tables without images ignored: {suffix_of(kept[0])} ×{len(kept):,}"]
    return kept, notes


def _from_packed(
    name: str, files: Files, keys: Sequence[str], splits: SplitOption, open_file: OpenFile, notes: Sequence[str]
) -> Source:
    """What lies in archives or in NumPy's files."""
    from pipelines.data.sources.arrays import array_folder

    archives = [key for key in keys if ARCHIVE_SUFFIX.search(key)]
    arrays = [key for key in keys if key.lower().endswith((".npy", ".npz"))]
    kinds = f"archives ({archives[0]}) and arrays ({arrays[0]})" if archives and arrays else ""
    require(not kinds, f"{files.where}: holds {kinds}; give the folder of one kind")
    packed = archives or arrays
    if len(packed) == 1:
        return open_file(packed[0], files.file(packed[0]))
    if arrays:
        return array_folder(name, files, arrays, splits)
    if archives:
        opened = [(key, files.file(key)) for key in archives]

        def walk(oddities: Oddities) -> Iterator[Found]:
            return members_of_all(opened, oddities)

        def fingerprint() -> str:
            return digest(*(part for key, file in opened for part in (key, file.fingerprint())))

        return ImageStream(name, "archives of images", files.where, splits, walk, fingerprint, notes=notes)
    if files.bad:
        return ImageTree(name, files, splits)
    raise no_images(files.where, Counter(suffix_of(entry.key) for entry in files.entries), files.clutter)


# --- IDX and CIFAR ----------------------------------------------------------------------------------------


def _from_folders_of_arrays(name: str, files: Files, folders: Sequence[str]) -> Source:
    from pipelines.data.sources.cifar import cifar_files
    from pipelines.data.sources.cifar_formats import format_of
    from pipelines.data.sources.idx import idx_folder, is_idx_name

    bases = {folder: [key.removeprefix(folder) for key in _in_folder(files, folder)] for folder in folders}
    copies = _copies(files, bases)
    kept = [folder for folder in folders if folder not in copies]
    both = " and in ".join(folder or "it" for folder in kept[:2])
    require(len(kept) < 2, f"{files.where}: IDX or CIFAR files in {both}; give one of them")
    (folder,) = kept
    notes = [f"files that lie there twice read once: those in {', '.join(copies)} ignored"] if copies else []
    if any(is_idx_name(base) for base in bases[folder]):
        return idx_folder(name, files, folder, notes)
    form = format_of(bases[folder])
    assert form is not None
    return cifar_files(name, files, form, folder, notes)


def _in_folder(files: Files, folder: str) -> list[str]:
    return [entry.key for entry in files.entries if entry.key.rpartition("/")[0] == folder.rstrip("/")]


def _copies(files: Files, bases: dict[str, list[str]]) -> list[str]:
    """Folders of which every file lies in another of the folders, too: the same bytes, the name but for punctuation."""
    if len(bases) < 2:
        return []

    def known(folder: str) -> set[tuple[str, str]]:
        found = set()
        for base in bases[folder]:
            with files.file(folder + base).open() as content:
                found.add((re.sub(r"[-_.]", "", base.lower()), _digest_of(content)))
        return found

    held = {folder: known(folder) for folder in bases}
    largest = max(held, key=lambda folder: (len(held[folder]), -len(folder)))
    return sorted(folder for folder in held if folder != largest and held[folder] <= held[largest])


def _digest_of(content: BinaryIO) -> str:
    total = hashlib.sha256()
    while part := content.read(1 << 20):
        total.update(part)
    return total.hexdigest()


def _folders_of_arrays(keys: Sequence[str]) -> list[str]:
    """The folders (``""``, or with a last ``/``) that hold IDX files or CIFAR batches, sorted."""
    from pipelines.data.sources.cifar_formats import format_of
    from pipelines.data.sources.idx import is_idx_name

    folders: dict[str, list[str]] = {}
    for key in keys:
        folder, slash, base = key.rpartition("/")
        folders.setdefault(folder + slash, []).append(base)
    return sorted(f for f, bases in folders.items() if format_of(bases) or any(is_idx_name(base) for base in bases))

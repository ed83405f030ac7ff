"""Opening a source: the choice of the reader of a path or a URI, by its content."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
from collections import Counter
from pathlib import Path

from fvae.config import ConfigError, require
from pipelines.data.sources.archives import DEEPEST, TAR_SUFFIX, too_deep
from pipelines.data.sources.base import Source, kept_name, printable, suffix_of
from pipelines.data.sources.file_names import HEAD, Clutter, is_image, is_image_content, may_be_image
from pipelines.data.sources.files import Files, StoredFiles
from pipelines.data.sources.folder_kinds import from_files
from pipelines.data.sources.folders import LocalFiles
from pipelines.data.sources.image_files import ImageStream, image_tar, no_images
from pipelines.data.sources.splits.option import SplitOption
from pipelines.data.sources.streams import OneFile, local_file, stored_file, whole_or_refused
from pipelines.data.sources.tars import TarReader
from pipelines.data.sources.zips import ZipFiles
from pipelines.storage import is_remote, open_storage

EMBEDDED = ("digits", "photos")
_SUFFIXES = re.compile(
    r"\.(tar|tgz|tbz2?|txz|zip|gz|bz2|xz|npz|npy|parquet|idx\d[-.]ubyte|ubyte)$|[-.]idx\d[-.]ubyte$", re.IGNORECASE
)
_REFUSED = (
    (b"Rar!", "a RAR archive; pack it as .tar.gz or .zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; pack it as .tar.gz or .zip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; pack it as .tar.gz or .zip"),
    (b"\x89HDF", "an HDF5 file; save its images with np.savez"),
    (b"MATLAB", "a MATLAB file; save its images with np.savez"),
    (b"\x89PNG", "one image; give the folder or the archive that holds them all"),
    (b"\xff\xd8\xff", "one image; give the folder or the archive that holds them all"),
    (b"GIF8", "a GIF; needs a folder or an archive of .png, .jpg, .webp, .bmp or .tif files"),
    (b"\x80\x02", "a pickle; only CIFAR's are read: give the folder that holds all batches"),
    (b"\x80\x03", "a pickle; only CIFAR's are read: give the folder that holds all batches"),
    (b"\x80\x04", "a pickle; only CIFAR's are read: give the folder that holds all batches"),
    (b"\x80\x05", "a pickle; only CIFAR's are read: give the folder that holds all batches"),
)
_READ = "a folder, .tar, .tar.gz, .zip, IDX, .npy, .npz or Parquet file of images, or 'digits' or 'photos'"


def open_any(location: str, splits: str = "auto", *, anonymous: bool = False) -> Source:
    """See :func:`pipelines.data.sources.open_source`."""
    asked = SplitOption(splits)
    source = _open(location, asked, anonymous)
    require(
        not asked.patterns or bool(source.origins) or isinstance(source, ImageStream),
        f"--splits={splits!r}: {location} holds {source.kind}, which name their splits in their own way; "
        "give auto, or none to cut all of them anew",
    )
    return source


def _open(location: str, splits: SplitOption, anonymous: bool) -> Source:
    require(isinstance(location, str) and location.strip() != "", f"source {location!r}: give {_READ}")
    if location == "digits":
        from pipelines.data.sources.embedded import Digits

        return Digits()
    if location == "photos":
        from pipelines.data.sources.embedded import Photos

        return Photos()
    if is_remote(location):
        return _open_remote(location, splits, anonymous)
    require(not anonymous, f"--anonymous: {location} lies on this machine; it is for sources on s3://")
    return _open_local(location, splits)


def _open_local(location: str, splits: SplitOption) -> Source:
    path = Path(location)
    with contextlib.suppress(RuntimeError):  # no such user: then it is a name like any other
        path = path.expanduser()
    try:
        if path.is_dir():
            return _from_many(path.resolve().name or "root", LocalFiles(path, location), splits)
        if path.exists():
            require(path.is_file(), f"{location}: neither a file nor a folder")
            return _from_file(path.name, local_file(path, location), splits)
        near = _near(path.name, [found.name for found in path.parent.iterdir()]) if path.parent.is_dir() else ""
    except OSError as error:  # too long, not ours to read, a loop of links
        cause = error.strerror or str(error)
        raise ConfigError(f"{location[:80]}{'…' if len(location) > 80 else ''}: cannot be read ({cause})") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"source {location[:80]!r}: no path ({error})") from error
    raise ConfigError(f"{location}: no such file or folder; {near or f'give {_READ}'}")


def _open_remote(location: str, splits: SplitOption, anonymous: bool) -> Source:
    storage = open_storage(location, anonymous=anonymous)
    parent_uri, _, name = storage.uri.rpartition("/")
    if parent_uri == "s3:/":  # a whole bucket
        return _from_many(name, StoredFiles(storage, location), splits)
    parent = open_storage(parent_uri, anonymous=anonymous)
    try:
        file = stored_file(parent, name, location)
    except FileNotFoundError:
        files = StoredFiles(storage, location)
        if not files.entries:
            beside = {info.key.partition("/")[0] for info in itertools.islice(parent.list(), 1000)}
            near = _near(name, sorted(beside)) or "give a prefix or an object of images"
            raise ConfigError(f"{location}: nothing there; {near}") from None
        return _from_many(name, files, splits)
    return _from_file(name, file, splits)


def _from_many(name: str, files: Files, splits: SplitOption, depth: int = 0) -> Source:
    """The source that some files make, which lie in ``depth`` archives."""
    return from_files(name, files, splits, lambda key, file: _from_file(key.rpartition("/")[2], file, splits, depth))


def _near(name: str, others: list[str]) -> str:
    found = difflib.get_close_matches(name, [*others, *EMBEDDED], n=1)
    return f"did you mean {printable(found[0])}?" if found else ""


# --- one file --------------------------------------------------------------------------------------


def _from_file(file_name: str, file: OneFile, splits: SplitOption, depth: int = 0) -> Source:
    if depth > DEEPEST:
        raise too_deep(file.where)
    name = _short(file_name)
    require(file.size > 0, f"{file.where}: an empty file")
    with file.open() as content:
        head = content.read(16)
    if head.startswith((b"PAR1", b"ARROW1")) or file_name.endswith(".arrow"):
        from pipelines.data.sources.tables import EncodedRows

        return EncodedRows(name, [(file_name, file)], file.where, splits)
    if head.startswith(b"\x93NUMPY"):
        from pipelines.data.sources.arrays import npy_file

        return npy_file(name, file)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) and not _starts_a_tar(file):
        files = ZipFiles(file)
        if files.entries and all(entry.key.endswith(".npy") for entry in files.entries):
            from pipelines.data.sources.arrays import npz_file

            return npz_file(name, file)
        return _from_many(name, files, splits, depth + 1)
    for magic, what in _REFUSED:
        require(not head.startswith(magic), f"{file.where}: {what}")
    return _from_stream(name, file, splits)


def _from_stream(name: str, file: OneFile, splits: SplitOption) -> Source:
    from pipelines.data.sources.idx import idx_file, is_idx
    from pipelines.data.sources.tars import is_header

    with whole_or_refused(file.where), file.unpacked() as content:
        head = content.read(512)
    if is_header(head):
        return _from_tar(name, file, splits)
    if is_idx(head):
        return idx_file(name, file)
    require(not head.startswith(b"\x93NUMPY"), f"{file.where}: a packed .npy file; unpack it")
    what = "a text file" if head and not set(head) & {*range(9), *range(14, 32)} else "not recognised"
    raise ConfigError(f"{file.where}: {what}; give {_READ}")


def _starts_a_tar(file: OneFile) -> bool:
    """Whether a file that starts like a zip archive is a tar whose first member happens to be called so."""
    from pipelines.data.sources.tars import is_header

    with file.open() as content:
        return is_header(content.read(512))


def _from_tar(name: str, file: OneFile, splits: SplitOption) -> Source:
    from pipelines.data.sources.cifar import cifar_tar
    from pipelines.data.sources.cifar_formats import format_in_tar

    for hidden in (True, False):  # where nothing else is there, hidden files are the images
        clutter = Clutter(hidden=hidden)
        first, suffixes = _peek_tar(file, clutter)
        if first and (form := format_in_tar(first)) and not is_image(first):
            return cifar_tar(name, file, form)
        if first:
            return image_tar(name, file, splits, nested=TAR_SUFFIX.search(first) is not None, hidden=hidden)
        if suffixes:
            break
    raise no_images(file.where, suffixes, clutter.notes())


def _peek_tar(file: OneFile, clutter: Clutter) -> tuple[str, Counter[str]]:
    """What a tar archive holds, and the suffixes before it.

    That is the first image or batch of CIFAR, else the second tar inside or the only one, else ``""``.

    Raises ``ConfigError`` where it is damaged before that.
    """
    from pipelines.data.sources.cifar_formats import format_in_tar

    suffixes: Counter[str] = Counter()
    inside = ""
    with file.unpacked() as content:
        reader = TarReader(content)
        with whole_or_refused(file.where, lambda: f" after {reader.members:,} entries"):
            for member in reader:
                name = member.name
                if clutter.takes(name) or (member.link is not None and not member.is_hard):
                    continue
                if is_image(name) or format_in_tar(name):
                    return name, suffixes
                if TAR_SUFFIX.search(name):
                    if inside:  # one may lie beside the images; two are what is packed
                        return name, suffixes
                    inside = name
                if member.link is None and may_be_image(name) and is_image_content(reader.head(HEAD)):
                    return name, suffixes
                suffixes[suffix_of(name)] += 1
    return inside, suffixes


def _short(file_name: str) -> str:
    """``cifar10-jpeg.tar.gz`` → ``cifar10-jpeg``."""
    name = file_name
    while (shorter := _SUFFIXES.sub("", name)) not in ("", name):
        name = shorter
    return kept_name(name)

"""A remote storage as the file system that Ray keeps its checkpoints on."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from fvae.config import ConfigError
from pipelines.storage import Storage, StorageError, open_storage

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Metadata = Mapping[str, str] | None
"""Of a file, as pyarrow hands it over."""
PIECE = 64 * 2**20
"""Bytes that Ray has pyarrow copy at a time; a shorter piece is a file's last."""

log = logging.getLogger("pipelines.storage")


def storage_filesystem() -> PyFileSystem:
    """A file system of S3 whose paths are ``bucket/key``.

    Not ``pyarrow.fs.S3FileSystem``: that one retries without a word in the log, knows none of our checksums, and
    leaves empty objects behind as folders.
    """
    return PyFileSystem(StorageHandler())


class StorageHandler(FileSystemHandler):
    """What pyarrow asks of a file system, over :class:`pipelines.storage.Storage`.

    A folder is there as soon as an object is below it, and gone with the last one; making one does nothing.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageHandler)

    def __ne__(self, other: object) -> bool:  # pyarrow asks for both
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        return [self._file_info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        base = self.normalize_path(selector.base_dir)
        infos: dict[str, FileInfo] = {}
        for found in _folder(base).list():
            parts = found.key.split("/")
            shown = len(parts) if selector.recursive else 1
            for depth in range(1, min(shown, len(parts) - 1) + 1):
                path = "/".join((base, *parts[:depth]))
                infos[path] = FileInfo(path, FileType.Directory)
            if shown == len(parts):
                path = f"{base}/{found.key}"
                infos[path] = FileInfo(path, FileType.File, size=found.size, mtime=found.modified)
        if not infos and not selector.allow_not_found:
            raise FileNotFoundError(f"s3://{base}: no such folder")
        return list(infos.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        _folder(path).delete_prefix("")

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("will not remove every bucket")

    def delete_file(self, path: str) -> None:
        storage, key = _object(path)
        storage.info(key)  # pyarrow's contract: an absent file is an error
        storage.delete(key)

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        (source, source_key), (target, target_key) = _object(src), _object(dest)
        target.write(target_key, source.read(source_key))

    def open_input_stream(self, path: str) -> pyarrow.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pyarrow.PythonFile:
        storage, key = _object(path)
        return pyarrow.PythonFile(storage.open(key), mode="r")

    def open_output_stream(self, path: str, metadata: Metadata) -> pyarrow.PythonFile:
        return pyarrow.PythonFile(_Upload(*_object(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Metadata) -> pyarrow.PythonFile:
        raise OSError(f"s3://{path}: cannot append to an object")

    def _file_info(self, path: str) -> FileInfo:
        if "/" not in path.strip("/"):
            return FileInfo(path, FileType.Directory)
        storage, key = _object(path)
        try:
            found = storage.info(key)
        except FileNotFoundError:
            inside = next(iter(storage.list(key)), None)
            return FileInfo(path, FileType.NotFound if inside is None else FileType.Directory)
        return FileInfo(path, FileType.File, size=found.size, mtime=found.modified)


class _Upload(io.RawIOBase):
    """A file that becomes an object once it is whole; never when it is only dropped, as after an error.

    pyarrow's copy_files (since version 19, arrow pull request 44897) writes pieces of Ray's size and closes the file,
    but lets an error of close() pass in silence: a checkpoint would be lost and nobody told. So a shorter piece is
    taken for the last, and stored at once.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._file = tempfile.NamedTemporaryFile(prefix="upload-")  # noqa: SIM115
        self._stored = False
        self._piece = PIECE

    def writable(self) -> bool:
        return True

    def write(self, content: ReadableBuffer) -> int:
        if self._stored:  # that was not the last piece after all: no part may stand for the whole
            self._storage.delete(self._key)
            self._stored, self._piece = False, 0
        length = self._file.write(content)
        if length < self._piece:
            self._store()
        return length

    def close(self) -> None:
        if self.closed:
            return
        try:
            if not self._stored:
                self._store()
        except (StorageError, ConfigError) as error:
            log.error("%s", error)
            raise
        finally:
            self._drop()

    def __del__(self) -> None:  # io's own would close(), and so upload a part as if it were the whole
        if not self.closed:
            self._drop()

    def _store(self) -> None:
        self._file.flush()
        self._storage.upload(Path(self._file.name), self._key)
        self._stored = True

    def _drop(self) -> None:
        self._file.close()
        super().close()


def _object(path: str) -> tuple[Storage, str]:
    bucket, _, key = path.strip("/").partition("/")
    return open_storage(f"s3://{bucket}"), key


def _folder(path: str) -> Storage:
    return open_storage(f"s3://{path.strip('/')}")

"""Objects as files below a local folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fvae.files import TEMPORARY, temporary_beside, write_bytes, written_whole
from pipelines.storage.base import READ_AHEAD, ChangedError, ObjectInfo, Storage, StorageError, check_key


class LocalStorage(Storage):
    """Objects as files below a local folder (which need not exist yet)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self.uri = str(self._folder)

    @property
    def local_path(self) -> Path:
        return self._folder

    def read(self, key: str) -> bytes:
        with self._explained("read", key) as path:
            return path.read_bytes()

    def read_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        with self._explained("read", key) as path, path.open("rb") as file:
            if version is not None and _version(os.fstat(file.fileno())) != version:
                raise ChangedError(f"{path}: cannot read: the file changed meanwhile")
            file.seek(start)
            return file.read(length)

    def open(self, key: str) -> BinaryIO:
        with self._explained("read", key) as path:
            return path.open("rb")

    def write(self, key: str, content: bytes) -> None:
        with self._explained("write", key) as path:
            write_bytes(path, content)

    def create(self, key: str, content: bytes) -> bool:
        with self._explained("write", key) as path:
            temporary = temporary_beside(path)
            write_bytes(temporary, content)
            try:
                os.link(temporary, path)  # unlike rename, fails where the name is taken
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True

    def replace(self, key: str, content: bytes, version: str) -> str | None:
        with contextlib.suppress(FileNotFoundError), self._path(key).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # others that replace it wait, and then find another file in its place
            if self.info(key).version != version:
                return None
            self.write(key, content)
            return self.info(key).version
        return None

    def upload(self, path: Path, key: str) -> None:
        if path.is_dir():
            for file in local_files(path):
                self.upload(file, f"{key}/{file.relative_to(path).as_posix()}")
            return
        with path.open("rb") as source, self._explained("write", key) as target:
            copy_stream(source, target)

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        if not source.is_dir():
            with self.open(key) as file:
                copy_stream(file, path)
            return
        for found in self.list(key):
            self.download(found.key, path / found.key.removeprefix(f"{key}/"))

    def info(self, key: str) -> ObjectInfo:
        with self._explained("read", key) as path:
            status = path.stat()
            if path.is_dir():
                raise IsADirectoryError
        return ObjectInfo(key, status.st_size, status.st_mtime, _version(status))

    def checksum(self, key: str) -> str:
        with self._explained("read", key) as path, path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def age(self, key: str) -> float:
        return time.time() - self.info(key).modified

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self._path(prefix) if prefix else self._folder
        keys = sorted(path.relative_to(self._folder).as_posix() for path in local_files(folder))
        for key in keys:
            with contextlib.suppress(FileNotFoundError):  # removed since
                yield self.info(key)

    def delete(self, *keys: str) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._explained("remove", key) as path:
                path.unlink()

    def delete_prefix(self, prefix: str) -> None:
        super().delete_prefix(prefix)
        folder = self._path(prefix) if prefix else self._folder
        # Folders mean nothing here: those left without a file go too, from the inside out.
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        if prefix:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(self._path(name))

    def clean_up(self, older_than_seconds: float = 0.0) -> int:
        count = 0
        for path in self._folder.rglob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if TEMPORARY.fullmatch(path.name) and path.stat().st_mtime <= time.time() - older_than_seconds:
                    path.unlink()
                    count += 1
        return count

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextlib.contextmanager
    def _explained(self, operation: str, key: str) -> Iterator[Path]:
        path = self._path(key)
        try:
            yield path
        except StorageError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if operation == "write":
                raise StorageError(f"{path}: cannot write: {error.strerror}") from error
            raise FileNotFoundError(f"{path}: no such file") from error
        except OSError as error:
            raise StorageError(f"{path}: cannot {operation}: {error.strerror or error}") from error


def local_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without those that are still being written, in the file system's order."""
    return (path for path in folder.rglob("*") if path.is_file() and not TEMPORARY.fullmatch(path.name))


def copy_stream(source: BinaryIO, path: Path) -> None:
    """Write what is left of ``source`` to ``path``, whole or not at all."""
    with written_whole(path) as target:
        shutil.copyfileobj(source, target, READ_AHEAD)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"

"""Arrays of NumPy's ``.npy`` and ``.npz`` files, read a few megabytes at a time and without pickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from fvae.config import ConfigError, require
from pipelines.data.sources.base import CHUNK_BYTES
from pipelines.data.sources.streams import OneFile, chunks, read_exactly, whole_or_refused
from pipelines.storage import StorageError

LARGEST_FORTRAN = 4 << 30
"""Bytes of an array in Fortran order, which is read whole."""
Opened = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Array:
    """One stored array: where it is and what its header says."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    header_bytes: int
    opened: Opened

    def rows(self) -> Iterator[np.ndarray]:
        """The array, some rows at a time."""
        count, *shape = self.shape
        row = math.prod(shape) * self.dtype.itemsize
        with whole_or_refused(self.where), self.opened() as file:
            file.read(self.header_bytes)
            if self.fortran and shape:
                yield from self._fortran_rows(file, count * row)
                return
            for rows, content in chunks(file, count, row, self.where, "rows"):
                yield np.frombuffer(content, self.dtype).reshape(rows, *shape)

    def _fortran_rows(self, file: BinaryIO, size: int) -> Iterator[np.ndarray]:
        require(
            size <= LARGEST_FORTRAN,
            f"{self.where}: {size:,} bytes in Fortran order, which is read whole up to {LARGEST_FORTRAN:,}; save "
            "np.ascontiguousarray(images)",
        )
        content = read_exactly(file, size)
        require(
            len(content) == size and not file.read(1),
            f"{self.where}: cut short or more bytes than the {self.shape[0]:,} rows that its header promises",
        )
        whole = np.frombuffer(content, self.dtype).reshape(self.shape, order="F")
        at_once = max(1, CHUNK_BYTES // max(1, size // self.shape[0]))
        for start in range(0, self.shape[0], at_once):
            yield np.ascontiguousarray(whole[start : start + at_once])


def npz_arrays(file: OneFile) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by their names. Raises ``ConfigError`` where it is damaged."""

    def opened(member: str) -> Opened:
        @contextmanager
        def open_member() -> Iterator[BinaryIO]:
            with (
                _unzipped(file.where),
                file.open() as packed,
                zipfile.ZipFile(packed) as archive,
                archive.open(member) as content,
            ):
                yield cast(BinaryIO, content)

        return open_member

    with _unzipped(file.where), file.open() as packed, zipfile.ZipFile(packed) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {key[: -len(".npy")]: read_header(f"{file.where}/{key}", opened(key)) for key in members}


@contextmanager
def _unzipped(where: str) -> Iterator[None]:
    with whole_or_refused(where):
        try:
            yield
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ConfigError(f"{where}: damaged ({error}); get a complete copy and try again") from error


def read_header(where: str, opened: Opened) -> Array:
    """What a ``.npy`` file says of its array. Raises ``ConfigError`` where it says nothing."""
    with whole_or_refused(where), opened() as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            require(version in readers, f"{where}: .npy of version {version}; save it again with np.save")
            shape, fortran, dtype = readers[version](file)
        except StorageError:
            raise
        except ConfigError:
            raise
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: not a complete .npy file ({str(error).splitlines()[0][:100]})") from error
        require(all(size >= 0 for size in shape), f"{where}: damaged: its header promises the shape {shape}")
        return Array(where, tuple(shape), dtype, fortran, file.tell(), opened)

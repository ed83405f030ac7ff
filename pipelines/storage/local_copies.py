"""Objects of any storage as files of this machine, for what reads and writes files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.storage import Storage


@contextmanager
def read_from(storage: Storage, key: str) -> Iterator[Path]:
    """A path of the key's last name to read the object, or the folder, from: itself, or a verified copy for as long as
    the block lasts.

    Raises ``FileNotFoundError`` where a remote store has neither; a local path may be missing.
    """
    if storage.local_path is not None:
        yield storage.local_path / key
        return
    with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
        path = Path(folder) / Path(key).name
        storage.download(key, path)
        yield path


@contextmanager
def written_to(storage: Storage, key: str) -> Iterator[Path]:
    """A path to write a file or folder to, which is at ``key`` after the block."""
    if storage.local_path is not None:
        yield storage.local_path / key
        return
    with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
        path = Path(folder) / Path(key).name
        yield path
        storage.upload(path, key)

"""Atomic writes: files that are whole or absent; and JSON files."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fvae.config import ConfigError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of files that are still being written: see :func:`temporary_beside`."""


def temporary_beside(path: Path) -> Path:
    """A name in the folder of ``path`` that no other process uses; it matches :data:`TEMPORARY`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is at ``path`` after the block; after an error in it, nothing is left of it.

    Makes missing folders. Raises ``OSError`` (no space, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    Makes missing folders. Raises ``OSError`` (no space, no permission) with nothing left behind.
    """
    with written_whole(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """:func:`write_bytes`, for text in UTF-8."""
    write_bytes(path, content.encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``ConfigError`` where it is none."""
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``content``. Raises ``ConfigError``, one line that names ``where``, where it is none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: damaged, not JSON ({error}); restore it or remove it") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: damaged, not a JSON object; restore it or remove it")
    return values

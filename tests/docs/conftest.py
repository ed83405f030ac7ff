"""A home for each test that reads a page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty folder with a path as short as a user's: sockets lie below it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

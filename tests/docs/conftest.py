"""A home for each test that reads a page, and one thread for torch: the machine may be shared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a path as short as a user's, for sockets lie below it; no MLflow server is named."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""A Ray cluster that may lose its nodes, and machines with folders of their own, for the tests that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.pipelines import training_cluster


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[Cluster]:
    """Several nodes on this machine, whose processes know the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in training_cluster.HASTE.items():
            patch.setenv(name, value)
        cluster = training_cluster.start()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``machine("A")``: from now on the current folder is that of machine A, empty at first."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return folder

    return go

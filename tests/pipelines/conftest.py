"""One thread, and an MLflow database and a Ray cluster for every test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from pipelines.mlflow_settings import quiet_mlflow
from tests.pipelines import training_cluster


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are too small for more, and the machine may be shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations cost seconds."""
    quiet_mlflow()
    from pipelines.mlflow_connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "made" / "empty.db"
    connect(f"sqlite:///{path}")
    return path


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

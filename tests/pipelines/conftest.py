"""What the tests of pipelines share: clusters, machines with folders of their own, a store that can fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines.storage import s3_multipart
from tests.pipelines.ray_server import RayServer
from tests.pipelines.scheduling.schedule_team import Team
from tests.pipelines.training import training_cluster
from tests.s3 import FaultProxy


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[Cluster]:
    """Several nodes on this machine, whose processes know the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in training_cluster.HASTE.items():
            patch.setenv(name, value)
        cluster = training_cluster.start()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def ray() -> Iterator[RayServer]:
    """A Ray that asks for a token and takes jobs."""
    with contextlib.closing(RayServer()) as server:
        server.start()
        yield server


@pytest.fixture
def team(tmp_path: Path, ray: RayServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """A team's store of schedules, whose jobs run on that Ray."""
    with contextlib.closing(Team(tmp_path, ray, monkeypatch)) as team:
        yield team


@pytest.fixture(scope="module")
def strict_proxy(s3: str) -> Iterator[FaultProxy]:
    """A strict S3 server that can fail; one for a file's tests, as it takes time to make a client of it."""
    with FaultProxy(s3, strict=True) as proxy:
        yield proxy


@pytest.fixture
def proxy(strict_proxy: FaultProxy, impatient: None, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The strict server, which this process uses without long waits; nothing has been counted or planned yet."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_proxy.url)
    strict_proxy.reset()
    return strict_proxy


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes of a part of a large object: the least that S3 takes."""
    monkeypatch.setattr(s3_multipart, "THRESHOLD", 2**20)
    monkeypatch.setattr(s3_multipart, "PART", 5 * 2**20)
    return 5 * 2**20


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

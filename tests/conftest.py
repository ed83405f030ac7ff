"""One thread for every test; an S3 server, a Ray and an MLflow database for those that ask for them.

What these need is imported where it is used: a GPU machine, which runs tests/gpu alone, may have none of it.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.ray_environment  # noqa: F401  (before Ray is imported)
from pipelines.tracking.settings import quiet_mlflow
from tests import tiers

quiet_mlflow()  # as the commands do, before a test module imports MLflow, which reads its settings once

HANDLERS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""What Python begins with, also where a shell has started the tests in its background, in which SIGINT is ignored."""
for number, handler in HANDLERS.items():
    signal.signal(number, handler)
LONG = ("cluster/", "services/", "test_train_faults", "test_search_kills", "docs/", "pipelines/", "tune/")
"""What takes long begins first, or it would be alone at the end."""


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that are not in exactly one tier; order and group the others."""
    if lines := tiers.misplaced(items):
        raise pytest.UsageError(*lines)
    tiers.group(items)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Where a test stands: those that share a Ray, the largest group, begin."""
    if tiers.group_of(item) == tiers.RAY:
        return -1
    return next((place for place, name in enumerate(LONG) if name in item.nodeid), len(LONG))


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """After each test, signals do again what they did: parts of Ray that run in this process leave their handlers."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real S3 server, one for the session; the environment points at it."""
    from tests.s3 import CREDENTIALS, moto_server

    with pytest.MonkeyPatch.context() as patch, moto_server(tmp_path_factory.mktemp("moto")) as url:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", url)
        yield url


@pytest.fixture(scope="session")
def s3_client(s3: str) -> Any:
    """A plain boto3 client of the server ``s3``, to see what is really there."""
    import boto3

    return boto3.client("s3", endpoint_url=s3)


@pytest.fixture
def bucket(s3_client: Any) -> str:
    """``s3://…`` of a new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=name)
    return f"s3://{name}"


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
    from pipelines.tracking.connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "made" / "empty.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def shared_ray(s3: str) -> Iterator[str]:
    """The address of one Ray for all tests that need one and lose no part of it; its processes know the S3 server.

    It has room for three workers. See :func:`tests.tiers.group`.
    """
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 300 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # as commands set it
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def ray_address(shared_ray: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the shared Ray, which commands that are called in this process use."""
    monkeypatch.setenv("RAY_ADDRESS", shared_ray)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    return shared_ray


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, requests to S3 are tried three times with hardly a wait, each for a second at most."""
    from tests.s3 import IMPATIENT, set_constants

    set_constants(IMPATIENT, monkeypatch.setattr)

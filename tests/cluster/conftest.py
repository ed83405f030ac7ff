"""An AWS account and a cluster of hosts for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.aws_account import Account, aws_server
from tests.cluster.onprem_cluster import OnPremises


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server."""
    with aws_server(tmp_path_factory.mktemp("aws")) as url:
        yield url


@pytest.fixture
def account(aws_endpoint: str, tmp_path: Path) -> Account:
    """A new AWS account, and a machine of a user who has never run anything."""
    account = Account(endpoint=aws_endpoint, folder=tmp_path)
    account.reset()
    return account


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account in which the cluster is up. Tests that share it leave it as ``cluster.yaml`` describes it."""
    with aws_server(tmp_path_factory.mktemp("aws")) as url:
        account = Account(endpoint=url, folder=tmp_path_factory.mktemp("up"))
        account.reset()
        path = account.fill_in()
        roles = account.make_roles(path)
        assert roles.returncode == 0, roles.stderr
        result = account.ray("up", path)
        assert result.returncode == 0, result.stdout + result.stderr
        yield account


@pytest.fixture(scope="session")
def onpremises(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    """A head and two workers, switched on."""
    cluster = OnPremises(tmp_path_factory.mktemp("network"), workers=2)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(onpremises: OnPremises) -> OnPremises:
    """A head and two workers, up: the one that all tests share. Tests that change it leave it whole."""
    onpremises.be_up()
    return onpremises

"""An AWS account for every test that asks for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.aws_account import Account, images
from tests.s3 import CREDENTIALS, moto_server


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server whose EC2 has the images that ``cluster.yaml`` pins."""
    folder = tmp_path_factory.mktemp("aws")
    (folder / "images.json").write_text(json.dumps(images()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_AMIS_PATH", str(folder / "images.json"))
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with moto_server(folder) as url:
            yield url


@pytest.fixture
def account(aws_endpoint: str, tmp_path: Path) -> Account:
    """A new AWS account, and a machine of a user who has never run anything."""
    account = Account(endpoint=aws_endpoint, folder=tmp_path)
    account.reset()
    return account

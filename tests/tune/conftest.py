"""What several files of searches need: an MLflow database, the digits on S3, and one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipelines import ingest
from pipelines.ingest_settings import IngestSettings
from tests.commands import call
from tests.pipelines.conftest import empty_database  # noqa: F401


@pytest.fixture(scope="session")
def digits_on_s3(s3_client: Any) -> str:
    """The digits as a data set in a bucket of its own."""
    s3_client.create_bucket(Bucket="images")
    done = call(ingest.main, IngestSettings, "digits", "s3://images/digits", "--processes", "1")
    assert done.status == 0, done.err
    return "s3://images/digits"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """In this process torch computes as a trial does, with one thread: several cost much more for models so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

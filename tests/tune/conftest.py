"""The digits on S3, for every test of a search that asks for them; examples of hypothesis have no time limit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from pipelines import ingest
from pipelines.data.settings import IngestSettings
from tests.commands import call

settings.register_profile("tune", deadline=None)  # on a busy machine any example may take long
settings.load_profile("tune")


@pytest.fixture(scope="session")
def digits_on_s3(s3_client: Any) -> str:
    """The digits as a data set in a bucket of its own."""
    s3_client.create_bucket(Bucket="images")
    done = call(ingest.main, IngestSettings, "digits", "s3://images/digits", "--processes", "1")
    assert done.status == 0, done.err
    return "s3://images/digits"

"""How a search meets a cluster: what its processes are told, and what they are never told."""

from __future__ import annotations

import re

import pytest
import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from pipelines.datasets import load_dataset
from tests.s3 import CREDENTIALS
from tune import engine
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "eu-north-1"}
SECRETS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}


def test_a_cluster_s_processes_find_the_same_store_with_credentials_of_their_own(
    ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_a_node() -> dict[str, str]:
        import os

        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    for name, value in (STORE | SECRETS).items():
        monkeypatch.setenv(name, value)
    with engine.search_session(SearchSettings(), load_dataset("digits")):
        told = ray.get(ray.remote(of_a_node).remote())
    assert told == told | CREDENTIALS | STORE
    assert not set(SECRETS.values()) & set(told.values())


def test_a_reading_that_is_lost_is_one_line() -> None:
    ray_says = "Task was killed due to the node running low on memory.\n" + "Refer to the documentation.\n" * 20
    line = engine._why_lost(OutOfMemoryError(ray_says))
    assert re.fullmatch(
        r"out of memory: the machine's [\d.]+ GiB were in use; .* --concurrent 1 reads one by one", line
    )
    line = engine._why_lost(WorkerCrashedError())
    assert line.startswith("its process was lost (") and line.endswith("); the same command goes on")
    assert "\n" not in line

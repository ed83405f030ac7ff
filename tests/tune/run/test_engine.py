"""How a search meets a cluster: what its processes are told, and what they are never told."""

from __future__ import annotations

import re

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from pipelines.data.datasets import load_dataset
from tests.s3 import CREDENTIALS
from tune.run import engine
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


def test_a_reading_that_is_lost_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_says = "Task was killed due to the node running low on memory.\n" + "Refer to the documentation.\n" * 20
    line = engine._why_lost(OutOfMemoryError(ray_says))
    assert re.fullmatch(
        r"out of memory: the machine's [\d.]+ GiB were in use; .* --concurrent 1 reads one by one", line
    )
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the driver's memory is not that of the process
    line = engine._why_lost(OutOfMemoryError(ray_says))
    assert line.startswith("out of memory: its machine's memory was in use; ")
    line = engine._why_lost(WorkerCrashedError())
    assert line.startswith("its process was lost (") and line.endswith("); the same command goes on")
    assert "\n" not in line


def test_an_error_of_a_reading_is_no_lost_process() -> None:
    raised = RayTaskError("read_test_split", "Traceback …\nValueError: no such image", ValueError("no such image"))
    assert engine._why_lost(raised) == "ValueError: no such image; the same command tries it again"

"""Tracking while processes are killed, and stores and servers go away: what is there at last is there once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvae import ConfigError
from pipelines.tracking import background as background_tracker
from pipelines.tracking.database import database_path
from pipelines.tracking.registry import model_location
from tests.fault_proxy import FaultProxy, only
from tests.pipelines.tracking.mlflow_server import Server
from tests.pipelines.tracking.tracked import Runs, ended, running_server, undisturbed

pytestmark = pytest.mark.faults

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server", empty_database) as server:
        yield server


DYING = """
import sys
sys.path.insert(0, {project!r})
import pathlib, pytest
from tests.pipelines.tracking.tracked import Runs
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from pipelines.storage.s3 import S3Storage
from pipelines.storage import open_storage
from tests.pipelines.dying import die_at, kill_this_process

die_at(pytest.MonkeyPatch(), {owner}, {name!r}, {when!r}, kill_this_process, call={call})
Runs(open_storage({uri!r})).whole_search()
"""
KILLS = {
    "database half made": ("folder", "pathlib.Path", "hardlink_to", "before", 1),
    "metrics without tags": ("folder", "SqlAlchemyStore", "_set_tags", "before", 2),
    "database sent but not recorded": ("S3", "S3Storage", "replace", "after", 1),
    "trial made": ("server", "MlflowClient", "create_run", "after", 2),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_killed_process_and_the_same_again(
    point: str, request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path
) -> None:
    kind, owner, name, when, call = KILLS[point]
    runs = Runs.of_kind(kind, request)
    if name == "hardlink_to":
        database_path(runs.storage).unlink()
    uri = runs.storage.uri
    script = DYING.format(project=str(PROJECT), owner=owner, name=name, when=when, call=call, uri=uri)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    if kind == "folder":
        assert database_path(runs.storage).exists() == (name != "hardlink_to")
    runs.whole_search()
    assert runs.content() == undisturbed(tmp_path, empty_database)["search"]


def test_a_store_that_dies_ends_no_search_and_is_made_up_for(
    request: pytest.FixtureRequest, s3: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,))
    runs = Runs.of_kind("S3", request)
    trials = runs.trials()
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        tracker = runs.search_tracker()
        assert tracker.flush()
        proxy.dead = True
        requests = len(proxy.requests)
        for snapshot in trials:
            tracker.record_trial(snapshot)
        assert len(proxy.requests) == requests  # it waits for no store, as it asks none
        assert not tracker.flush()
        tracker.finish()
        tracker.close()
    assert {problem.partition(": ")[2].partition(" not ")[0] for problem in tracker.problems} >= {"mlflow.db"}
    assert all(runs.storage.uri in problem and "\n" not in problem for problem in tracker.problems)

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    ids = runs.ids
    runs.whole_search()
    assert {name: runs.ids[name] for name in ids} == ids
    assert len(list(runs.storage.list("mlartifacts"))) == 7


def test_a_server_killed_and_answers_lost_in_the_middle(
    request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to the run's, the model's and its version's creation never arrive; it dies as an epoch arrives."""
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,) * 5)
    runs, server = Runs.of_kind("server", request), request.getfixturevalue("server")
    creations = ("runs/create", "registered-models/create", "model-versions/create")
    deadly: list[str] = []

    def counted(method: str, path: str) -> bool:
        if deadly and path.endswith(deadly[0]):
            deadly.clear()
            server.kill()
        return path.endswith(creations)

    with FaultProxy(server.url, {1: "reset", 2: "reset", 4: "reset"}, counted=counted) as proxy:
        tracker = runs.run_tracker(tracking_uri=proxy.url)
        tracker.flush()
        assert proxy.faults  # the run is there, but its id was lost
        for epochs in (1, 2):
            tracker.record(runs.training("running", epochs))
            assert tracker.flush()
        deadly.append("runs/log-batch")
        for epochs in (3, 4):
            tracker.record(runs.training("running", epochs))
            assert not tracker.flush()
            assert tracker.problems
        server.start()
        assert tracker.flush()
        assert tracker.problems == []
        tracker.record(runs.training("complete", 5))
        ended(tracker)
        assert [Path(request.path).parent.name for request in proxy.faults] == [
            "runs",
            "registered-models",
            "model-versions",
        ]
    assert tracker.model_version == 1
    assert runs.content() == undisturbed(tmp_path, empty_database)["training"]
    with pytest.raises(ConfigError, match="model.safetensors is missing"):  # it was no model, but it was fetched
        model_location(f"models:/model-{runs.dataset}/1", server.url).__enter__()


@contextlib.contextmanager
def pages(runs_location: str, folder: Path) -> Iterator[str]:
    """MLflow's pages, as a user opens them; the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_path = folder / "ui.log"
    command = [sys.executable, "-m", "pipelines.ui", "--runs", runs_location, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("AWS_DEFAULT_REGION", None)  # a store of one's own has none
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert server.poll() is None, log_path.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_the_pages_show_runs_and_artifacts_of_s3_and_change_nothing(
    request: pytest.FixtureRequest, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs.of_kind("S3", request)
    runs.whole_search()
    before, run_id = runs.exactly(), runs.ids["0000-fvae"]
    folder = Path(runs.machine("C"))
    with FaultProxy(s3, {2: "503", 4: "reset"}, counted=only("GET", path="/artifacts/")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pages(runs.storage.uri, folder) as url:
            where = f"{url}/get-artifact?run_uuid={run_id}&path="
            for name in ("samples.png", "model/config.json"):
                with urllib.request.urlopen(where + name, timeout=60) as answer:
                    assert answer.read() == b"0000-fvae"
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert len(proxy.faults) >= 1
    assert runs.exactly() == before
    assert {path.name for path in database_path(runs.storage).parent.iterdir()} >= {"mlflow.db", "mlflow.db.json"}
    runs.whole_search()  # from the working copy that the pages used
    assert runs.exactly() == before

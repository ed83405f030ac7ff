"""A search in MLflow with everything on S3: the same runs from every machine, whatever the store does meanwhile.

Real MLflow on SQLite, a real S3 server, MLflow's own pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from fvae.config import ConfigError
from pipelines import background_tracker, s3_requests, ui
from pipelines.mlflow_settings import artifact_location, server_environment
from pipelines.storage import open_storage
from pipelines.tracking import Artifact, default_tracking_uri
from pipelines.tracking_database import database_path
from tests.pipelines.searches import a_search, client, content, make_trial, open_tracker, runs_of
from tests.s3 import FaultProxy, only

pytestmark = pytest.mark.core

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(bucket):
    return open_storage(f"{bucket}/runs")


@pytest.fixture
def first_machine(machine, runs, empty_database):
    """Machine A, which has MLflow's tables already: making them costs seconds."""
    folder = machine("A")
    give_tables(runs, empty_database)
    return folder


def give_tables(runs, empty_database: Path) -> None:
    database_path(runs).parent.mkdir(parents=True)
    shutil.copyfile(empty_database, database_path(runs))


def log_whole_search(runs) -> None:
    tracker = open_tracker(runs)
    for trial in a_search(runs):
        tracker.record_trial(trial)
    runs.create("digits-0/tradeoff.html", b"<p>the map")
    tracker.finish([Artifact(runs, "digits-0/tradeoff.html")])
    tracker.close()
    assert tracker.problems == []


def listing(runs) -> dict[str, tuple]:
    return {found.key: (found.size, found.version, found.modified) for found in runs.list()}


def run_ids(runs) -> dict[str, str]:
    return {name: run.info.run_id for name, run in runs_of(runs).items()}


@pytest.fixture
def finished(first_machine, runs):
    log_whole_search(runs)
    return runs


def test_artifacts_and_database_lie_beside_the_runs(finished, tmp_path):
    ids = run_ids(finished)
    files = {"0000-fvae": {"samples.png", "model/config.json"}, "0001-flow": {"samples.png", "model/config.json"}}
    files |= {"0002-vae": {"samples.png", "model/config.json"}, "digits-0": {"tradeoff.html"}}
    expected = {f"mlartifacts/{ids[name]}/artifacts/{file}" for name, below in files.items() for file in below}
    expected |= {f"digits-0/trials/{name}/{file}" for name in files if name != "digits-0" for file in files[name]}
    expected |= {"digits-0/tracking.json", "digits-0/tradeoff.html", "mlflow.db"}
    assert set(listing(finished)) == expected
    assert finished.read(f"mlartifacts/{ids['0001-flow']}/artifacts/model/config.json") == b"0001-flow"
    # As any MLflow client reads it, with no variable of MLflow's own.
    local = client(finished).download_artifacts(ids["0000-fvae"], "model", str(tmp_path))
    assert Path(local, "config.json").read_text() == "0000-fvae"


def test_another_machine_finds_the_same_runs_and_uploads_nothing(finished, machine):
    before, ids, held = listing(finished), run_ids(finished), content(finished)
    machine("B")
    log_whole_search(finished)
    assert run_ids(finished) == ids
    assert content(finished) == held
    assert listing(finished) == before  # not even the database: nothing in it has changed


def test_another_machine_goes_on_with_an_interrupted_search(first_machine, machine, runs):
    tracker = open_tracker(runs)
    tracker.record_trial(make_trial(0, "running", 2, runs))
    tracker.close(interrupted=True)
    ids = run_ids(runs)
    machine("B")
    tracker = open_tracker(runs)
    tracker.record_trial(make_trial(0, "complete", 5, runs))
    tracker.finish()
    tracker.close()
    assert tracker.problems == []
    machine("A")
    log_whole_search(runs)
    assert {name: run_ids(runs)[name] for name in ids} == ids
    assert {run.info.status for run in runs_of(runs).values()} == {"FINISHED", "KILLED", "FAILED"}


def test_an_artifact_that_changed_is_uploaded_again(finished, machine):
    machine("B")
    trial = a_search(finished)[0]
    for file in ("samples.png", "model/config.json"):
        finished.write(f"digits-0/trials/0000-fvae/{file}", b"RETRAINED")  # as long as before
    before = listing(finished)
    tracker = open_tracker(finished)
    tracker.record_trial(trial)
    tracker.finish()
    tracker.close()
    assert tracker.problems == []
    changed = {key for key, what in listing(finished).items() if before.get(key) != what}
    folder = f"mlartifacts/{run_ids(finished)['0000-fvae']}/artifacts"
    assert changed == {f"{folder}/samples.png", f"{folder}/model/config.json", "mlflow.db"}
    assert finished.read(f"{folder}/model/config.json") == finished.read(f"{folder}/samples.png") == b"RETRAINED"


def test_a_missing_artifact_is_one_problem(first_machine, runs, monkeypatch):
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", ())
    tracker = open_tracker(runs)
    trial = make_trial(0, "complete", 2, runs)
    tracker.record_trial(dataclasses.replace(trial, artifacts=(Artifact(runs, "digits-0/none.png"),)))
    tracker.finish()
    tracker.close()
    assert len(tracker.problems) == 1
    assert "0000-fvae" in tracker.problems[0] and f"{runs.uri}/digits-0/none.png" in tracker.problems[0]


def test_artifacts_on_disk_go_to_s3_and_those_on_s3_to_disk(first_machine, runs, tmp_path, empty_database):
    disk = open_storage(tmp_path / "trials")
    tracker = open_tracker(runs)
    tracker.record_trial(make_trial(0, "complete", 2, disk))
    tracker.close()
    assert tracker.problems == []
    assert runs.read(f"mlartifacts/{run_ids(runs)['0000-fvae']}/artifacts/model/config.json") == b"0000-fvae"

    # Another database, whose experiment has its place on disk and keeps it.
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    uri = default_tracking_uri(open_storage(tmp_path))
    client(tmp_path).create_experiment("fvae/digits", artifact_location=(tmp_path / "artifacts").as_uri())
    before = set(listing(runs))
    tracker = open_tracker(runs, tracking_uri=uri)
    tracker.record_trial(make_trial(1, "complete", 2, runs))
    tracker.close()
    assert tracker.problems == []
    run_id = run_ids(tmp_path)["0001-fvae"]
    assert (tmp_path / "artifacts" / run_id / "artifacts/model/config.json").read_text() == "0001-fvae"
    assert {key for key in set(listing(runs)) - before if not key.startswith("digits-0/")} == set()


def test_a_server_chooses_the_place_of_artifacts_itself(runs, tmp_path):
    assert artifact_location("http://tracking:5000", runs) is None
    assert artifact_location("https://tracking", runs) is None
    assert artifact_location("postgresql://host/mlflow", runs) == f"{runs.uri}/mlartifacts"
    assert artifact_location("sqlite:///x.db", open_storage(tmp_path)) == (tmp_path / "mlartifacts").as_uri()


def test_the_same_search_after_every_kind_of_fault(
    first_machine, machine, runs, s3, empty_database, monkeypatch, caplog
):
    """Faults at fixed numbers among the requests for artifacts and the database; retries are said."""
    monkeypatch.setattr(s3_requests, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(s3_requests, "READ_TIMEOUT", 0.5)
    plan = {1: "500", 3: "503", 6: "reset", 8: "truncate", 10: "stall", 12: "reset-upload", 15: "429", 17: "reset"}
    with FaultProxy(s3, plan, counted=lambda _, path: "/ml" in path, strict=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with caplog.at_level(logging.WARNING, "pipelines.storage"):
            log_whole_search(runs)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert {fault.fault for fault in proxy.faults} == set(plan.values())
    said = [message for message in caplog.messages if "again in" in message]
    assert len(said) >= len(plan)
    assert all(runs.uri in message for message in said)

    disturbed = content(runs)
    undisturbed = open_storage(f"{runs.uri}-2")
    machine("C")
    give_tables(undisturbed, empty_database)
    log_whole_search(undisturbed)
    assert disturbed == content(undisturbed)
    disturbed_keys = {key.partition("/artifacts/")[2] for key in listing(runs)}
    assert disturbed_keys == {key.partition("/artifacts/")[2] for key in listing(undisturbed)}


def test_a_store_that_dies_ends_no_search_and_is_made_up_for(first_machine, runs, s3, monkeypatch):
    for name, value in {"FIRST_WAIT": 0.01, "ATTEMPTS": 2, "PATIENCE": 0.0}.items():
        monkeypatch.setattr(s3_requests, name, value)
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,))
    trials = a_search(runs)
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        tracker = open_tracker(runs)
        assert tracker.flush()
        proxy.dead = True
        asked = len(proxy.requests)
        for trial in trials:
            tracker.record_trial(trial)
        assert len(proxy.requests) == asked  # it waits for no store, as it asks none
        assert not tracker.flush()
        tracker.finish()
        tracker.close()
    assert {problem.partition(": ")[2].partition(" not ")[0] for problem in tracker.problems} >= {"mlflow.db"}
    assert all(runs.uri in problem and "\n" not in problem for problem in tracker.problems)

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    ids = run_ids(runs)
    log_whole_search(runs)
    assert {name: run_ids(runs)[name] for name in ids} == ids
    assert len({key for key in listing(runs) if key.startswith("mlartifacts/")}) == 7


def test_two_machines_at_once_are_told_and_overwrite_nothing(finished, machine, monkeypatch):
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,))
    machine("A")
    here = open_tracker(finished)
    assert here.flush()
    machine("B")
    there = open_tracker(finished, search_name="digits-1")
    there.finish()
    there.close()
    assert there.problems == []
    stored = finished.info("mlflow.db").version
    here.record_trial(make_trial(3, "complete", 2, finished))
    here.finish()
    here.close()
    (problem,) = here.problems
    assert problem.startswith(f"MLflow: mlflow.db not kept in {finished.uri}: somebody else")
    assert "MLFLOW_TRACKING_URI" in problem
    assert finished.info("mlflow.db").version == stored

    machine("A")
    again = open_tracker(finished)
    for trial in [*a_search(finished), make_trial(3, "complete", 2, finished)]:
        again.record_trial(trial)
    again.finish()
    again.close()
    (note,) = again.problems
    assert "kept in" in note and "unsynced" in note
    assert set(runs_of(finished)) == {"digits-0", "digits-1", "0000-fvae", "0001-flow", "0002-vae", "0003-fvae"}
    assert finished.info("mlflow.db").version != stored


def test_the_database_is_kept_while_the_search_runs(first_machine, machine, runs, monkeypatch):
    """A machine that is lost costs the last few minutes of curves, not the runs."""
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", ())
    tracker = open_tracker(runs)
    assert tracker.flush()
    first = runs.info("mlflow.db").version
    tracker.record_trial(make_trial(0, "running", 2, runs))
    assert tracker.flush()
    assert runs.info("mlflow.db").version == first  # not at every round
    monkeypatch.setattr(background_tracker, "_SNAPSHOT_SECONDS", 0.0)
    assert tracker.flush()
    assert runs.info("mlflow.db").version != first
    ids = run_ids(runs)
    machine("B")
    other = open_tracker(runs)
    assert other.flush()
    assert run_ids(runs) == ids
    other.close()
    machine("A")
    tracker.close()


def test_a_damaged_identity_is_one_clear_line(runs, machine):
    machine("A")
    runs.write("digits-0/tracking.json", b"[]")
    with pytest.raises(Exception, match=r"^s3://.*/digits-0/tracking.json: damaged; remove it.*$"):
        open_tracker(runs)


def test_the_servers_environment_leaves_the_users_own_settings(monkeypatch):
    monkeypatch.delenv("AWS_RETRY_MODE", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    environment = server_environment()
    assert (environment["AWS_RETRY_MODE"], environment["AWS_MAX_ATTEMPTS"]) == ("standard", "2")
    assert "AWS_RETRY_MODE" not in os.environ


def test_pages_of_nothing_are_one_clear_line(runs, machine):
    machine("A")
    for location, message in {
        f"{runs.uri}/none": "no runs there yet",
        f"{runs.uri}-no-bucket".replace("/runs", ""): "no such bucket",
        "gs://bucket/runs": "cannot use gs://",
    }.items():
        with pytest.raises(ConfigError, match=message) as failure:
            ui.main(ui.UISettings(runs=location))
        assert "\n" not in str(failure.value)


@contextlib.contextmanager
def pages(runs_location: str, folder: Path):
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


def test_the_pages_show_runs_and_artifacts_of_s3_and_change_nothing(finished, machine, s3, monkeypatch):
    before, run_id = listing(finished), run_ids(finished)["0000-fvae"]
    folder = machine("C")
    with FaultProxy(s3, {2: "503", 4: "reset"}, counted=only("GET", path="/artifacts/")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pages(finished.uri, folder) as url:
            where = f"{url}/get-artifact?run_uuid={run_id}&path="
            for name in ("samples.png", "model/config.json"):
                with urllib.request.urlopen(where + name, timeout=30) as answer:
                    assert answer.read() == b"0000-fvae"
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert len(proxy.faults) >= 1
    assert listing(finished) == before
    assert {path.name for path in database_path(finished).parent.iterdir()} >= {"mlflow.db", "mlflow.db.json"}
    log_whole_search(finished)  # from the working copy that the pages used
    assert listing(finished) == before

"""What tracking promises, whatever holds the runs: everything once, whatever is repeated, interrupted or refused.

Real MLflow in three kinds of place: SQLite in a folder, SQLite beside a bucket, a server. Most tests hold for a
search's tracker and for a training's; ``machine("B")`` goes on from another machine, as far as the place has any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fvae import ConfigError
from pipelines import ui
from pipelines.storage import open_storage
from pipelines.tracking import background as background_tracker
from pipelines.tracking import run_writer as mlflow_run_writer
from pipelines.tracking.connection import _put_in_place
from pipelines.tracking.database import database_path
from pipelines.tracking.run_identity import run_identity
from pipelines.tracking.settings import artifact_location, quiet_mlflow, server_environment
from pipelines.tracking.tracker import RunTracker, TrialSnapshot
from tests.pipelines.dying import Death, Died, die_at
from tests.pipelines.tracking import tracked
from tests.pipelines.tracking.mlflow_server import Server
from tests.pipelines.tracking.tracked import (
    KINDS,
    SEARCH,
    START_MS,
    TRAINING,
    TRIALS,
    Held,
    Runs,
    Subject,
    ended,
    running_server,
)

pytestmark = pytest.mark.core

Undisturbed = dict[str, dict[str, Held]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), empty_database) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Undisturbed:
    return tracked.undisturbed(tmp_path_factory.mktemp("undisturbed"), empty_database)


@pytest.fixture(params=KINDS)
def runs(request: pytest.FixtureRequest) -> Runs:
    return Runs.of_kind(request.param, request)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Runs:
    """For what does not depend on the kind of place."""
    return Runs.of_kind("folder", request)


@pytest.fixture(params=["search", "training"])
def subject(request: pytest.FixtureRequest, runs: Runs) -> Subject:
    return Subject(request.param, runs)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The artifacts that are uploaded from now on."""
    names, original = list[str](), mlflow_run_writer.log_artifact

    def noted(mlflow: Any, run_id: str, artifact_uri: str, artifact: Any) -> None:
        names.append(f"{mlflow.get_run(run_id).info.run_name}/{artifact.name}")
        original(mlflow, run_id, artifact_uri, artifact)

    monkeypatch.setattr(mlflow_run_writer, "log_artifact", noted)
    return names


# --- what a search and a training are in MLflow --------------------------------------------------------------


def test_a_search_is_one_parent_and_one_nested_run_per_trial(undisturbed: Undisturbed) -> None:
    trials = dict(undisturbed["search"])
    parent = trials.pop(SEARCH)
    assert (parent.status, parent.parent, parent.params) == ("FINISHED", None, {"seed": "0"})
    assert (parent.tags["trials"], parent.artifacts) == ("4", ["tradeoff.html"])
    assert "Compare" in parent.tags["mlflow.note.content"]
    assert {name: (run.parent, run.status, run.tags["status"]) for name, run in trials.items()} == {
        "0000-fvae": (SEARCH, "FINISHED", "complete"),
        "0001-flow": (SEARCH, "KILLED", "stopped"),
        "0002-vae": (SEARCH, "FAILED", "failed"),
    }
    assert trials["0002-vae"].tags["reason"] == "step 7: the loss is nan"


def test_params_metrics_and_artifacts(undisturbed: Undisturbed) -> None:
    complete, stopped = (undisturbed["search"][name] for name in ("0000-fvae", "0001-flow"))
    assert complete.params == {
        "model.flow_depth": "4",
        "model.encoder_width": "32",
        "train.learning_rate": "0.001",
        "data.bins": "17",
        "family": "fvae",
        "axis.log10_params": "4.0",
    }
    assert "model.encoder_width" not in stopped.params
    assert complete.curves["val/bpd"] == [(epoch, 3 + (epoch - 3) ** 2 / 10) for epoch in range(1, 6)]
    assert [value for _, value in complete.curves["best/val_bpd_so_far"]] == [3.4, 3.1, 3.0, 3.0, 3.0]
    assert [step for step, _ in complete.curves["system/memory"]] == [1, 2, 3, 4, 5]
    assert complete.curves["size/params"] == [(0, 1e4)]
    assert complete.curves["test/bpd_iwae64"] == [(5, 3.05)]
    assert not {"best/val_bpd", "test/bpd"} & set(stopped.curves)
    assert complete.artifacts == stopped.artifacts == ["model", "model/config.json", "samples.png"]
    assert complete.versions == []


def test_compare_opens_on_size_against_bits_per_dim(undisturbed: Undisturbed) -> None:
    """MLflow's scatter plot takes the first param and metric by name; parallel coordinates also the first metric, in
    the order of logging, that all runs have."""
    trials = [undisturbed["search"][name] for name in ("0000-fvae", "0001-flow")]
    params = sorted({key for run in trials for key in run.params})
    differing = [key for key in params if len({run.params.get(key) for run in trials}) > 1]
    assert params[0] == "axis.log10_params"
    assert differing[:2] == ["axis.log10_params", "family"]
    assert sorted({key for run in trials for key in run.curves})[0] == "best/val_bpd"
    assert [next(iter(run.curves)) for run in trials] == ["best/val_bpd_so_far"] * 2


def test_a_training_is_one_run_and_one_version_of_its_model(undisturbed: Undisturbed) -> None:
    ((name, run),) = undisturbed["training"].items()
    trial = undisturbed["search"]["0000-fvae"]
    assert (name, run.tags, run.versions) == (TRAINING, trial.tags | {"workers": "2"}, [(1, "ARTIFACTS/model")])
    assert run == trial._replace(parent=None, tags=run.tags, versions=run.versions)


def test_files_lie_beside_the_runs_or_on_the_server(runs: Runs, tmp_path: Path) -> None:
    runs.whole_search()
    assert runs.artifact("0000-fvae", "samples.png", tmp_path) == b"0000-fvae"
    assert runs.artifact("0001-flow", "model/config.json", tmp_path) == b"0001-flow"
    files = dict.fromkeys(TRIALS, ("samples.png", "model/config.json")) | {SEARCH: ("tradeoff.html",)}
    expected = {f"{SEARCH}/trials/{name}/{file}" for name in TRIALS for file in files[name]}
    expected |= {f"{SEARCH}/tracking.json", f"{SEARCH}/tradeoff.html"}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        ids = runs.ids
        expected |= {f"mlartifacts/{ids[name]}/artifacts/{file}" for name in files for file in files[name]}
        expected |= {"mlflow.db"}
    assert {info.key for info in runs.storage.list()} == expected


# --- repeated, interrupted, killed ---------------------------------------------------------------------------


def test_the_same_again_changes_nothing(subject: Subject, uploads: list[str]) -> None:
    first = subject.whole()
    assert len(uploads) == (7 if subject.is_search else 2)
    uploads.clear()
    before = subject.runs.exactly()
    assert subject.run.info.end_time == START_MS + 5000
    subject.runs.machine("B")
    if subject.is_search:
        subject.whole(later_ms=77)
    else:
        again = subject.start()
        subject.record(again, "complete", 5, later_ms=77)
        ended(again)
        assert (again.run_id, again.model_version) == (first.run_id, 1) == (subject.run.info.run_id, 1)
    assert subject.runs.exactly() == before  # a database in a bucket is not written either
    assert uploads == []


@pytest.mark.parametrize("what", ["search", "training"])
def test_a_growing_run_logs_each_epoch_once(folder: Runs, what: str) -> None:
    subject = Subject(what, folder)
    tracker = subject.start()
    for epochs in (0, 1, 1, 3, 5):
        subject.record(tracker, "running", epochs)
        assert tracker.flush()
    assert subject.run.info.status == "RUNNING"
    assert next(iter(subject.run.data.metrics)) == "best/val_bpd_so_far"  # see the test of Compare
    assert subject.epochs == [1, 2, 3, 4, 5]
    if isinstance(tracker, RunTracker):
        assert (tracker.run_id, tracker.model_version) == (subject.run.info.run_id, None)
    subject.record(tracker, "complete", 5)
    ended(tracker)
    assert subject.epochs == [1, 2, 3, 4, 5]


def test_what_breaks_off_goes_on_in_the_same_runs(subject: Subject) -> None:
    runs, tracker = subject.runs, subject.start()
    subject.record(tracker, "running", 2)
    tracker.close(interrupted=True)
    ids = runs.ids
    assert set(runs.statuses.values()) == {"KILLED"}
    assert subject.run.data.tags["status"] == "interrupted"

    runs.machine("B")
    tracker = subject.start()
    subject.record(tracker, "running", 3)
    assert tracker.flush()
    assert set(runs.statuses.values()) == {"RUNNING"}
    assert subject.run.data.tags["status"] == "running"
    tracker.close()
    assert runs.statuses == ({SEARCH: "FAILED", TRIALS[0]: "KILLED"} if subject.is_search else {TRAINING: "FAILED"})
    assert subject.run.data.tags["status"] == "interrupted"

    runs.machine("A")
    tracker = subject.start()
    subject.record(tracker, "complete", 5)
    ended(tracker)
    assert set(runs.statuses.values()) == {"FINISHED"}
    assert runs.ids == ids
    assert subject.epochs == [1, 2, 3, 4, 5]


# MLflow commits the metrics of a batch before its tags, one of which counts the epochs.
METRICS_WITHOUT_TAGS = (MlflowClient, "log_batch", "after", {"with_": "metrics", "without": "tags"})
DEATHS: dict[str, list[tuple[Any, str, Any, dict[str, Any]]]] = {
    "search": [
        (MlflowClient, "create_run", "after", {}),  # the parent's
        (MlflowClient, "create_run", "after", {}),  # a trial's
        METRICS_WITHOUT_TAGS,
        (MlflowClient, "set_terminated", "before", {}),
        (mlflow_run_writer, "log_artifact", "after", {"call": 2}),
    ],
    "training": [
        (MlflowClient, "create_run", "after", {}),
        METRICS_WITHOUT_TAGS,
        (mlflow_run_writer, "log_artifact", "after", {}),
        (MlflowClient, "create_model_version", "after", {}),
    ],
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_at_every_point_and_the_same_again(subject: Subject, undisturbed: Undisturbed) -> None:
    """One process after another dies, each further on; the epochs that each trains again have other times."""
    what = "search" if subject.is_search else "training"
    for number, (owner, name, when, options) in enumerate(DEATHS[what]):
        death = Death()
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, owner, name, when, death, **options)
            with pytest.raises(Died):
                subject.whole(later_ms=77 * number, settle=death.settle)
    subject.whole(later_ms=777)
    assert subject.runs.content() == undisturbed[what]


def test_runs_left_running_by_a_killed_process_are_corrected(folder: Runs) -> None:
    tracker = folder.search_tracker()
    tracker.record_trial(folder.trial(0, "running", 2))
    tracker.close(interrupted=True)
    folder.client.update_run(folder.ids[TRIALS[0]], status="RUNNING")  # as a kill leaves it
    tracker = folder.search_tracker()
    assert tracker.flush()
    assert folder.statuses[TRIALS[0]] == "KILLED"
    tracker.close()


# --- changed, refused ------------------------------------------------------------------------------------------


def test_a_changed_artifact_and_later_figures_are_added(runs: Runs, uploads: list[str], tmp_path: Path) -> None:
    runs.whole_search()
    uploads.clear()
    runs.machine("B")
    for file in ("samples.png", "model/config.json"):
        runs.storage.write(f"{SEARCH}/trials/0001-flow/{file}", b"RETRAINED")  # as long as before
    tracker = runs.search_tracker()
    tracker.record_trial(runs.trial(0, "complete", 5))
    tracker.record_trial(runs.trial(1, "complete", 2, "flow"))
    ended(tracker)
    run = runs.held["0001-flow"]
    assert (run.info.status, run.data.tags["status"], run.data.tags["reason"]) == ("FINISHED", "complete", "")
    assert runs.points("0001-flow", "test/bpd") == [(2, 4.1)]
    assert uploads == ["0001-flow/samples.png", "0001-flow/model"]
    for file in ("samples.png", "model/config.json"):
        assert runs.artifact("0001-flow", file, tmp_path) == b"RETRAINED"


def test_a_refused_write_is_reported_and_holds_up_nothing_else(runs: Runs) -> None:
    tracker, snapshot, missing = (
        runs.search_tracker(),
        runs.trial(0, "complete", 2),
        f"{SEARCH}/trials/{TRIALS[0]}/model",
    )
    runs.storage.delete_prefix(missing)
    tracker.record_trial(snapshot)
    tracker.record_trial(runs.trial(1, "complete", 2))
    assert not tracker.flush()
    (problem,) = tracker.problems
    assert TRIALS[0] in problem and f"{runs.storage.uri}/{missing}" in problem and "\n" not in problem
    assert runs.statuses["0001-fvae"] == "FINISHED"
    assert len(runs.points(TRIALS[0], "val/bpd")) == 2

    runs.storage.write(f"{missing}/config.json", b"there now")
    assert tracker.flush()
    ended(tracker)
    assert runs.statuses[TRIALS[0]] == "FINISHED"


def test_a_param_that_changed_is_reported(folder: Runs) -> None:
    folder.whole_search()
    same, tracker = folder.trial(0, "complete", 5), folder.search_tracker()
    tracker.record_trial(dataclasses.replace(same, params={**same.params, "model.flow_depth": 99}))
    assert not tracker.flush()
    assert "model.flow_depth" in tracker.problems[0]
    tracker.record_trial(same)
    assert tracker.flush()
    tracker.close()
    assert folder.held[TRIALS[0]].data.params["model.flow_depth"] == "4"


def test_a_history_longer_than_mlflows_batch(runs: Runs) -> None:
    tracker = runs.search_tracker()
    tracker.record_trial(runs.trial(0, "complete", 500))
    ended(tracker)
    for key in ("val/bpd", "train/bpd"):
        assert [step for step, _ in runs.points(TRIALS[0], key)] == list(range(1, 501))


def test_a_search_made_anew_is_another_search(folder: Runs) -> None:
    folder.whole_search()
    folder.storage.delete(f"{SEARCH}/tracking.json")
    tracker = folder.search_tracker(params={"seed": 1})
    tracker.record_trial(folder.trial(0, "complete", 5))
    ended(tracker)
    assert sorted(run.info.run_name for run in folder.all) == sorted([*TRIALS, SEARCH, TRIALS[0], SEARCH])


def test_a_deleted_experiment_comes_back(folder: Runs) -> None:
    folder.whole_search()
    folder.client.delete_experiment(folder.held[SEARCH].info.experiment_id)
    tracker = folder.search_tracker()
    tracker.record_trial(folder.trial(3, "complete", 2))
    ended(tracker)
    assert set(folder.held) == {SEARCH, *TRIALS, "0003-fvae"}


def test_deleted_runs_come_back_and_stay_together(runs: Runs) -> None:
    runs.whole_search()
    ids = runs.ids
    for name in (SEARCH, TRIALS[0]):
        runs.client.delete_run(ids[name])
    tracker = runs.search_tracker()
    for number in (0, 1, 3):
        tracker.record_trial(runs.trial(number, "complete", 5))
    ended(tracker)
    assert {name: runs.ids[name] for name in ids} == ids
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.all} == {None, ids[SEARCH]}


def test_a_deleted_training_comes_back(runs: Runs) -> None:
    tracker = runs.run_tracker()
    tracker.record(runs.training("complete", 2))
    ended(tracker)
    runs.client.delete_run(runs.ids[TRAINING])
    tracker = runs.run_tracker()
    tracker.record(runs.training("complete", 2))
    ended(tracker)
    assert [run.info.run_name for run in runs.all] == [TRAINING]


def test_trials_move_to_the_parent_that_replaces_a_removed_one(folder: Runs) -> None:
    folder.whole_search()
    with contextlib.closing(sqlite3.connect(database_path(folder.storage))) as database, database:
        removed = folder.ids[SEARCH]  # as `mlflow gc` removes it for good
        for table in ("tags", "params", "latest_metrics", "metrics"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (removed,))
        database.execute("DELETE FROM runs WHERE run_uuid = ?", (removed,))
    tracker = folder.search_tracker()
    tracker.record_trial(folder.trial(0, "complete", 5))
    ended(tracker)
    assert folder.ids[SEARCH] != removed
    assert folder.content()[TRIALS[0]].parent == SEARCH


@pytest.mark.parametrize("seen_first", [True, False])
def test_a_copy_of_an_earlier_version_has_an_identity_of_its_own(seen_first: bool, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("first/tracking.json", json.dumps({"search_id": "earlier"}).encode())
    if seen_first:
        assert run_identity(storage, "first", own_database=True) == "earlier"
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = run_identity(storage, "second", own_database=True)
    assert second != "earlier" == run_identity(storage, "first", own_database=True)
    assert second == run_identity(storage, "second", own_database=True)
    kept = json.loads(storage.read("first/tracking.json"))
    assert kept == {"search_id": "earlier", "storage": storage.uri, "name": "first"}


def test_a_damaged_identity_is_one_clear_line(runs: Runs) -> None:
    for name, start in ((SEARCH, runs.search_tracker), (TRAINING, runs.run_tracker)):
        runs.storage.write(f"{name}/tracking.json", b"[]")
        with pytest.raises(ConfigError) as failure:
            start()
        assert str(failure.value).startswith(f"{runs.storage.uri}/{name}/tracking.json: damaged; remove it")
        assert "\n" not in str(failure.value)


# --- trainings beside each other and below a search --------------------------------------------------------------


def test_another_training_is_another_run_and_another_version(folder: Runs) -> None:
    first, second = folder.whole_training(), folder.whole_training(run_name="train-again")
    assert first.run_id != second.run_id
    assert (first.model_version, second.model_version) == (1, 2)


def test_a_training_nested_under_a_search_lies_in_its_experiment(folder: Runs) -> None:
    ended(folder.search_tracker())
    parent = folder.ids[SEARCH]
    for _ in range(2):
        tracker = folder.whole_training(parent_run_id=parent, dataset_name="another")
    assert folder.ids == {SEARCH: parent, TRAINING: tracker.run_id}
    assert folder.held[TRAINING].data.tags["mlflow.parentRunId"] == parent
    assert folder.client.get_experiment_by_name("fvae/another") is None


def test_a_parent_that_is_not_there_is_a_problem(folder: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", ())
    tracker = folder.run_tracker(parent_run_id="0" * 32)
    assert not tracker.flush()
    assert "0" * 32 in tracker.problems[0]
    tracker.close()
    assert tracker.run_id is None


# --- searches of many trials -------------------------------------------------------------------------------------


@pytest.fixture
def eight(folder: Runs) -> list[TrialSnapshot]:
    """A finished search of eight trials in ``folder``."""
    tracker, trials = folder.search_tracker(), [folder.trial(number, "complete", 2) for number in range(8)]
    for snapshot in trials:
        tracker.record_trial(snapshot)
    ended(tracker)
    return trials


@pytest.fixture
def read(eight: list[TrialSnapshot], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each question to MLflow for runs brings from now on."""
    search_runs, counts = MlflowClient.search_runs, list[int]()

    def counting(*arguments: Any, **options: Any) -> Any:
        found = search_runs(*arguments, **options)
        counts.append(len(found))
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", counting)
    return counts


def test_a_search_that_goes_on_reads_only_the_trials_that_it_writes(
    folder: Runs, eight: list[TrialSnapshot], read: list[int]
) -> None:
    before = folder.ids
    read.clear()
    tracker = folder.search_tracker()
    tracker.record_trial(dataclasses.replace(eight[3], final={**eight[3].final, "test/more": 2.5}))
    for epochs in (1, 2):
        tracker.record_trial(folder.trial(8, "running", epochs))
        assert tracker.flush()
    tracker.close(interrupted=True)
    assert sum(read) == 2  # the parent and the trial 3
    after = folder.ids
    assert after == {**before, "0008-fvae": after["0008-fvae"]}
    assert folder.held["0003-fvae"].data.metrics["test/more"] == 2.5


def test_many_trials_to_write_are_read_at_once(
    folder: Runs, eight: list[TrialSnapshot], read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder.exactly()
    monkeypatch.setattr("pipelines.tracking.runs._LOOKED_UP", 7)
    read.clear()
    tracker = folder.search_tracker(start=False)
    for snapshot in eight:
        tracker.record_trial(snapshot)
    tracker.start()
    ended(tracker)
    assert read == [1, 9]  # the parent; the parent and the trials
    assert folder.exactly() == before


def test_the_parent_of_an_earlier_version_is_found_once_and_then_by_its_tag(folder: Runs, read: list[int]) -> None:
    folder.client.delete_tag(folder.ids[SEARCH], "fvae.search.parent")
    for expected in ([0, 9], [1, 0]):
        read.clear()
        tracker = folder.search_tracker()
        assert tracker.flush()
        tracker.close()
        assert read == expected
    assert len(folder.held) == 9


# --- a folder's database, a server --------------------------------------------------------------------------


def test_a_second_maker_of_the_database_does_not_replace_the_first(tmp_path: Path) -> None:
    for number in ("first", "second"):
        built = tmp_path / number
        built.write_text(number)
        _put_in_place(built, tmp_path / "runs" / "mlflow.db")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]
    assert (tmp_path / "runs" / "mlflow.db").read_text() == "first"


def test_a_server_that_refuses_connections_is_one_problem(folder: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own retries, which take minutes, would be a second problem: the tracker's end waits a minute."""
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        port = silent.getsockname()[1]
        tracker = folder.search_tracker(tracking_uri=f"http://127.0.0.1:{port}")
        for snapshot in folder.trials():
            tracker.record_trial(snapshot)
        tracker.finish()
        tracker.close()
    (problem,) = tracker.problems
    assert str(port) in problem and "\n" not in problem


def test_a_server_that_never_answers_delays_no_recording(folder: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        tracker = folder.search_tracker(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            for snapshot in folder.trials() * 100:
                tracker.record_trial(snapshot)
            tracker.close(timeout=0.5)
            assert "no answer" in tracker.problems[0]
            # All of that while one request waited: the client ends the connection once it has given up.
            received = b""
            while b"\r\n\r\n" not in received:
                received += (part := connection.recv(65536))
                assert part
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_server_chooses_the_place_of_artifacts_itself(tmp_path: Path) -> None:
    bucket, here = open_storage("s3://bucket/runs"), open_storage(tmp_path)
    assert artifact_location("http://tracking:5000", bucket) is None
    assert artifact_location("https://tracking", bucket) is None
    assert artifact_location("postgresql://host/mlflow", bucket) == "s3://bucket/runs/mlartifacts"
    assert artifact_location("sqlite:///x.db", here) == (tmp_path / "mlartifacts").as_uri()


# --- settings, snapshots, pages ------------------------------------------------------------------------------


def test_defaults_leave_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "to be removed")
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL")
    quiet_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "CRITICAL"

    monkeypatch.delenv("AWS_RETRY_MODE", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    environment = server_environment()
    assert (environment["AWS_RETRY_MODE"], environment["AWS_MAX_ATTEMPTS"]) == ("standard", "2")
    assert "AWS_RETRY_MODE" not in os.environ


def test_snapshots_that_cannot_be(tmp_path: Path) -> None:
    runs = Runs(open_storage(tmp_path))
    complete = runs.trial(0, "complete", 2)
    with pytest.raises(ValueError, match="only a complete trial"):
        dataclasses.replace(complete, status="stopped")
    with pytest.raises(ValueError, match="val/bpd"):
        dataclasses.replace(complete, final={"val/bpd": math.pi})
    with pytest.raises(ValueError, match="no artifact 'model'"):
        dataclasses.replace(runs.training("complete", 2), artifacts=())


def test_pages_of_nothing_are_one_clear_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for location, message in {
        f"{bucket}/none": "no runs there yet",
        f"{bucket}-no-bucket": "no such bucket",
        "gs://bucket/runs": "cannot use gs://",
    }.items():
        with pytest.raises(ConfigError, match=message) as failure:
            ui.main(ui.UISettings(runs=location))
        assert "\n" not in str(failure.value)

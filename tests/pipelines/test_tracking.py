"""A search in MLflow: everything there once, whatever is repeated, killed, refused or out of reach.

Real MLflow on SQLite throughout.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage import open_storage
from pipelines.tracking import Artifact, TrialSnapshot, default_tracking_uri, quiet_mlflow
from tests.pipelines.searches import (
    START_MS,
    a_search,
    client,
    content,
    history,
    make_trial,
    open_tracker,
    points,
    runs_of,
)

pytestmark = pytest.mark.core

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs_dir(tmp_path, empty_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs with 100% of it"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return folder


def dump(runs_dir: Path) -> list[str]:
    with sqlite3.connect(runs_dir / "mlflow.db") as connection:
        return list(connection.iterdump())


def log_whole_search(runs_dir: Path) -> None:
    tracker = open_tracker(runs_dir)
    for trial in a_search(runs_dir):
        tracker.record_trial(trial)
    page = runs_dir / "digits-0" / "tradeoff.html"
    if not page.exists():
        page.write_text("<p>the map")
    tracker.finish([Artifact(open_storage(page.parent), page.name)])
    tracker.close()
    assert tracker.problems == []


@pytest.fixture
def finished(runs_dir):
    """A search of its own for a test that goes on with it."""
    log_whole_search(runs_dir)
    return runs_dir


@pytest.fixture(scope="module")
def finished_for_all(tmp_path_factory, empty_database):
    """One search for the tests that only look."""
    runs_dir = tmp_path_factory.mktemp("finished")
    shutil.copyfile(empty_database, runs_dir / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        log_whole_search(runs_dir)
    return runs_dir


def test_one_parent_and_one_nested_run_per_trial(finished_for_all):
    runs = runs_of(finished_for_all)
    assert set(runs) == {"digits-0", "0000-fvae", "0001-flow", "0002-vae"}
    parent = runs.pop("digits-0")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"seed": "0"}
    assert parent.data.tags["trials"] == "4"
    assert "Compare" in parent.data.tags["mlflow.note.content"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {name: run.info.status for name, run in runs.items()} == {
        "0000-fvae": "FINISHED",
        "0001-flow": "KILLED",
        "0002-vae": "FAILED",
    }
    assert runs["0002-vae"].data.tags["reason"] == "step 7: the loss is nan"
    assert {run.data.tags["status"] for run in runs.values()} == {"complete", "stopped", "failed"}


def test_params_and_metrics(finished_for_all):
    runs = runs_of(finished_for_all)
    assert runs["0000-fvae"].data.params == {
        "model.flow_depth": "4",
        "model.encoder_width": "32",
        "train.learning_rate": "0.001",
        "data.bins": "17",
        "family": "fvae",
        "axis.log10_params": "4.0",
    }
    assert "model.encoder_width" not in runs["0001-flow"].data.params
    complete = runs["0000-fvae"]
    assert points(finished_for_all, complete, "val/bpd") == [(e, 3 + (e - 3) ** 2 / 10) for e in range(1, 6)]
    assert [value for _, value in points(finished_for_all, complete, "best/val_bpd_so_far")] == [
        3.4,
        3.1,
        3.0,
        3.0,
        3.0,
    ]
    assert points(finished_for_all, complete, "size/params") == [(0, 1e4)]
    assert points(finished_for_all, complete, "test/bpd_iwae64") == [(5, 3.05)]
    assert complete.info.end_time == START_MS + 5000
    assert not {"best/val_bpd", "test/bpd"} & set(runs["0001-flow"].data.metrics)


def test_compare_opens_on_size_against_bits_per_dim(finished_for_all):
    """MLflow's scatter plot takes the first param and metric by name; parallel coordinates also the first metric, in
    the order of logging, that all runs have."""
    trials = [run for name, run in runs_of(finished_for_all).items() if name in {"0000-fvae", "0001-flow"}]
    params = sorted({key for run in trials for key in run.data.params})
    differing = [key for key in params if len({run.data.params.get(key) for run in trials}) > 1]
    assert params[0] == "axis.log10_params"
    assert differing[:2] == ["axis.log10_params", "family"]
    assert sorted({key for run in trials for key in run.data.metrics})[0] == "best/val_bpd"
    assert [next(iter(run.data.metrics)) for run in trials] == ["best/val_bpd_so_far"] * 2


def test_artifacts_lie_under_the_runs_directory(finished_for_all, tmp_path):
    runs = runs_of(finished_for_all)
    for name, files in {"0000-fvae": {"samples.png", "model/config.json"}, "digits-0": {"tradeoff.html"}}.items():
        root = finished_for_all / "mlartifacts" / runs[name].info.run_id / "artifacts"
        assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == files
    local = client(finished_for_all).download_artifacts(
        runs["0000-fvae"].info.run_id, "model/config.json", str(tmp_path)
    )
    assert Path(local).read_text() == "0000-fvae"


def test_recording_a_finished_search_again_changes_nothing(finished):
    before = dump(finished)
    uploaded = {path: path.stat().st_mtime_ns for path in (finished / "mlartifacts").rglob("*")}
    log_whole_search(finished)
    assert dump(finished) == before
    assert {path: path.stat().st_mtime_ns for path in (finished / "mlartifacts").rglob("*")} == uploaded


def test_a_changed_artifact_and_later_test_figures_are_added(finished):
    trial = make_trial(1, "complete", 2, finished, "flow")
    (finished / "digits-0/trials/0001-flow/samples.png").write_text("better samples")
    tracker = open_tracker(finished)
    tracker.record_trial(trial)
    tracker.finish()
    tracker.close()
    run = runs_of(finished)["0001-flow"]
    assert (run.info.status, run.data.tags["status"], run.data.tags["reason"]) == ("FINISHED", "complete", "")
    assert points(finished, run, "test/bpd") == [(2, 4.1)]
    assert (finished / "mlartifacts" / run.info.run_id / "artifacts/samples.png").read_text() == "better samples"


def test_a_growing_trial_logs_each_epoch_once(runs_dir):
    tracker = open_tracker(runs_dir)
    for epochs in (0, 1, 1, 3, 5):
        tracker.record_trial(make_trial(0, "running", epochs, runs_dir))
        assert tracker.flush()
    run = runs_of(runs_dir)["0000-fvae"]
    assert run.info.status == "RUNNING"
    assert next(iter(run.data.metrics)) == "best/val_bpd_so_far"  # see the test of Compare
    assert [step for step, _ in points(runs_dir, run, "val/bpd")] == [1, 2, 3, 4, 5]
    tracker.close()


def test_a_history_longer_than_mlflows_batch(runs_dir):
    tracker = open_tracker(runs_dir)
    tracker.record_trial(make_trial(0, "complete", 500, runs_dir))
    tracker.close()
    assert tracker.problems == []
    run = runs_of(runs_dir)["0000-fvae"]
    assert [step for step, _ in points(runs_dir, run, "grad_norm")] == list(range(1, 501))


def test_an_interrupted_search_goes_on_in_the_same_runs(runs_dir):
    tracker = open_tracker(runs_dir)
    tracker.record_trial(make_trial(0, "running", 2, runs_dir))
    tracker.close(interrupted=True)
    stopped = runs_of(runs_dir)
    assert {run.info.status for run in stopped.values()} == {"KILLED"}
    assert stopped["0000-fvae"].data.tags["status"] == "interrupted"

    tracker = open_tracker(runs_dir)
    tracker.record_trial(make_trial(0, "running", 3, runs_dir))
    assert tracker.flush()
    resumed = runs_of(runs_dir)
    assert {name: run.info.run_id for name, run in resumed.items()} == {
        name: run.info.run_id for name, run in stopped.items()
    }
    assert {run.info.status for run in resumed.values()} == {"RUNNING"}
    assert resumed["0000-fvae"].data.tags["status"] == "running"
    tracker.record_trial(make_trial(0, "complete", 5, runs_dir))
    tracker.finish()
    tracker.close()
    assert {run.info.status for run in runs_of(runs_dir).values()} == {"FINISHED"}


def test_an_epoch_trained_again_after_a_crash_is_one_point(runs_dir):
    """The process died between an epoch's metrics and the tag that counts them; then the epoch took other times."""
    tracker = open_tracker(runs_dir)
    tracker.record_trial(make_trial(0, "running", 3, runs_dir))
    tracker.close(interrupted=True)
    run = runs_of(runs_dir)["0000-fvae"]
    client(runs_dir).set_tag(run.info.run_id, "fvae.epochs", "1")
    later = tuple(epoch._replace(time_ms=epoch.time_ms + 77) for epoch in history(4))
    tracker = open_tracker(runs_dir)
    tracker.record_trial(dataclasses.replace(make_trial(0, "running", 4, runs_dir), history=later))
    tracker.close()
    assert [step for step, _ in points(runs_dir, run, "val/bpd")] == [1, 2, 3, 4]


def test_a_search_that_breaks_off_is_failed(runs_dir):
    tracker = open_tracker(runs_dir)
    tracker.close()
    assert runs_of(runs_dir)["digits-0"].info.status == "FAILED"


def test_a_run_directory_made_anew_is_another_search(finished):
    (finished / "digits-0" / "tracking.json").unlink()
    tracker = open_tracker(finished, params={"seed": 1})
    tracker.record_trial(make_trial(0, "complete", 5, finished))
    tracker.finish()
    tracker.close()
    assert tracker.problems == []
    experiment = client(finished).get_experiment_by_name("fvae/digits")
    names = [run.info.run_name for run in client(finished).search_runs([experiment.experiment_id])]
    assert sorted(names) == ["0000-fvae", "0000-fvae", "0001-flow", "0002-vae", "digits-0", "digits-0"]


def test_a_deleted_experiment_comes_back(finished):
    client(finished).delete_experiment(client(finished).get_experiment_by_name("fvae/digits").experiment_id)
    tracker = open_tracker(finished)
    tracker.record_trial(make_trial(3, "complete", 2, finished))
    tracker.finish()
    tracker.close()
    assert tracker.problems == []
    assert runs_of(finished)["0003-fvae"].info.status == "FINISHED"


DYING_SEARCH = """
import pathlib, sys
sys.path[:0] = {paths!r}
from tests.pipelines.dying import die_at
import test_tracking

die_at({owner!r}, {name!r}, {call!r}, {when!r})
test_tracking.log_whole_search(pathlib.Path({runs_dir!r}))
"""

KILLS = {
    "database half made": ("path", "hardlink_to", 1, "before"),
    "parent made": ("client", "create_run", 1, "after"),
    "trial made": ("client", "create_run", 2, "after"),
    "metrics without tags": ("store", "_set_tags", 2, "before"),
    "trial not ended": ("client", "set_terminated", 1, "before"),
    "half uploaded": ("client", "log_artifact", 2, "after"),
}


@pytest.fixture(scope="module")
def killed_searches(tmp_path_factory, empty_database):
    """For each of ``KILLS`` the runs directory that a killed process left."""

    def search_until_killed(point: str) -> Path:
        owner, name, call, when = KILLS[point]
        runs_dir = tmp_path_factory.mktemp("killed")
        if owner != "path":
            shutil.copyfile(empty_database, runs_dir / "mlflow.db")
        paths = [str(PROJECT), str(Path(__file__).parent)]
        script = DYING_SEARCH.format(paths=paths, owner=owner, name=name, call=call, when=when, runs_dir=str(runs_dir))
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        return runs_dir

    with ThreadPoolExecutor(max_workers=3) as pool:
        return dict(zip(KILLS, pool.map(search_until_killed, KILLS), strict=True))


@pytest.mark.parametrize("point", KILLS)
def test_kill_at_any_point_then_the_same_again(finished_for_all, killed_searches, point, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs_dir = killed_searches[point]
    assert (runs_dir / "mlflow.db").exists() == (point != "database half made")
    log_whole_search(runs_dir)
    assert content(runs_dir) == content(finished_for_all)


def test_runs_left_running_by_a_killed_process_are_corrected(runs_dir):
    tracker = open_tracker(runs_dir)
    tracker.record_trial(make_trial(0, "running", 2, runs_dir))
    tracker.close(interrupted=True)
    run = runs_of(runs_dir)["0000-fvae"]
    client(runs_dir).update_run(run.info.run_id, status="RUNNING")  # as a kill would have left it
    tracker = open_tracker(runs_dir)
    assert tracker.flush()
    assert runs_of(runs_dir)["0000-fvae"].info.status == "KILLED"
    tracker.close()


def test_a_second_maker_of_the_database_does_not_replace_the_first(tmp_path):
    from pipelines.mlflow_connection import _put_in_place

    for number in ("first", "second"):
        built = tmp_path / number
        built.write_text(number)
        _put_in_place(built, tmp_path / "runs" / "mlflow.db")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]
    assert (tmp_path / "runs" / "mlflow.db").read_text() == "first"


def test_a_refused_write_is_reported_and_holds_up_nothing_else(runs_dir):
    bad = make_trial(0, "complete", 2, runs_dir)
    missing = runs_dir / "digits-0/trials/0000-fvae/samples.png"
    missing.unlink()
    tracker = open_tracker(runs_dir)
    tracker.record_trial(bad)
    tracker.record_trial(make_trial(1, "complete", 2, runs_dir))
    assert not tracker.flush()
    assert len(tracker.problems) == 1
    assert "0000-fvae" in tracker.problems[0] and "samples.png" in tracker.problems[0]
    runs = runs_of(runs_dir)
    assert runs["0001-fvae"].info.status == "FINISHED"
    assert len(points(runs_dir, runs["0000-fvae"], "val/bpd")) == 2

    missing.write_text("there now")
    assert tracker.flush()
    assert tracker.problems == []
    tracker.finish()
    tracker.close()
    assert runs_of(runs_dir)["0000-fvae"].info.status == "FINISHED"


def test_a_param_that_changed_is_reported(finished):
    trial = make_trial(0, "complete", 5, finished)
    tracker = open_tracker(finished)
    tracker.record_trial(dataclasses.replace(trial, params=dict(trial.params) | {"model.flow_depth": 99}))
    assert not tracker.flush()
    assert "model.flow_depth" in tracker.problems[0]
    tracker.record_trial(trial)
    assert tracker.flush()
    tracker.close()
    assert runs_of(finished)["0000-fvae"].data.params["model.flow_depth"] == "4"


def test_a_server_that_refuses_connections_is_one_problem(runs_dir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tracker = open_tracker(runs_dir, tracking_uri=f"http://127.0.0.1:{port}")
    for trial in a_search(runs_dir):
        tracker.record_trial(trial)
    tracker.finish()
    begin = time.monotonic()
    tracker.close()
    assert time.monotonic() - begin < 15
    assert len(tracker.problems) == 1
    assert str(port) in tracker.problems[0]


def test_a_server_that_never_answers_holds_up_nobody(runs_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        tracker = open_tracker(runs_dir, tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            trials = a_search(runs_dir)
            for _ in range(100):
                for trial in trials:
                    tracker.record_trial(trial)
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


def test_the_tracking_uri_of_the_environment_is_used(runs_dir, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(runs_dir / "mlflow.db", elsewhere / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(open_storage(elsewhere)))
    before = dump(runs_dir)
    tracker = open_tracker(runs_dir)
    tracker.close()
    assert set(runs_of(elsewhere)) == {"digits-0"}
    assert dump(runs_dir) == before


def test_defaults_leave_the_users_own_settings(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "to be removed")
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL")
    quiet_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "CRITICAL"


def test_only_complete_trials_have_final_metrics(tmp_path):
    trial = make_trial(0, "complete", 2, tmp_path)
    with pytest.raises(ValueError, match="only a complete trial"):
        dataclasses.replace(trial, status="stopped")
    with pytest.raises(ValueError, match="val/bpd"):
        dataclasses.replace(trial, final={"val/bpd": math.pi})


# --- searches of many trials -----------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many runs each question to MLflow for runs has brought."""
    from mlflow import MlflowClient

    search_runs, counts = MlflowClient.search_runs, []

    def counting(*arguments, **options):
        found = search_runs(*arguments, **options)
        counts.append(len(found))
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", counting)
    return counts


def eight_trials(runs_dir: Path) -> list[TrialSnapshot]:
    tracker = open_tracker(runs_dir)
    trials = [make_trial(number, "complete", 2, runs_dir) for number in range(8)]
    for trial in trials:
        tracker.record_trial(trial)
    tracker.finish()
    tracker.close()
    assert tracker.problems == []
    return trials


def test_a_search_that_goes_on_reads_only_the_trials_that_it_writes(runs_dir, read):
    trials = eight_trials(runs_dir)
    before = runs_of(runs_dir)
    read.clear()
    tracker = open_tracker(runs_dir)
    tracker.record_trial(dataclasses.replace(trials[3], final={**trials[3].final, "test/more": 2.5}))
    tracker.record_trial(make_trial(8, "running", 1, runs_dir))
    assert tracker.flush()
    tracker.record_trial(make_trial(8, "running", 2, runs_dir))
    assert tracker.flush()
    tracker.close(interrupted=True)
    assert sum(read) == 2  # the parent and the trial 3
    after = runs_of(runs_dir)
    assert {name: after[name].info.run_id for name in before} == {name: run.info.run_id for name, run in before.items()}
    assert set(after) - set(before) == {"0008-fvae"}
    assert after["0003-fvae"].data.metrics["test/more"] == 2.5


def test_many_trials_to_write_are_read_at_once(runs_dir, read, monkeypatch):
    trials = eight_trials(runs_dir)
    before = dump(runs_dir)
    monkeypatch.setattr("pipelines.mlflow_runs._LOOKED_UP", 7)
    read.clear()
    tracker = open_tracker(runs_dir, start=False)
    for trial in trials:
        tracker.record_trial(trial)
    tracker.start()
    tracker.finish()
    tracker.close()
    assert read == [1, 9]  # the parent; the parent and the trials
    assert dump(runs_dir) == before


def test_the_parent_of_an_earlier_version_is_found_once_and_then_by_its_tag(runs_dir, read):
    eight_trials(runs_dir)
    parent = runs_of(runs_dir)["digits-0"]
    client(runs_dir).delete_tag(parent.info.run_id, "fvae.search.parent")
    for expected in ([0, 9], [1, 0]):
        read.clear()
        tracker = open_tracker(runs_dir)
        assert tracker.flush()
        tracker.close()
        assert read == expected
    assert len(runs_of(runs_dir)) == 9

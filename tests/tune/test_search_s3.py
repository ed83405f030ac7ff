"""The main job with everything on S3: data set, checkpoints, map and MLflow's artifacts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient

import pipelines.ray_environment  # noqa: F401
from pipelines import command_line
from pipelines.model_files import PICTURES
from pipelines.run_place import locked
from pipelines.storage import Storage, open_storage
from pipelines.tracking import default_tracking_uri
from tests.s3 import FaultProxy, GroupedFaultProxy, only
from tune import search
from tune.settings import SearchSettings
from tune.trial_files import CHECKPOINT

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
SMALL = ("--trials", "6", "--epochs", "4", "--batch-size", "256", "--streaming", "always")
MINUTES = 300.0
MAP = ("tradeoff.html", "tradeoff.json", "tradeoff.png", "trials.csv")


def run(
    here: Path,
    dataset: str,
    runs: str,
    *script: str,
    options: tuple[str, ...] = SMALL,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The search (or ``script``) in the folder ``here``, against the session's S3 server."""
    path, *arguments = script or ("tune/search.py",)
    command = [sys.executable, str(ROOT / path), *arguments, "--dataset", dataset, "--storage", runs, *options]
    here.mkdir(exist_ok=True)
    return subprocess.run(
        command,
        cwd=here,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=False,
    )


def hasty(signal_name: str = "SIGKILL", moment: str = "never") -> tuple[str, ...]:
    return ("tests/tune/interrupted_search.py", signal_name, f"hasty,{moment}")


def records(run_storage: Storage) -> dict[str, dict[str, Any]]:
    keys = [info.key for info in run_storage.list("trials") if info.key.endswith("/trial.json")]
    return {key.split("/")[1]: json.loads(run_storage.read(key)) for key in keys}


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its model: no times, nor what it cost."""
    timed = ("seconds", "time_ms", "images_per_second")
    history = [{name: value for name, value in epoch.items() if name not in timed} for epoch in record["history"]]
    return record | {"history": history, "attempts": None}


def unfinished_uploads(location: str) -> list[Any]:
    bucket = location.removeprefix("s3://").split("/")[0]
    return boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])


@pytest.fixture(scope="module")
def dataset(s3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits as a data set in a bucket of its own."""
    boto3.client("s3").create_bucket(Bucket="images")
    location = "s3://images/digits"
    command = [sys.executable, "-m", "pipelines.ingest", "digits", location]
    subprocess.run(command, cwd=ROOT, check=True, timeout=MINUTES, capture_output=True)
    return location


@pytest.fixture(scope="module")
def finished(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """A finished search: where its runs lie, the folder it was started in, and what it printed. Not to be changed."""
    boto3.client("s3").create_bucket(Bucket="searches")
    here = tmp_path_factory.mktemp("laptop")
    result = run(here, dataset, "s3://searches/runs")
    assert result.returncode == 0, result.stdout + result.stderr
    return "s3://searches/runs", here, result.stdout


# --- what a search leaves --------------------------------------------------------------------------------


def test_the_bucket_holds_the_search_and_no_litter(finished: tuple[str, Path, str]) -> None:
    runs, here, said = finished
    storage = open_storage(runs)
    assert sorted({info.key.split("/")[0] for info in storage.list()}) == ["digits", "mlartifacts", "mlflow.db"]
    run_storage = storage.child("digits")
    trials = records(run_storage)
    left = (*PICTURES, "model/config.json", "model/model.safetensors", "trial.json")
    expected = {f"trials/{name}/{file}" for name in trials for file in left}
    expected |= {"search.json", "time.json", "tracking.json", *MAP}
    assert {info.key for info in run_storage.list()} == expected
    assert unfinished_uploads(runs) == []
    # Nothing of the search on this machine but MLflow's working copy.
    assert [path.name for path in here.iterdir()] == ["runs"]
    assert {path.name for path in (here / "runs").rglob("*") if path.is_file()} <= {
        "mlflow.db", "mlflow.db.json", "mlflow.db.lock",
    }  # fmt: skip
    assert [f"{runs}/digits/{name}" in said for name in MAP] == [True] * 4
    assert "warning" not in said and "attempt" not in said


def test_mlflow_s_artifacts_are_in_the_bucket(finished: tuple[str, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, here, _ = finished
    monkeypatch.chdir(here)
    client = MlflowClient(default_tracking_uri(open_storage(runs)))
    experiment = client.get_experiment_by_name("fvae/digits")
    found = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    trials = records(open_storage(f"{runs}/digits"))
    assert set(found) == {"digits", *trials}
    for name, each in found.items():
        assert each.info.status == "FINISHED"
        artifacts = open_storage(each.info.artifact_uri)
        assert each.info.artifact_uri.startswith(f"{runs}/mlartifacts/")
        keys = {info.key.split("/")[0] for info in artifacts.list()}
        assert keys == (
            {"model", "samples.png", "reconstructions.png", "interpolations.png"} if "-" in name else {*MAP}
        )
        for key in keys - {"model"}:
            there = f"{runs}/digits" if name == "digits" else f"{runs}/digits/trials/{name}"
            assert artifacts.read(key) == open_storage(there).read(key)


def test_the_same_command_from_an_empty_folder_draws_the_same_map(
    finished: tuple[str, Path, str], dataset: str, tmp_path: Path
) -> None:
    runs, _, _ = finished
    run_storage = open_storage(f"{runs}/digits")
    before = {name: run_storage.read(name) for name in ("tradeoff.json", "trials.csv", "tradeoff.png")}
    trials = {info.key: info.version for info in run_storage.list("trials")}
    for name in MAP:
        run_storage.delete(name)
    again = run(tmp_path / "elsewhere", dataset, runs)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6/6]" not in again.stdout and "warning" not in again.stdout
    assert {name: run_storage.read(name) for name in before} == before
    assert b"data:image/png;base64," in run_storage.read("tradeoff.html")
    assert {info.key: info.version for info in run_storage.list("trials")} == trials


# --- interruptions and faults ----------------------------------------------------------------------------


def dying(proxy_url: str, counted: Callable[[str, str], bool], at: int) -> FaultProxy:
    """A proxy that breaks every connection from the ``at``-th request that counts, until told otherwise."""
    seen = 0

    def count(method: str, path: str) -> bool:
        nonlocal seen
        if counted(method, path):
            seen += 1
            proxy.dead = proxy.dead or seen == at
        return True

    proxy = FaultProxy(proxy_url, counted=count)
    return proxy


def test_killed_then_without_a_store_then_whole(s3: str, bucket: str, dataset: str, tmp_path: Path) -> None:
    """The same command three times, each from another folder: kill -9, a store that dies, and the rest."""
    few = (*SMALL, "--trials", "3", "--concurrent", "1")
    killed = run(tmp_path / "one", dataset, bucket, *hasty("SIGKILL", "results:3"), options=few)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    run_storage = open_storage(f"{bucket}/digits")
    first = records(run_storage)
    checkpoints = [info.key for info in run_storage.list("trials") if info.key.endswith(CHECKPOINT)]
    assert checkpoints == [f"trials/0000-fvae/{CHECKPOINT}"]

    with dying(s3, only("PUT", path="/trial.json"), at=4) as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.url}
        broken = run(tmp_path / "two", dataset, bucket, *hasty(), options=few, environment=environment)
    restored = [key for key in checkpoints if any(key in each.path and each.method == "GET" for each in proxy.requests)]
    assert restored == checkpoints
    assert broken.returncode == 1
    (line,) = broken.stderr.splitlines()
    assert re.fullmatch(
        rf"error: {bucket}/digits/trials/\d+-\w+/trial.json: cannot write: .* \(\d+ attempts in .*\)", line
    )
    assert "failed" not in {record["status"] for record in records(run_storage).values()}
    second = records(run_storage)

    resumed = run(tmp_path / "three", dataset, bucket, *hasty(), options=few)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = records(run_storage)
    assert len(after) == 3 and {record["status"] for record in after.values()} == {"complete"}
    for earlier in (first, second):
        for name, record in earlier.items():
            assert after[name]["history"][: len(record["history"])] == record["history"]  # no epoch measured twice
    for record in after.values():
        assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4]
    keys = {info.key for info in run_storage.list()}
    assert set(MAP) <= keys
    assert not {key for key in keys if CHECKPOINT in key or "/." in f"/{key}"}
    assert unfinished_uploads(bucket) == []


def test_a_store_that_fails_now_and_then_changes_nothing_but_the_log(
    s3: str, finished: tuple[str, Path, str], bucket: str, dataset: str, tmp_path: Path
) -> None:
    of_reading = {"500", "503", "stall", "reset", "truncate", "corrupt"}
    of_uploading = {"500", "503", "stall", "reset", "truncate", "reset-upload"}  # no answer has a body to corrupt
    shards = {2: "500", 4: "corrupt", 7: "503", 9: "truncate", 12: "stall", 15: "reset"}
    checkpoints = {1: "500", 3: "reset-upload", 5: "503", 7: "stall", 9: "reset", 11: "truncate"}
    artifacts = {1: "500", 3: "reset-upload", 6: "503", 9: "truncate", 12: "stall", 15: "reset"}
    assert set(shards.values()) == of_reading and set(checkpoints.values()) == set(artifacts.values()) == of_uploading
    groups = {
        "shards": (only("GET", path="/train-"), shards),
        "checkpoints": (only("PUT", path=f"/{CHECKPOINT}"), checkpoints),
        "artifacts": (only("PUT", path="/mlartifacts/"), artifacts),
        "ledger": (
            only("PUT", path="/trial.json"),
            {2: "503", 4: "500", 8: "stall", 11: "reset", 15: "reset-upload"},
        ),
        "other files of trials": (
            lambda _, path: "/trials/" in path and "trial.json" not in path,
            {1: "503", 3: "reset", 6: "429", 9: "truncate", 14: "500"},
        ),
    }
    with GroupedFaultProxy(s3, groups) as proxy:
        result = run(tmp_path / "here", dataset, bucket, *hasty(), environment={"AWS_ENDPOINT_URL": proxy.url})
    assert result.returncode == 0, result.stdout + result.stderr
    assert proxy.failed == {name: plan for name, (_, plan) in groups.items()}
    undisturbed = records(open_storage(f"{finished[0]}/digits"))
    disturbed = records(open_storage(f"{bucket}/digits"))
    assert {name: figures(each) for name, each in disturbed.items()} == {
        name: figures(each) for name, each in undisturbed.items()
    }
    said = [line for line in result.stdout.splitlines() if "attempt" in line]
    assert len(said) >= sum(len(plan) for plan in proxy.failed.values())
    for name in ("train-", CHECKPOINT, "trial.json", "mlartifacts"):
        assert any(name in line and "again in" in line for line in said), name
    assert any(re.match(r"\d{4}-\w+: read ", line) for line in said)  # from a trial's process, with its trial
    assert "warning" not in result.stdout
    assert unfinished_uploads(bucket) == []


# --- what only the user can mend -------------------------------------------------------------------------


def refusal(runs: str, dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the search says on standard error as it ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["search.py", "--dataset", dataset, "--storage", runs, *SMALL])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(search.main, SearchSettings)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_missing_bucket_is_one_line(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal("s3://no-such-bucket-here/runs", dataset, monkeypatch, capsys)
    assert line.startswith("error: s3://no-such-bucket-here: no such bucket")


def test_missing_credentials_are_one_line(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no S3 credentials" in refusal("s3://searches/runs", dataset, monkeypatch, capsys)


def test_two_machines_do_not_run_the_same_search(
    finished: tuple[str, Path, str], dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(open_storage(f"{finished[0]}/digits"), "search"):
        line = refusal(finished[0], dataset, monkeypatch, capsys)
    assert line.startswith("error: another search is running: s3://searches/runs/digits: in use by")

"""The main job on a store that fails now and then, or for good, and after kill -9 with everything on S3."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import open_storage
from tests.commands import Called
from tests.s3 import FaultProxy, GroupedFaultProxy, only, set_constants
from tests.tune.real_search import (
    EPOCHS,
    MAP,
    SMALL,
    Records,
    called,
    records,
    run_command,
    stored_records,
    unfinished_uploads,
)
from tests.tune.travelling import IMPATIENT, ImpatientProcess
from tune.run import engine
from tune.run.trial_checkpoint import CHECKPOINT

pytestmark = pytest.mark.faults

OPTIONS = (*SMALL, "--streaming", "always", "--concurrent", "1")


@pytest.fixture
def hasty(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints before every epoch, and a store that is given up after seconds, here and in the trials' processes."""
    set_constants(IMPATIENT, monkeypatch.setattr)
    monkeypatch.setattr(engine, "TrialProcess", ImpatientProcess)


def search_in(folder: Path, monkeypatch: pytest.MonkeyPatch, runs: str, dataset: str, *options: str) -> Called:
    """The search, started in ``folder``."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    return called(runs, "--dataset", dataset, *OPTIONS, *options)


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that describes its model: no times, nor what it cost."""
    timed = ("seconds", "time_ms", "images_per_second")
    history = [{name: value for name, value in epoch.items() if name not in timed} for epoch in record["history"]]
    return record | {"history": history, "attempts": None}


# --- gone for good ---------------------------------------------------------------------------------------


def dying(proxy_url: str, counted: Callable[[str, str], bool], at: int) -> FaultProxy:
    """A proxy that breaks every connection from the ``at``-th request that counts."""
    seen = 0

    def count(method: str, path: str) -> bool:
        nonlocal seen
        if counted(method, path):
            seen += 1
            proxy.dead = proxy.dead or seen == at
        return True

    proxy = FaultProxy(proxy_url, counted=count)
    return proxy


def await_trackers() -> None:
    """Wait until the threads have ended that a search left alone with a dead store: a process would take them along."""
    for thread in threading.enumerate():
        if thread.name == "mlflow":
            thread.join(300.0)
            assert not thread.is_alive()


def test_killed_then_without_a_store_then_whole(
    s3: str, bucket: str, digits_on_s3: str, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command three times, each from another folder: kill -9, a store that dies, and the rest."""
    few = ("--trials", "3")
    (tmp_path / "one").mkdir()
    killed = run_command(
        bucket,
        "--dataset",
        digits_on_s3,
        *OPTIONS,
        *few,
        script=("tests/tune/interrupted_search.py", "SIGKILL", "results:3"),
        cwd=tmp_path / "one",
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    run_storage = open_storage(f"{bucket}/digits")
    first = stored_records(run_storage)
    checkpoints = [info.key for info in run_storage.list("trials") if info.key.endswith(CHECKPOINT)]
    assert checkpoints == [f"trials/0000-fvae/{CHECKPOINT}"]

    with dying(s3, only("PUT", path="/trial.json"), at=4) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        broken = search_in(tmp_path / "two", monkeypatch, bucket, digits_on_s3, *few)
        await_trackers()
    restored = [key for key in checkpoints if any(key in each.path and each.method == "GET" for each in proxy.requests)]
    assert restored == checkpoints
    assert broken.status == 1
    (line,) = broken.err.splitlines()
    assert re.fullmatch(
        rf"error: {bucket}/digits/trials/\d+-\w+/trial.json: cannot write: .* \(\d+ attempts in .*\)", line
    )
    second = stored_records(run_storage)
    assert "failed" not in {record["status"] for record in second.values()}

    resumed = search_in(tmp_path / "three", monkeypatch, bucket, digits_on_s3, *few)
    assert resumed.status == 0, resumed
    after = stored_records(run_storage)
    assert len(after) == 3 and {record["status"] for record in after.values()} == {"complete"}
    for earlier in (first, second):
        for name, record in earlier.items():
            assert after[name]["history"][: len(record["history"])] == record["history"]  # no epoch measured twice
    for record in after.values():
        assert [epoch["epoch"] for epoch in record["history"]] == list(range(1, EPOCHS + 1))
    keys = {info.key for info in run_storage.list()}
    assert set(MAP) <= keys
    assert not {key for key in keys if CHECKPOINT in key or "/." in f"/{key}"}
    assert unfinished_uploads(bucket) == []


# --- now and then ----------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed(hasty: None, digits_on_s3: str, tmp_path: Path) -> Records:
    """The trials of the same search on a disk."""
    result = called(tmp_path / "disk", "--dataset", digits_on_s3, *OPTIONS)
    assert result.status == 0, result
    return records(tmp_path / "disk")


def test_a_store_that_fails_now_and_then_changes_nothing_but_the_log(
    s3: str,
    undisturbed: Records,
    bucket: str,
    digits_on_s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    with GroupedFaultProxy(s3, groups) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        result = search_in(tmp_path / "here", monkeypatch, bucket, digits_on_s3)
    assert result.status == 0, result
    assert proxy.failed == {name: plan for name, (_, plan) in groups.items()}
    disturbed = stored_records(open_storage(f"{bucket}/digits"))
    assert {name: figures(each) for name, each in disturbed.items()} == {
        name: figures(each) for name, each in undisturbed.items()
    }
    lines = [line for line in result.out.splitlines() if "attempt" in line]
    assert len(lines) >= sum(len(plan) for plan in proxy.failed.values())
    for name in ("train-", CHECKPOINT, "trial.json", "mlartifacts"):
        assert any(name in line and "again in" in line for line in lines), name
    assert any(re.match(r"\d{4}-\w+: read ", line) for line in lines)  # from a trial's process, with its trial
    assert "warning" not in result.out
    assert unfinished_uploads(bucket) == []

"""Small searches of the digits with real Ray, Optuna and MLflow: how they are run, and what must hold of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from pipelines.storage import Storage, open_storage
from pipelines.tracking.tracker import default_tracking_uri
from tests.commands import Called, call
from tune import search
from tune.run import mlflow_tracking
from tune.settings import SearchSettings

ROOT = Path(__file__).parents[2]
TRIALS, EPOCHS = 6, 4
SMALL = ("--trials", str(TRIALS), "--epochs", str(EPOCHS), "--batch-size", "256")

MAP = ("tradeoff.html", "tradeoff.json", "tradeoff.png", "trials.csv")
"""The files of the map."""

Records = dict[str, dict[str, Any]]
"""Every trial's record, by the trial's id."""


def called(storage: Path | str, *options: str) -> Called:
    """``python tune/search.py`` in this process; on a busy machine MLflow gets the time that it needs at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_tracking, "CLOSING_SECONDS", 600.0)
        return call(search.main, SearchSettings, "--storage", str(storage), *options)


def run_command(
    storage: Path | str,
    *options: str,
    script: tuple[str, ...] = ("tune/search.py",),
    cwd: Path = ROOT,
    **environment: str | None,
) -> subprocess.CompletedProcess[str]:
    """``python tune/search.py``, or another script of the repository, in a process group of its own.

    ``environment`` changes this process's; None removes a variable.
    """
    variables = {**os.environ, **environment}
    path, *arguments = script
    return subprocess.run(
        [sys.executable, str(ROOT / path), *arguments, "--storage", str(storage), *options],
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def tradeoff(storage: Path) -> dict[str, Any]:
    """The map's figures."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads((storage / "digits/tradeoff.json").read_text(), parse_constant=refuse)
    return content


def records(storage: Path) -> Records:
    """What the ledger in a folder of runs holds."""
    return stored_records(open_storage(storage / "digits"))


def stored_records(run_storage: Storage) -> Records:
    """What the ledger of a run on any storage holds."""
    keys = [info.key for info in run_storage.list("trials") if info.key.endswith("/trial.json")]
    return {key.split("/")[1]: json.loads(run_storage.read(key)) for key in keys}


def unfinished_uploads(location: str) -> list[Any]:
    """The uploads to the bucket of ``location`` that were begun and not completed."""
    bucket = location.removeprefix("s3://").split("/")[0]
    uploads: list[Any] = boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return uploads


def mlflow_runs(storage: Path) -> tuple[MlflowClient, list[Any]]:
    """A client of MLflow's database beside the runs, and all runs in it."""
    client = MlflowClient(default_tracking_uri(open_storage(storage)))
    experiment = client.get_experiment_by_name("fvae/digits")
    return client, list(client.search_runs([experiment.experiment_id]))


def check_grown(before: Records, after: Records) -> None:
    """What the ledger once held is still there: no epoch was measured twice, and what had ended is as it was."""
    for name, record in before.items():
        assert after[name]["config"] == record["config"] and after[name]["train"] == record["train"]
        assert after[name]["history"][: len(record["history"])] == record["history"]
        if record["status"] == "complete":
            assert after[name] | {"test": None} == record | {"test": None}
            assert record["test"] in (None, after[name]["test"])


def check_whole(storage: Path, before: Records, trials: int = TRIALS) -> None:
    """Nothing is lost, nothing is there twice, nothing is left running, and the map is complete."""
    after = records(storage)
    assert len(after) == trials
    assert all(record["status"] in ("complete", "stopped") for record in after.values())
    check_grown(before, after)
    for record in after.values():
        assert [epoch["epoch"] for epoch in record["history"]] == list(range(1, len(record["history"]) + 1))
    client, runs = mlflow_runs(storage)
    names = Counter(each.info.run_name for each in runs)
    assert names == Counter([*after, "digits"])
    assert "RUNNING" not in {each.info.status for each in runs}
    for each in runs:
        if each.info.run_name in after:
            steps = [metric.step for metric in client.get_metric_history(each.info.run_id, "val/bpd")]
            assert steps == [epoch["epoch"] for epoch in after[each.info.run_name]["history"]]
    result = tradeoff(storage)
    assert len(result["trials"]) == trials
    on_fronts = {trial_id for ids in result["fronts"].values() for trial_id in ids}
    assert all(after[trial_id]["test"] is not None for trial_id in on_fronts)

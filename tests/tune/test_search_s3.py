"""The main job with everything on S3: data set, checkpoints, map and MLflow's artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

from pipelines.storage import open_storage
from pipelines.storage.run_lock import locked
from pipelines.tracking.tracker import default_tracking_uri
from pipelines.training.model_files import PICTURES
from tests.tune.real_search import MAP, SMALL, called, stored_records, unfinished_uploads

# Also the tests that need no Ray stay in the process of those that do: the finished search is made once.
pytestmark = [pytest.mark.core, pytest.mark.usefixtures("shared_ray")]

RUNS = "s3://searches/runs"
OPTIONS = (*SMALL, "--trials", "3", "--concurrent", "1", "--streaming", "always")


class Finished(NamedTuple):
    """A finished search, which tests do not change."""

    here: Path
    """The folder that it was started in."""
    out: str
    """What it printed."""


@pytest.fixture(scope="module")
def finished(
    shared_ray: str,
    s3_client: Any,
    digits_on_s3: str,
    empty_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    """A search beside whose runs MLflow has a database already."""
    s3_client.create_bucket(Bucket="searches")
    open_storage(RUNS).upload(empty_database, "mlflow.db")
    here = tmp_path_factory.mktemp("laptop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("RAY_ADDRESS", shared_ray)
        result = called(RUNS, "--dataset", digits_on_s3, *OPTIONS)
    assert result.status == 0, result
    yield Finished(here, result.out)


# --- what a search leaves --------------------------------------------------------------------------------


def test_the_bucket_holds_the_search_and_no_litter(finished: Finished) -> None:
    storage = open_storage(RUNS)
    assert sorted({info.key.split("/")[0] for info in storage.list()}) == ["digits", "mlartifacts", "mlflow.db"]
    run_storage = storage.child("digits")
    trials = stored_records(run_storage)
    left = (*PICTURES, "model/config.json", "model/model.safetensors", "trial.json", "test_bits.safetensors")
    expected = {f"trials/{name}/{file}" for name in trials for file in left}
    expected |= {"search.json", "time.json", "tracking.json", "optuna.db", *MAP}
    assert {info.key for info in run_storage.list()} == expected
    assert unfinished_uploads(RUNS) == []
    # Nothing of the search on this machine but MLflow's working copy.
    assert [path.name for path in finished.here.iterdir()] == ["runs"]
    assert {path.name for path in (finished.here / "runs").rglob("*") if path.is_file()} <= {
        "mlflow.db", "mlflow.db.json", "mlflow.db.lock",
    }  # fmt: skip
    assert [f"{RUNS}/digits/{name}" in finished.out for name in MAP] == [True] * 4
    assert "warning" not in finished.out and "attempt" not in finished.out


def test_mlflow_s_artifacts_are_in_the_bucket(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.here)
    client = MlflowClient(default_tracking_uri(open_storage(RUNS)))
    experiment = client.get_experiment_by_name("fvae/digits")
    found = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    trials = stored_records(open_storage(f"{RUNS}/digits"))
    assert set(found) == {"digits", *trials}
    for name, each in found.items():
        assert each.info.status == "FINISHED"
        artifacts = open_storage(each.info.artifact_uri)
        assert each.info.artifact_uri.startswith(f"{RUNS}/mlartifacts/")
        keys = {info.key.split("/")[0] for info in artifacts.list()}
        assert keys == (
            {"model", "samples.png", "reconstructions.png", "interpolations.png"} if "-" in name else {*MAP}
        )
        for key in keys - {"model"}:
            there = f"{RUNS}/digits" if name == "digits" else f"{RUNS}/digits/trials/{name}"
            assert artifacts.read(key) == open_storage(there).read(key)


def test_the_same_command_from_an_empty_folder_draws_the_same_map_without_ray(
    finished: Finished, digits_on_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_storage = open_storage(f"{RUNS}/digits")
    before = {name: run_storage.read(name) for name in ("tradeoff.json", "trials.csv", "tradeoff.png")}
    trials = {info.key: info.version for info in run_storage.list("trials")}
    for name in MAP:
        run_storage.delete(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # no server answers there
    again = called(RUNS, "--dataset", digits_on_s3, *OPTIONS)
    assert again.status == 0, again
    assert "3/3]" not in again.out and "warning" not in again.out
    assert {name: run_storage.read(name) for name in before} == before
    assert b"data:image/png;base64," in run_storage.read("tradeoff.html")
    assert {info.key: info.version for info in run_storage.list("trials")} == trials


# --- what only the user can mend -------------------------------------------------------------------------


def refusal(runs: str, dataset: str) -> str:
    """The one line that the search prints on standard error as it ends with status 2."""
    refused = called(runs, "--dataset", dataset, *OPTIONS)
    assert refused.status == 2
    assert refused.out == ""
    (line,) = refused.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_missing_bucket_is_one_line(digits_on_s3: str) -> None:
    line = refusal("s3://no-such-bucket-here/runs", digits_on_s3)
    assert line.startswith("error: s3://no-such-bucket-here: no such bucket")


def test_missing_credentials_are_one_line(digits_on_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no S3 credentials" in refusal(RUNS, digits_on_s3)


def test_two_machines_do_not_run_the_same_search(finished: Finished, digits_on_s3: str) -> None:
    with locked(open_storage(f"{RUNS}/digits"), "search"):
        line = refusal(RUNS, digits_on_s3)
    assert line.startswith("error: another search is running: s3://searches/runs/digits: in use by")

"""The main job as a user runs it: real Ray, real Optuna, real MLflow, small budgets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import pipelines.ray_environment  # noqa: F401
from fvae import evaluate, load
from fvae.data import derived_seed
from pipelines import command_line
from pipelines.datasets import load_dataset
from pipelines.run_place import locked
from pipelines.storage import open_storage
from pipelines.tracking import default_tracking_uri
from tune import search
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
SMALL = ("--trials", "6", "--epochs", "4", "--batch-size", "256")
MINUTES = 300.0


def run(
    storage: Path, *options: str, script: tuple[str, ...] = ("tune/search.py",)
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *script, "--storage", str(storage), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MINUTES, check=False)


def interrupted(storage: Path, signal_name: str, moment: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run(storage, *options, script=("tests/tune/interrupted_search.py", signal_name, moment))


def tradeoff(storage: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((storage / "digits" / "tradeoff.json").read_text(), parse_constant=refuse)


def records(storage: Path) -> dict[str, dict]:
    paths = sorted((storage / "digits" / "trials").glob("*/trial.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def mlflow_runs(storage: Path) -> tuple[MlflowClient, list]:
    client = MlflowClient(default_tracking_uri(open_storage(storage)))
    experiment = client.get_experiment_by_name("fvae/digits")
    return client, list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder of a finished search. Tests may read it, not extend it."""
    storage = tmp_path_factory.mktemp("finished")
    result = run(storage, *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    (storage / "stdout").write_text(result.stdout)
    return storage


# --- what a finished search leaves -------------------------------------------------------------------


def test_the_files_and_their_structure(finished: Path) -> None:
    run_dir = finished / "digits"
    assert {"tradeoff.json", "tradeoff.png", "tradeoff.html", "trials.csv"} <= {path.name for path in run_dir.iterdir()}
    result = tradeoff(finished)
    digits = load_dataset("digits")
    assert result["dataset"] == {
        "name": "digits",
        "hash": digits.content_hash(),
        "shape": [1, 8, 8],
        "bins": 17,
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    assert result["budget"]["images_per_trial"] == 4 * 1257
    assert set(result["fronts"]) == {"all", "fvae", "flow", "vae"}
    assert result["claim"]["verdict"] == "undecided"  # two trials a family prove nothing
    assert len((run_dir / "trials.csv").read_text().splitlines()) == 7
    with Image.open(run_dir / "tradeoff.png") as picture:
        assert picture.width >= 1000
    assert Counter(trial["family"] for trial in result["trials"]) == {"fvae": 2, "flow": 2, "vae": 2}


def test_fronts_hold_complete_trials_chosen_on_validation(finished: Path) -> None:
    result = tradeoff(finished)
    trials = {trial["id"]: trial for trial in result["trials"]}
    on_fronts = {trial_id for ids in result["fronts"].values() for trial_id in ids}
    for family in ("fvae", "flow", "vae"):
        points = [
            (t["params"], t["val_bpd"]) for t in trials.values() if t["family"] == family and t["status"] == "complete"
        ]
        best = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
        assert [(trials[i]["params"], trials[i]["val_bpd"]) for i in result["fronts"][family]] == best
    for trial in trials.values():
        assert (trial["test_bpd"] is not None) == (trial["id"] in on_fronts)
        if trial["status"] == "complete":
            assert trial["epochs"] == 4


def test_reported_figures_are_those_of_the_saved_models(finished: Path) -> None:
    digits = load_dataset("digits")
    result = tradeoff(finished)
    for trial in result["trials"]:
        if trial["status"] != "complete":
            continue
        model = load(finished / "digits" / "trials" / trial["id"] / "model")
        assert model.parameter_count() == trial["params"]
        images = torch.from_numpy(digits.val)
        val = evaluate(model, images, seed=derived_seed(0, "val"))
        assert float(val.mean()) == pytest.approx(trial["val_bpd"], abs=1e-5)
        if trial["test_bpd"] is None:
            continue
        test = torch.from_numpy(digits.test)
        assert float(evaluate(model, test, seed=derived_seed(0, "test/1")).mean()) == pytest.approx(
            trial["test_bpd"], abs=1e-5
        )
        tighter = float(evaluate(model, test, k=64, seed=derived_seed(0, "test/64")).mean())
        assert tighter == pytest.approx(trial["test_bpd_iwae64"], abs=1e-5)
        assert trial["sigma1"] == pytest.approx(model.mean_sigma1(images), rel=1e-5)
        assert trial["sigma2"] == pytest.approx(model.sigma2, rel=1e-6)


def test_every_complete_trial_saw_the_same_images(finished: Path) -> None:
    seen = {r["history"][-1]["images"] for r in records(finished).values() if r["status"] == "complete"}
    assert seen == {4 * 1257}


def test_the_mlflow_runs(finished: Path) -> None:
    client, runs = mlflow_runs(finished)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert {"tradeoff.json", "tradeoff.png", "tradeoff.html", "trials.csv"} <= {
        artifact.path for artifact in client.list_artifacts(parents[0].info.run_id)
    }
    children = {r.info.run_name: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    saved = records(finished)
    assert set(children) == set(saved)
    for name, record in saved.items():
        child = children[name]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.data.params["model.family"] == record["family"]
        assert child.data.metrics["size/params"] == record["params"]
        curve = client.get_metric_history(child.info.run_id, "val/bpd")
        assert [(m.step, m.value) for m in curve] == [(e["epoch"], e["val_bpd"]) for e in record["history"]]
        if record["status"] == "complete":
            assert child.info.status == "FINISHED"
            artifacts = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
            assert {"model", "samples.png", "reconstructions.png"} <= artifacts
        if record["test"]:
            assert child.data.metrics["test/bpd"] == record["test"]["bpd"]
            assert child.data.metrics["test/bpd_iwae64"] == record["test"]["bpd_iwae64"]


def test_what_is_printed(finished: Path) -> None:
    said = (finished / "stdout").read_text()
    assert "6 trials over fvae, flow, vae, 4 epochs each" in said
    assert said.count("[") >= 6
    assert "Verdict on the paper's claim: undecided" in said
    assert "Traceback" not in said


# --- the same command again ------------------------------------------------------------------------------


def test_a_finished_search_is_shown_at_once_and_extended_by_more_trials(finished: Path, tmp_path: Path) -> None:
    storage = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(storage)], check=True)
    before = records(storage)
    (storage / "digits" / "tradeoff.html").unlink()
    again = run(storage, *SMALL)
    assert again.returncode == 0, again.stderr
    assert "[  6/6]" not in again.stdout
    assert (storage / "digits" / "tradeoff.html").exists()
    assert records(storage) == before

    more = run(storage, *SMALL, "--trials", "8")
    assert more.returncode == 0, more.stderr
    after = records(storage)
    assert len(after) == 8
    assert {name: after[name]["history"] for name in before} == {name: before[name]["history"] for name in before}
    assert all(after[name]["test"] == before[name]["test"] for name in before if before[name]["test"])


# --- interruptions ---------------------------------------------------------------------------------------


def check_whole(storage: Path, before: dict[str, dict], trials: int = 6) -> None:
    """Nothing lost, nothing twice, nothing left running, the map complete."""
    after = records(storage)
    assert len(after) == trials
    assert all(record["status"] in ("complete", "stopped") for record in after.values())
    for name, record in before.items():
        kept = len(record["history"])
        assert after[name]["history"][:kept] == record["history"]  # no epoch measured twice
        assert after[name]["config"] == record["config"]
        if record["status"] != "running":
            assert after[name]["history"] == record["history"]
    for record in after.values():
        assert [epoch["epoch"] for epoch in record["history"]] == list(range(1, len(record["history"]) + 1))
    client, runs = mlflow_runs(storage)
    names = Counter(run_.info.run_name for run_ in runs)
    assert names == Counter([*after, "digits"])
    assert "RUNNING" not in {run_.info.status for run_ in runs}
    for run_ in runs:
        if run_.info.run_name in after:
            steps = [metric.step for metric in client.get_metric_history(run_.info.run_id, "val/bpd")]
            assert steps == [epoch["epoch"] for epoch in after[run_.info.run_name]["history"]]
    result = tradeoff(storage)
    assert len(result["trials"]) == trials
    on_fronts = {trial_id for ids in result["fronts"].values() for trial_id in ids}
    assert all(after[trial_id]["test"] is not None for trial_id in on_fronts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``kill -9`` at one moment, or with ``--every-moment`` also at the first result and between two test readings."""
    if metafunc.function is test_kill_9_then_the_same_command:
        more = ["results:1", "tests:1"] if metafunc.config.getoption("--every-moment") else []
        metafunc.parametrize("moment", ["results:11", *more])


def test_kill_9_then_the_same_command(tmp_path: Path, moment: str) -> None:
    killed = interrupted(tmp_path, "SIGKILL", moment, *SMALL)
    assert killed.returncode == -signal.SIGKILL
    before = records(tmp_path)
    resumed = run(tmp_path, *SMALL)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, before)


@pytest.mark.parametrize(("moment", "options"), [("trials:1", ("--concurrent", "1")), ("tests:1", ())])
def test_ctrl_c_then_the_same_command(tmp_path: Path, moment: str, options: tuple[str, ...]) -> None:
    stopped = interrupted(tmp_path, "SIGINT", moment, *SMALL, *options)
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert "Interrupted. The same command goes on" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    before = records(tmp_path)
    _, runs = mlflow_runs(tmp_path)
    assert "RUNNING" not in {run_.info.status for run_ in runs}
    resumed = run(tmp_path, *SMALL)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, before)


def test_a_trial_whose_process_dies_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    survived = interrupted(tmp_path, "SIGKILL", "worker:5", *SMALL)
    assert survived.returncode == 0, survived.stdout + survived.stderr
    assert "failed" not in survived.stdout
    check_whole(tmp_path, {})
    assert {record["reason"] for record in records(tmp_path).values() if record["status"] == "complete"} == {""}


def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A file system of 1.5 MB, in a mount namespace of the test's own; then a larger one."""
    script = (
        'mount -t tmpfs -o size=1500k tmpfs "$1" && shift && "$@"; echo "status $?"; '
        'mount -o remount,size=64m "$0"; "$@"; echo "status $?"; ls "$0/digits"'
    )
    storage = tmp_path / "small"
    storage.mkdir()
    search_command = [sys.executable, "tune/search.py", "--storage", str(storage), *SMALL]
    result = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(storage), str(storage), *search_command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=False,
    )
    errors = [line for line in result.stderr.splitlines() if line]
    assert [line.startswith("error: --storage: cannot be written") for line in errors] == [True], result.stderr
    assert "status 2" in result.stdout
    assert "status 0" in result.stdout
    assert "tradeoff.html" in result.stdout


# --- bad input -----------------------------------------------------------------------------------------------


def write_images(folder: Path, height: int, width: int) -> None:
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((height, width), number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "{tmp}/nowhere"], "no such file or folder"),
        (["--dataset", "{tmp}/empty"], "needs image files"),
        (["--dataset", "{tmp}/spoilt"], "5.png: not an image"),
        (["--dataset", "{tmp}/sizes"], "more/0.png: 16×8 where most images are 8×8"),
        (["--dataset", "{tmp}/odd"], "images of 9×7"),
        (["--families", "gan"], "--families"),
        (["--families", "flow", "flow"], "each at most once"),
        (["--trials", "0"], "--trials=0: must be an integer of at least 1"),
        (["--trials", "many"], "--trials"),
        (["--trails", "3"], "--trails"),
        (["--epochs", "-1"], "--epochs"),
        (["--time-budget", "soon"], "--time-budget='soon': give a time such as 2h"),
        (["--gpu-hours", "-2"], "--gpu-hours=-2.0: must be a finite number above 0"),
        (["--max-memory", "2"], "--max-memory='2': give a size such as 2GiB"),
        (["--sampler", "grid"], "--sampler"),
        (["--cpus-per-trial", "0"], "--cpus-per-trial=0"),
        (["--gpus-per-trial", "nan"], "--gpus-per-trial"),
        (["--name", "../up"], "--name='../up'"),
        (["--precision", "fp8"], "--precision"),
        (["--storage", "/proc/nothing"], "cannot be written"),
        (["--storage", "{tmp}/file"], "cannot be written"),
        (["--storage", "gs://bucket/runs"], "--storage: gs://bucket/runs: cannot use gs://"),
        (["--storage", "s3://My_Bucket/runs"], "'My_Bucket' is no bucket name"),
        (["--storage", "s3://bucket/../runs"], "--storage: s3://bucket/../runs: must not hold"),
        (["--streaming", "sometimes"], "--streaming"),
        (["--streaming", "always"], "make one with python -m pipelines.ingest"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_images(tmp_path / "spoilt", 8, 8)
    (tmp_path / "spoilt" / "5.png").write_text("hello")
    write_images(tmp_path / "sizes", 8, 8)
    write_images(tmp_path / "sizes" / "more", 8, 16)
    write_images(tmp_path / "odd", 7, 9)
    arguments = [option.replace("{tmp}", str(tmp_path)) for option in options]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(search.main, SearchSettings)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("error: ")
    assert said in captured.err


def test_a_run_of_another_data_set_or_budget_is_not_mixed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "mine", 8, 8)
    storage = ["--storage", str(finished), "--name", "digits"]
    for options, said in (
        (["--dataset", str(tmp_path / "mine"), *SMALL], "holds a search of another data set (digits"),
        ([*SMALL, "--epochs", "5"], "was searched with --epochs 4, not 5"),
        ([*SMALL, "--seed", "1"], "was searched with --seed 0, not 1"),
    ):
        monkeypatch.setattr(sys, "argv", ["search.py", *storage, *options])
        with pytest.raises(SystemExit) as exit_:
            command_line.run(search.main, SearchSettings)
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err


def test_two_searches_do_not_share_a_folder(finished: Path) -> None:
    with locked(open_storage(finished / "digits"), "search"):
        second = run(finished, *SMALL)
    assert second.returncode == 2
    assert "another search is running" in second.stderr and "in use by" in second.stderr


def test_more_gpus_than_there_are_is_said(tmp_path: Path) -> None:
    refused = run(tmp_path, *SMALL, "--gpus-per-trial", "64")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --gpus-per-trial=64.0: there are")
    assert len(refused.stderr.splitlines()) == 1


def test_help_shows_every_option_with_its_default() -> None:
    shown = subprocess.run(
        [sys.executable, "tune/search.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for option in ("--dataset", "--streaming", "--trials", "--epochs", "--storage", "--families", "--gpus-per-trial"):
        assert option in shown.stdout
    for option in (
        "--time-budget",
        "--gpu-hours",
        "--patience",
        "--sampler",
        "--max-memory",
        "--seeds",
        "--warm-start",
    ):
        assert option in shown.stdout
    assert "Default: 48" in shown.stdout and "None" not in shown.stdout

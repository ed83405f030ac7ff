"""The main job as a user runs it: real Ray, real Optuna, real MLflow, small budgets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

from fvae import evaluate, load
from fvae.data.images import derived_seed
from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from pipelines.storage.run_lock import locked
from tests.commands import call
from tests.tune.real_search import (
    EPOCHS,
    ROOT,
    SMALL,
    TRIALS,
    called,
    check_grown,
    mlflow_runs,
    records,
    run_command,
    tradeoff,
)
from tune import search
from tune.propose.optuna_study import DATABASE
from tune.settings import SearchSettings

# Also the tests that need no Ray stay in the process of those that do: the finished search is made once.
pytestmark = [pytest.mark.core, pytest.mark.usefixtures("shared_ray")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder of a search that was started from the command line and made a Ray of its own.

    Tests may read it, and work on copies.
    """
    storage = tmp_path_factory.mktemp("finished")
    result = run_command(storage, *SMALL, RAY_ADDRESS=None)
    assert result.returncode == 0, result.stdout + result.stderr
    (storage / "stdout").write_text(result.stdout)
    return storage


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished search."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


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


def test_it_leaves_its_trials_as_optuna_studies(finished: Path) -> None:
    result = tradeoff(finished)
    url = f"sqlite:///{finished}/digits/{DATABASE}"
    studies = {name: optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)}
    for front, ids in result["fronts"].items():
        study = studies["digits" if front == "all" else f"digits/{front}"]
        assert {trial.user_attrs["id"] for trial in study.best_trials} == set(ids)
    assert {trial.user_attrs["id"] for trial in studies["digits"].trials} == {each["id"] for each in result["trials"]}


def test_reported_figures_are_those_of_the_saved_models(finished: Path) -> None:
    digits = load_dataset("digits")
    result = tradeoff(finished)
    for trial in result["trials"]:
        if trial["status"] != "complete":
            continue
        model = load(finished / "digits" / "trials" / trial["id"] / "model")
        assert model.parameter_count() == trial["params"]
        images = torch.from_numpy(digits.val)
        val = evaluate(model, images, samples=trial["train"]["validation_samples"], seed=derived_seed(0, "val"))
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
        assert trial["sigma2"] == pytest.approx(model.mean_sigma2(images), rel=1e-5)


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
    output = (finished / "stdout").read_text()
    assert "6 trials over fvae, flow, vae, 4 epochs each" in output
    assert output.count("[") >= 6
    assert "Verdict on the paper's claim: undecided" in output
    assert "Traceback" not in output


# --- the same command again ------------------------------------------------------------------------------


def test_a_finished_search_is_shown_at_once_without_ray(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # no server answers there
    before = records(copy)
    (copy / "digits/tradeoff.html").unlink()
    again = called(copy, *SMALL)
    assert again.status == 0, again.err
    assert f"/{TRIALS}]" not in again.out and "Test split read" not in again.out
    assert (copy / "digits/tradeoff.html").exists()
    assert records(copy) == before


def test_more_trials_extend_a_finished_search(copy: Path, ray_address: str) -> None:
    before = records(copy)
    more = called(copy, *SMALL, "--trials", "8", "--concurrent", "1")
    assert more.status == 0, more.err
    after = records(copy)
    assert len(after) == 8
    check_grown(before, after)
    read = re.findall(r"^Test split read for .*: (\S+)$", more.out, re.MULTILINE)
    assert sorted(read) == [name for name in after if after[name]["test"] and not before.get(name, {}).get("test")]
    on_fronts = {trial_id for ids in tradeoff(copy)["fronts"].values() for trial_id in ids}
    assert all(after[trial_id]["test"] for trial_id in on_fronts)
    assert len(optuna.load_study(study_name="digits", storage=f"sqlite:///{copy}/digits/{DATABASE}").trials) == 8


# --- bad input -----------------------------------------------------------------------------------------------


def write_images(folder: Path, height: int, width: int) -> None:
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((height, width), 20 * number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("options", "message"),
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
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_images(tmp_path / "spoilt", 8, 8)
    (tmp_path / "spoilt" / "5.png").write_text("hello")
    write_images(tmp_path / "sizes", 8, 8)
    write_images(tmp_path / "sizes" / "more", 8, 16)
    write_images(tmp_path / "odd", 7, 9)
    monkeypatch.chdir(tmp_path)
    refused = call(search.main, SearchSettings, *(option.replace("{tmp}", str(tmp_path)) for option in options))
    assert refused.status == 2
    assert refused.out == ""
    assert len(refused.err.splitlines()) == 1, refused.err
    assert refused.err.startswith("error: ")
    assert message in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "{tmp}/mine", *SMALL], "holds a search of another data set (digits"),
        ([*SMALL, "--epochs", "5"], f"was searched with --epochs {EPOCHS}, not 5"),
        ([*SMALL, "--seed", "1"], "was searched with --seed 0, not 1"),
    ],
)
def test_a_run_of_another_data_set_or_budget_is_not_mixed(
    finished: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    write_images(tmp_path / "mine", 8, 8)
    options = [option.replace("{tmp}", str(tmp_path)) for option in options]
    refused = called(finished, "--name", "digits", *options)
    assert refused.status == 2
    assert message in refused.err


def test_two_searches_do_not_share_a_folder(finished: Path) -> None:
    with locked(open_storage(finished / "digits"), "search"):
        second = called(finished, *SMALL)
    assert second.status == 2
    assert "another search is running" in second.err and "in use by" in second.err


def test_more_gpus_than_there_are_is_said(copy: Path, ray_address: str) -> None:
    refused = called(copy, *SMALL, "--trials", "8", "--gpus-per-trial", "64")
    assert refused.status == 2
    assert refused.err.startswith("error: --gpus-per-trial=64.0: there are")
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("options", [("--gpus-per-trial", "64"), ("--max-params", "3"), ("--warm-start", "nothing")])
def test_a_search_that_cannot_begin_leaves_nothing(
    options: tuple[str, ...], tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.propose.limits.MOST_DRAWN", 300)
    assert called(tmp_path / "runs", *SMALL, *options).status == 2
    assert not list((tmp_path / "runs").iterdir())


def test_help_shows_every_option_with_its_default() -> None:
    shown = call(search.main, SearchSettings, "--help")
    assert shown.status == 0
    for option in (
        "--dataset",
        "--streaming",
        "--trials",
        "--epochs",
        "--storage",
        "--families",
        "--gpus-per-trial",
        "--time-budget",
        "--gpu-hours",
        "--patience",
        "--sampler",
        "--max-memory",
        "--seeds",
        "--warm-start",
    ):
        assert option in shown.out
    assert "Default: 48" in shown.out and "None" not in shown.out


def test_help_and_mistakes_need_not_wait_for_what_a_search_needs() -> None:
    """Importing torch, Ray, Optuna and scikit-learn takes seconds."""
    program = (
        "import sys, tune.search; print({'torch', 'numpy', 'ray', 'optuna', 'sklearn', 'mlflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

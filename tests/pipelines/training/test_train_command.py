"""``python -m pipelines.train``: the same figures on any number of workers, its files and run, and users' mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from fvae import ConfigError, Trainer, load
from fvae.data.images import ImageDataset
from fvae.epoch_metrics import EpochMetrics
from fvae.evaluation import NonFiniteError
from fvae.flops import parameters_and_flops
from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from pipelines.tracking.settings import default_tracking_uri
from pipelines.tracking.tracker import SearchTracker, TrialSnapshot
from pipelines.train import main
from pipelines.training import main_memory
from pipelines.training import worker as train_worker
from pipelines.training.configs import train_configs
from pipelines.training.events import EpochDone, Event, Events, TrainingStarted
from pipelines.training.job import default_name, identity, open_job
from pipelines.training.settings import TrainSettings
from pipelines.training.worker import WorkerTask
from pipelines.training.worker_loop import carry_out
from tests.commands import Called, call
from tests.pipelines.training.one_process import Direct, without_ray
from tests.pipelines.training.training_cluster import HASTE
from tests.pipelines.training.trainings import EPOCHS, MODEL, OPTIONS, TRAIN, uninterrupted
from tests.versions import of_the_first_version

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]
FIGURES = dict.fromkeys(("train_bpd", "val_bpd", "grad_norm", "images_per_second", "sigma1", "sigma2"), 1.0)
"""The figures of an epoch that nothing has measured."""
COMPARED = ("train_bpd", "val_bpd", "grad_norm", "sigma1", "sigma2")


@pytest.fixture(scope="module")
def whole() -> Trainer:
    """The same training by fvae alone."""
    return uninterrupted()


def train(storage: str | Path, *options: str) -> Called:
    """The command in this process, with the small training's options."""
    return call(main, TrainSettings, *OPTIONS, "--storage", str(storage), *options)


def as_a_user_does(storage: Path, *options: str) -> Called:
    """The command in a process of its own, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.train", *OPTIONS, "--storage", str(storage), *options],
        cwd=ROOT,
        env=environment | HASTE,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return Called(done.returncode, done.stdout, done.stderr)


def refused(*options: str) -> str:
    """The one line that a user's mistake gets."""
    done = call(main, TrainSettings, *options)
    assert done.status == 2
    (line,) = done.err.splitlines()
    return line


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


class Finished(NamedTuple):
    """A job that has ended."""

    workers: int
    run: Path
    """Its folder."""
    out: str
    """What the command printed."""


@pytest.fixture(scope="module", params=[1, 3])
def finished(request: pytest.FixtureRequest, shared_ray: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A job on one worker, as a user starts it, and an elastic one, which takes the shared Ray's three CPUs."""
    runs = tmp_path_factory.mktemp("runs")
    if request.param == 1:
        done = as_a_user_does(runs, "--name", "job")
    else:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**HASTE, "RAY_ADDRESS": shared_ray}.items():
                patch.setenv(name, value)
            done = train(runs, "--name", "job", "--elastic", "1:8")
    assert done.status == 0, done
    return Finished(request.param, runs / "job", done.out)


def test_the_figures_do_not_depend_on_the_number_of_workers(finished: Finished, whole: Trainer) -> None:
    measured = [[epoch[name] for name in COMPARED] for epoch in result_of(finished.run)["history"]]
    expected = [[getattr(epoch, name) for name in COMPARED] for epoch in whole.history]
    assert len(measured) == EPOCHS
    if finished.workers == 1:  # fvae's own loop, to the bit
        assert measured == expected
        theirs = whole.best_model().state_dict()
        weights = load(finished.run / "model").state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())
    for mine, theirs_ in zip(measured, expected, strict=True):
        assert mine[:2] == pytest.approx(theirs_[:2], abs=1e-3)
        assert mine[2:] == pytest.approx(theirs_[2:], rel=1e-2)


def test_what_it_says_and_leaves(finished: Finished, whole: Trainer) -> None:
    run, lines = finished.run, finished.out.splitlines()
    assert lines[0].startswith("digits: 1,257 training and 180 validation images of 8×8×1, 17 levels")
    who = {1: "1 worker", 3: "1 to 8 workers"}[finished.workers]
    assert f"on {who}; files in {run}" in lines[1]
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == [f"{n}/4" for n in range(1, EPOCHS + 1)]
    assert f"{whole.model.parameter_count():,} parameters" in lines[1]
    result = result_of(run)
    assert f"validation {result['best_val_bpd']:.4f} bits/dim" in finished.out
    assert result["best_epoch"] == EPOCHS
    assert len(list((run / "checkpoints").iterdir())) == 2
    assert {"samples.png", "reconstructions.png", "interpolations.png", "job.json"} <= {p.name for p in run.iterdir()}
    images = torch.from_numpy(load_dataset("digits").images("val"))
    assert load(run / "mlflow/model/artifacts/weights").bits_per_dim(images).mean() < 6


def logged_runs(runs: Path) -> tuple[MlflowClient, list[Any]]:
    """The runs in the experiment of the digits, and a client to read more of them."""
    client = MlflowClient(default_tracking_uri(open_storage(runs)))
    (experiment,) = [each for each in client.search_experiments() if each.name == "fvae/digits"]
    return client, list(client.search_runs([experiment.experiment_id]))


def test_it_is_one_run_in_mlflow(finished: Finished) -> None:
    client, (logged,) = logged_runs(finished.run.parent)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["data.hash"] == load_dataset("digits").content_hash()
    assert logged.data.params["model.flow_depth"] == "2" and logged.data.params["train.batch_size"] == "128"
    assert logged.data.metrics["system/workers"] == finished.workers
    assert logged.data.metrics["system/peak_memory_megabytes"] > 100
    assert logged.data.metrics["images_per_second"] > 10
    assert logged.data.metrics["best/val_bpd"] == result_of(finished.run)["best_val_bpd"]
    steps = [metric.step for metric in client.get_metric_history(logged.info.run_id, "train/bpd")]
    assert steps == list(range(1, EPOCHS + 1))
    names = {artifact.path for artifact in client.list_artifacts(logged.info.run_id)}
    assert {"model", "samples.png", "reconstructions.png", "job.json"} <= names


def test_a_finished_job_is_shown_without_ray_and_never_another_in_its_place(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.run
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody is there
    shown = train(run.parent, "--name", "job")
    assert shown.status == 0
    assert [line for line in shown.out.splitlines() if "MLflow …" not in line] == finished.out.splitlines()[-3:]
    line = refused(*OPTIONS, "--storage", str(run.parent), "--name", "job", "--train.seed", "1")
    assert line == f"error: {run}: holds another training (train seed=0, not 1); give another --name"


# --- a job that ends early, its loop in this process ---------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, empty_database: Path, tmp_path: Path) -> None:
    """No Ray; runs in ``tmp_path`` with MLflow's tables made."""
    without_ray(monkeypatch)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")


def test_ctrl_c_and_the_same_command_give_the_uninterrupted_training(
    alone: None, whole: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, checkpoints = Trainer.train_step, tmp_path / "job/checkpoints"

    def interrupted(self: Trainer) -> None:
        train_step(self)
        if self.step == 15:
            deadline = time.monotonic() + 60
            while not list(checkpoints.glob("step-000000010-*")):  # it is written in the background
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        done = train(tmp_path, "--name", "job")
    assert done.status == 1
    assert "Interrupted. The same command goes on from the last checkpoint." in done.out.splitlines(), done
    assert not (tmp_path / "job/result.json").exists()
    assert [run.info.status for run in logged_runs(tmp_path)[1]] == ["KILLED"]

    done = train(tmp_path, "--name", "job")
    assert done.status == 0 and "1 worker goes on from step 0 of epoch 2" in done.out, done
    measured = [[epoch[name] for name in COMPARED] for epoch in result_of(tmp_path / "job")["history"]]
    assert measured == [[getattr(epoch, name) for name in COMPARED] for epoch in whole.history]
    theirs = whole.best_model().state_dict()
    weights = load(tmp_path / "job/model").state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())
    client, (logged,) = logged_runs(tmp_path)
    assert logged.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(logged.info.run_id, "val/bpd")]
    assert steps == list(range(1, EPOCHS + 1))


def test_a_figure_that_is_not_finite_ends_the_job_with_its_reason(alone: None, tmp_path: Path) -> None:
    options = ("--name", "job", "--train.learning-rate", "1e30", "--train.gradient-clip", "1e30")
    done = train(tmp_path, *options)
    assert done.status == 1
    result = result_of(tmp_path / "job")
    assert result["status"] == "failed" and "not finite" in result["reason"] or "nan" in result["reason"]
    assert f"failed: {result['reason']}" in done.out
    again = train(tmp_path, *options)
    assert again.status == 1 and result["reason"] in again.out and "parameters" not in again.out


def test_an_epoch_whose_report_is_lost_with_the_workers_is_shown_when_they_go_on(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (
        EpochMetrics(epoch=epoch, time_ms=epoch, images=1257 * epoch, seconds=float(epoch), **FIGURES)
        for epoch in (1, 2, 3)
    )

    def loop(task: WorkerTask, events: Events) -> None:
        events.put(TrainingStarted((), 2, 0))
        events.report(EpochDone(first, {}), {})
        events.put(TrainingStarted((first, second), 1, 20))
        events.report(EpochDone(third, {}), {})
        raise NonFiniteError("the loss of step 31 is nan")

    monkeypatch.setattr(train_worker, "train", loop)
    done = train(tmp_path, "--name", "job")
    assert done.status == 1 and "failed: the loss of step 31 is nan" in done.out, done
    shown = [line.split()[:2] for line in done.out.splitlines() if line.startswith(("epoch ", "1 worker goes"))]
    assert shown == [["epoch", "1/4"], ["epoch", "2/4"], ["1", "worker"], ["epoch", "3/4"]]
    assert [epoch["epoch"] for epoch in result_of(tmp_path / "job")["history"]] == [1, 2, 3]


def test_out_of_memory_in_the_first_epoch_leaves_the_name_to_the_same_job(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self: torch.empty(2**60))
        done = train(tmp_path, "--name", "job")
    assert done.status == 2 and "ran out of memory" in done.err, done
    (logged,) = logged_runs(tmp_path)[1]
    line = refused(*OPTIONS, "--storage", str(tmp_path), "--name", "job", "--model.coupling-width", "4")
    assert line.endswith("holds another training (model coupling_width=8, not 4); give another --name")
    assert train(tmp_path, "--name", "job", "--micro-batch-size", "32").status == 0  # what the first line advises
    (again,) = logged_runs(tmp_path)[1]
    assert again.info.run_id == logged.info.run_id and again.info.status == "FINISHED"


def test_a_job_that_cannot_begin_leaves_its_name_free(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(main_memory, "memory_bytes", lambda: 1)
        patch.delenv("RAY_ADDRESS", raising=False)
        assert train(tmp_path, "--name", "job").status == 2
    assert not (tmp_path / "job/job.json").exists()


def test_a_dry_run_refuses_what_the_command_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dry = (*OPTIONS, "--storage", str(tmp_path), "--name", "job", "--dry-run")
    assert call(main, TrainSettings, *dry).status == 0 and not (tmp_path / "job/job.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(main_memory, "memory_bytes", lambda: 1)
        assert "this model does not fit" in refused(*dry)
    open_job(open_storage(tmp_path).child("job"), identity(load_dataset("digits"), configs()))
    assert refused(*dry).endswith("give another --name")


# --- what is trained -----------------------------------------------------------------------------


def configs(*, say: Any = lambda line: None, **settings: Any) -> Any:
    return train_configs(TrainSettings(**settings), load_dataset("digits"), say)


def test_a_file_and_options_above_it(tmp_path: Path) -> None:
    toml = tmp_path / "flow.toml"
    toml.write_text('[model]\nfamily = "flow"\nflow_depth = 7\nbins = 17\n[train]\nepochs = 3\n')
    from pipelines.training.settings import ModelOptions

    made = configs(config=str(toml), model=ModelOptions(flow_depth=5))
    assert (made.model.family, made.model.flow_depth, made.model.image_shape) == ("flow", 5, (1, 8, 8))
    assert (made.train.epochs, made.train.batch_size, made.parent_run_id) == (3, 64, None)
    as_json = tmp_path / "flow.json"
    as_json.write_text(json.dumps({"model": MODEL, "train": TRAIN}))
    assert configs(config=str(as_json)).model.coupling_width == 8
    assert configs().model.family == "fvae"


def test_a_job_of_an_earlier_version_is_the_same_job(tmp_path: Path) -> None:
    """Its configs lack the fields that have come since; its default name is the one that it had."""
    job = identity(load_dataset("digits"), configs())
    earlier = job | {part: of_the_first_version(part, job[part]) for part in ("model", "train")}
    assert default_name(job) == default_name(earlier)
    run = open_storage(tmp_path)
    run.write("job.json", json.dumps(earlier).encode())
    open_job(run, job)
    with pytest.raises(ConfigError, match="model likelihood=its default, not discretized"):
        open_job(run, job | {"model": job["model"] | {"likelihood": "discretized"}})


def test_scales_may_be_given_in_bins(tmp_path: Path) -> None:
    from pipelines.training.settings import ModelOptions

    toml = tmp_path / "fvae.toml"
    toml.write_text("[model]\nsigma1_bins = 0.34\nsigma2_init = 0.5\n")
    made = configs(config=str(toml), model=ModelOptions(sigma2_bins=3.4))
    assert (made.model.sigma1_init, made.model.sigma2_init) == (pytest.approx(0.02), pytest.approx(0.2))
    for text in ("sigma1_bins = 1.0\nsigma1_init = 0.1", 'sigma1_bins = "wide"'):
        toml.write_text(f"[model]\n{text}\n")
        with pytest.raises(ConfigError, match="fvae.toml: sigma1_bins"):
            configs(config=str(toml))


@pytest.mark.parametrize(("name", "parameters"), [("mnist-28x28", 424_726), ("paper-64x64", 95_672_426)])
def test_the_configurations_that_come_along(name: str, parameters: int) -> None:
    shape = (1, 28, 28) if name.startswith("mnist") else (3, 64, 64)
    images = np.zeros((1, *shape), np.uint8)
    dataset = ImageDataset(name="images", train=images, val=images, test=images, bins=256)
    made = train_configs(TrainSettings(config=str(ROOT / f"configs/{name}.toml")), dataset, lambda line: None)
    assert parameters_and_flops(made.model)[0] == parameters
    if name.startswith("paper"):
        with pytest.raises(ConfigError, match="but the images of digits have"):
            configs(config=str(ROOT / f"configs/{name}.toml"))


def test_a_trial_is_trained_again_in_a_run_beside_it(empty_database: Path, tmp_path: Path) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    runs = open_storage(tmp_path)
    trial_params = {f"model.{name}": value for name, value in configs(config=None).model.to_dict().items()}
    trial_params |= {"model.family": "vae", "model.encoder_width": 8, "data.hash": "other", "data.name": "letters"}
    search = SearchTracker(storage=runs, dataset_name="digits", search_name="search")
    search.start()
    search.record_trial(TrialSnapshot(id="0000-vae", family="vae", status="running", params=trial_params))
    assert search.flush()
    search.close()
    client = MlflowClient(default_tracking_uri(runs))
    (experiment,) = [each for each in client.search_experiments() if each.name == "fvae/digits"]
    there = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    trial_id, parent_id = there["0000-vae"].info.run_id, there["search"].info.run_id

    said: list[str] = []
    made = configs(from_run=trial_id, storage=str(tmp_path), say=said.append)
    assert (made.model.family, made.model.encoder_width, made.parent_run_id) == ("vae", 8, parent_id)
    assert said == [f"run {trial_id} was trained on another data set (letters, hash other)"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--workers", "0"), "--workers=0: must be an integer of at least 1"),
        (("--elastic", "2-8"), "--elastic=2-8: must be LEAST:MOST, e.g. 2:8"),
        (("--elastic", "4:2"), "--elastic=4:2: the most workers must be at least the least, e.g. 2:8"),
        (("--elastic", "1:2", "--workers", "2"), "--elastic=1:2 with --workers: give one of the two"),
        (("--workers", "2", "--gpus-per-worker", "0.5"), "--gpus-per-worker=0.5: several workers need a GPU each"),
        (("--checkpoint-minutes", "0"), "--checkpoint-minutes=0.0: must be a finite number above 0"),
        (("--keep-checkpoints", "0"), "--keep-checkpoints=0: must be an integer of at least 1"),
        (("--micro-batch-size", "0"), "--micro-batch-size=0: must be an integer of at least 1"),
        (("--name", "../up"), "--name='../up': letters, digits"),
        (("--storage", "ftp://x"), "--storage: ftp://x: cannot use ftp://"),
        (("--dataset", "/nowhere"), "/nowhere"),
        (("--model.flow-levels", "9"), "flow_levels=9: a 8×8 image can be halved 3 times"),
        (("--model.family", "flow", "--train.kl-warmup", "0.5"), "kl_warmup=0.5: a flow has no KL divergence"),
        (("--config", "WORD"), "ema_decay='x': must be in [0, 1)"),
        (("--train.epochs", "0"), "epochs=0: must be an integer of at least 1"),
        (("--config", "/nowhere.toml"), "--config=/nowhere.toml: cannot be read (No such file or directory)"),
        (("--config", "CONFIG"), "is no TOML"),
        (("--config", "TABLES"), "needs the tables 'model' and 'train' alone"),
        (("--config", "FIELD"), "flow_dept: no such field of ModelConfig"),
        (("--config", "IMAGES"), "height=32, but the images of digits have height=8"),
        (("--config", "a.toml", "--from-run", "b"), "--config=a.toml and --from-run=b: give one of the two"),
        (("--from-run", "0123"), "run 0123: "),
    ],
)
def test_a_users_mistake_gets_one_line(
    options: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "CONFIG": "family = ",
        "TABLES": "[optimizer]\nlr = 1\n",
        "FIELD": "[model]\nflow_dept = 3\n",
        "IMAGES": "[model]\nheight = 32\n",
        "WORD": '[train]\nema_decay = "x"\n',
    }
    named = [str(tmp_path / "file.toml") if option in files else option for option in options]
    for option in options:
        if option in files:
            (tmp_path / "file.toml").write_text(files[option])
    monkeypatch.chdir(tmp_path)
    assert line in refused(*named)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/checkpoints"))


def test_a_search_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/search.json").write_text("{}")
    line = refused("--storage", str(tmp_path), "--name", "digits")
    assert line == f"error: {tmp_path}/digits: holds a search; give another --name"
    assert [path.name for path in (tmp_path / "digits").iterdir() if path.name != ".lock"] == ["search.json"]


def test_workers_that_see_another_disk_are_refused(tmp_path: Path) -> None:
    configs_ = configs(config=None)
    task = WorkerTask(
        storage=str(tmp_path / "elsewhere"),
        model=configs_.model,
        train=configs_.train,
        images={},
        keep=1,
        checkpoint_seconds=60.0,
        micro_batch_size=None,
        compile=False,
        checkpoint_activations=False,
    )
    events: list[Event] = []
    with pytest.raises(ConfigError, match="is not the driver's; give a folder that all machines share"):
        carry_out(train_worker.train, task, Direct(events.append))
    assert not events


def test_no_password_of_a_tracking_server_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:SECRET@127.0.0.1:9")
    done = call(main, TrainSettings, "--from-run", "0123", "--storage", str(tmp_path))
    assert done.status == 1 and "127.0.0.1:9" in done.err
    assert "SECRET" not in done.out + done.err


def test_more_workers_than_there_is_room_for_are_refused_before_anything_starts(
    ray_address: str, tmp_path: Path
) -> None:
    line = refused("--storage", str(tmp_path), "--name", "job", "--workers", "40")
    assert line == ("error: --workers=40: each needs 1 CPU, and there is room for 3; use fewer, or more machines")

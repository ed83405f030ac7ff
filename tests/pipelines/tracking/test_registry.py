"""Models and runs found again by MLflow's names, and one clear line for what is not there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fvae import ConfigError, ModelConfig, TrainConfig, build, load, save
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.tracking.database import database_path
from pipelines.tracking.model_folder import write_model_folder
from pipelines.tracking.registry import model_location, run_configs, tracking_uri_of
from pipelines.tracking.settings import default_tracking_uri
from pipelines.tracking.tracker import Artifact, RunTracker, TrialSnapshot
from tests.pipelines.tracking.tracked import Runs, ended

pytestmark = pytest.mark.core

CONFIG = ModelConfig(family="vae", channels=1, height=4, width=4, bins=17, encoder_width=2, latent_channels=3)
TRAINING = TrainConfig(epochs=3, learning_rate=2.5e-3, precision="bf16", seed=11)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``saved``, what ``fvae.save`` wrote, and ``model``, the MLflow model of it."""
    folder = tmp_path_factory.mktemp("models")
    save(build(CONFIG), folder / "saved")
    write_model_folder(folder / "saved", folder / "model", dataset_name="digits")
    return folder


def tracked(storage: Storage, models: Path) -> RunTracker:
    """A finished training with its model registered."""
    storage.upload(models / "model", "train-digits/model")
    params = {f"model.{name}": value for name, value in CONFIG.to_dict().items()}
    params |= {f"train.{name}": value for name, value in TRAINING.to_dict().items()}
    snapshot = TrialSnapshot(
        id="train-digits",
        family=CONFIG.family,
        status="complete",
        params=params | {"data.hash": "6e48", "data.train": 1257},
        artifacts=(Artifact(storage, "train-digits/model"),),
        registered_as="fvae-digits",
    )
    tracker = RunTracker(storage=storage, dataset_name="digits", run_name="train-digits")
    tracker.start()
    tracker.record(snapshot)
    tracker.close()
    assert tracker.problems == []
    return tracker


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models, empty_database):
    """The runs directory and the run's id."""
    folder = tmp_path_factory.mktemp("runs of 100%")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    runs = Runs(open_storage(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = tracked(runs.storage, models)
        ended(runs.search_tracker(dataset_name="digits"))
        runs.client.set_registered_model_alias("fvae-digits", "champion", "1")
    return folder, tracker.run_id


@pytest.mark.parametrize("location", ["models:/fvae-digits/1", "models:/fvae-digits@champion", "runs:/RUN/model"])
def test_a_tracked_model_is_found(finished, location):
    runs, run_id = finished
    with model_location(location.replace("RUN", run_id), default_tracking_uri(open_storage(runs))) as folder:
        assert load(folder).config == CONFIG


@pytest.mark.parametrize("name", ["saved", "model"])
def test_a_folder_needs_no_mlflow(models, name):
    with model_location(str(models / name), "sqlite:////nowhere/mlflow.db") as folder:
        assert load(folder).config == CONFIG
        assert folder.is_relative_to(models / name)


def test_models_on_s3(machine, bucket, models, empty_database):
    machine("A")
    runs = open_storage(f"{bucket}/runs")
    database_path(runs).parent.mkdir(parents=True)
    shutil.copyfile(empty_database, database_path(runs))
    run_id = tracked(runs, models).run_id
    open_storage(bucket).upload(models / "saved", "plain")
    machine("B")
    uri = tracking_uri_of(runs)  # brings the database
    for location in (
        "models:/fvae-digits/1",
        f"runs:/{run_id}/model",
        f"{bucket}/plain",
        f"{runs.uri}/train-digits/model",
    ):
        with model_location(location, uri) as folder:
            assert load(folder).config == CONFIG
        assert not folder.exists()
    assert run_configs(run_id, uri).model == CONFIG
    with pytest.raises(ConfigError, match=f"{bucket}/none: no model there"), model_location(f"{bucket}/none", uri):
        pass


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("models:/fvae-digits/2", "fvae-digits"),
        ("models:/another/1", "another"),
        ("models:/fvae-digits@challenger", "challenger"),
        ("models:/fvae-digits", "models:/NAME/VERSION"),
        ("runs:/" + "0" * 32 + "/model", "0000"),
        ("runs:/RUN/pictures", "no such folder"),
        ("runs:/RUN", "runs:/RUN_ID/model"),
        ("RUNS", "model.safetensors is missing"),
        ("RUNS/none", "no such folder"),
        ("gs://bucket/model", "cannot use gs://"),
    ],
)
def test_what_is_not_there_is_one_clear_line(finished, location, said):
    runs, run_id = finished
    location = location.replace("RUNS", str(runs)).replace("RUN", run_id) if "ID" not in location else location
    uri = default_tracking_uri(open_storage(runs))
    with pytest.raises(ConfigError, match=said) as failure, model_location(location, uri):
        pass
    assert str(failure.value).startswith(location) and "\n" not in str(failure.value)


def test_no_database_and_no_server(tmp_path):
    with pytest.raises(ConfigError, match="no runs there"), model_location("models:/a/1", f"sqlite:///{tmp_path}/a.db"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="127.0.0.1"):
        run_configs("0" * 32, "http://127.0.0.1:9")


def test_the_configs_of_a_run(finished):
    runs, run_id = finished
    found = run_configs(run_id, default_tracking_uri(open_storage(runs)))
    assert (found.model, found.train, found.parent_run_id) == (CONFIG, TRAINING, None)
    assert found.data == {"hash": "6e48", "train": "1257"}


def test_a_run_of_another_kind_is_one_clear_line(finished):
    runs, run_id = finished
    uri = default_tracking_uri(open_storage(runs))
    mlflow = MlflowClient(uri)
    experiment = mlflow.get_experiment_by_name("fvae/digits").experiment_id
    search = next(run for run in mlflow.search_runs([experiment]) if run.info.run_name == "digits-0")
    for name, params, said in [
        ("not ours", {}, "no model's run"),
        ("newer", {"model.family": "vae", "model.colour": "blue"}, "colour: no such field"),
        ("damaged", {"model.family": "vae", "model.channels": "one"}, "model.channels='one': must be of type int"),
    ]:
        run = mlflow.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": search.info.run_id})
        for key, value in params.items():
            mlflow.log_param(run.info.run_id, key, value)
        with pytest.raises(ConfigError, match=said) as failure:
            run_configs(run.info.run_id, uri)
        assert run.info.run_id in str(failure.value) and "\n" not in str(failure.value)
    with pytest.raises(ConfigError, match="no model's run"):
        run_configs(search.info.run_id, uri)
    with pytest.raises(ConfigError, match="not in sqlite"):
        run_configs("0" * 32, uri)
    values = {f"model.{key}": value for key, value in CONFIG.to_dict().items() if value is not None}
    child = mlflow.create_run(experiment, tags={"mlflow.parentRunId": search.info.run_id})
    for key, value in values.items():
        mlflow.log_param(child.info.run_id, key, value)
    found = run_configs(child.info.run_id, uri)
    assert (found.parent_run_id, found.train) == (search.info.run_id, TrainConfig())
    assert dataclasses.asdict(found.model) == CONFIG.to_dict()

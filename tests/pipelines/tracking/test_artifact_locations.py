"""A folder of runs that was copied, moved or synchronised is a place of its own: MLflow's addresses follow it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvae.config import ConfigError
from pipelines.storage import Storage, open_storage
from pipelines.tracking.artifact_locations import correct_artifact_locations
from pipelines.tracking.database import database_path
from pipelines.tracking.registry import model_location, tracking_uri_of
from pipelines.tracking.settings import artifact_place, default_tracking_uri
from pipelines.tracking.tracker import Artifact
from tests.pipelines.tracking.mlflow_server import Server
from tests.pipelines.tracking.tracked import SEARCH, TRAINING, TRIALS, Runs, ended, running_server

pytestmark = pytest.mark.core


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Runs:
    """A whole search and a training with its registered model, in a folder."""
    runs = Runs.of_kind("folder", request)
    runs.whole_search()
    runs.whole_training()
    return runs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), empty_database) as server:
        yield server


def folder_of(runs: Runs) -> Path:
    assert runs.storage.local_path is not None
    return runs.storage.local_path


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file with the time of its writing and its content's hash."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def of_same_dataset(storage: Storage, runs: Runs) -> Runs:
    found = Runs(storage)
    found.dataset, found._written = runs.dataset, set(runs._written)  # its artifacts came along
    return found


def copied(runs: Runs, folder: Path) -> Runs:
    shutil.copytree(folder_of(runs), folder)
    return of_same_dataset(open_storage(folder), runs)


def go_on(runs: Runs) -> None:
    """One more trial in the search, and the map and the training once more."""
    tracker = runs.search_tracker()
    for snapshot in (*runs.trials(), runs.trial(3, "complete", 2)):
        tracker.record_trial(snapshot)
    runs.storage.write(f"{SEARCH}/tradeoff.html", b"<p>a larger map")
    ended(tracker, Artifact(runs.storage, f"{SEARCH}/tradeoff.html"))
    runs.whole_training()


def test_going_on_in_a_copy_leaves_the_original_alone(runs: Runs, tmp_path: Path) -> None:
    copy, before = copied(runs, tmp_path / "a copy 100%"), files(folder_of(runs))
    ids = copy.ids
    go_on(copy)
    assert files(folder_of(runs)) == before
    assert {name: copy.ids[name] for name in ids} == ids  # the copy's own, in the copy's database
    here = artifact_place(copy.storage)
    assert {run.info.artifact_uri for run in copy.all} == {f"{here}/{run_id}/artifacts" for run_id in copy.ids.values()}
    assert copy.artifact(SEARCH, "tradeoff.html", tmp_path) == b"<p>a larger map"
    assert copy.artifact("0003-fvae", "model/config.json", tmp_path) == b"0003-fvae"


def test_a_moved_folder_finds_its_models_and_artifacts(runs: Runs, tmp_path: Path) -> None:
    name = f"model-{runs.dataset}"
    runs.client.set_registered_model_alias(name, "champion", "1")
    folder_of(runs).rename(tmp_path / "moved")
    moved = of_same_dataset(open_storage(tmp_path / "moved"), runs)
    uri = tracking_uri_of(moved.storage)
    run = moved.held[TRAINING].info.run_id
    (moved.storage.local_path / "mlartifacts" / run / "artifacts/model/model.safetensors").write_bytes(b"weights")
    for location in (f"models:/{name}/1", f"models:/{name}@champion", f"runs:/{run}/model"):
        with model_location(location, uri) as folder:
            assert folder == tmp_path / "moved/mlartifacts" / run / "artifacts/model"
    assert moved.artifact(TRIALS[0], "samples.png", tmp_path) == TRIALS[0].encode()
    go_on(moved)
    assert not folder_of(runs).exists()


def test_a_copy_of_the_database_alone_says_what_is_missing(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(database_path(runs.storage), tmp_path / "alone/mlflow.db")
    uri = tracking_uri_of(open_storage(tmp_path / "alone"))
    said = pytest.raises(ConfigError, match=r"/alone/mlartifacts/.*; a copy of mlflow.db needs mlartifacts beside it$")
    with said, model_location(f"models:/model-{runs.dataset}/1", uri):
        pass


def test_artifacts_that_did_not_come_along_are_written_anew(runs: Runs, tmp_path: Path) -> None:
    copy = copied(runs, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/mlartifacts")
    go_on(copy)
    for name in (TRIALS[0], TRAINING):
        assert copy.artifact(name, "model/config.json", tmp_path / name) == TRIALS[0].encode()


def test_a_database_named_by_its_uri_finds_what_lies_beside_it(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, elsewhere = copied(runs, tmp_path / "copy"), open_storage(tmp_path / "other runs")
    uri = f"{default_tracking_uri(copy.storage)}?timeout=9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri_of(elsewhere) == uri
    assert all(run.info.artifact_uri.startswith(artifact_place(copy.storage)) for run in copy.all)
    # A database that serves other folders keeps what was written there.
    (tmp_path / "central/mlartifacts").mkdir(parents=True)
    shutil.copy(database_path(runs.storage), tmp_path / "central/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/central/mlflow.db")
    tracking_uri_of(elsewhere)
    assert all(run.info.artifact_uri.startswith(artifact_place(runs.storage)) for run in copy.all)


def test_a_database_that_cannot_be_changed_is_one_line(runs: Runs, tmp_path: Path) -> None:
    copy = copied(runs, tmp_path / "copy")
    with contextlib.closing(sqlite3.connect(database_path(copy.storage))) as database, database:
        database.execute("CREATE TRIGGER t BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'locked'); END")
    original = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:  # root writes to what is read-only by its mode
        patch.setattr(
            "pipelines.tracking.artifact_locations.sqlite3.connect",
            lambda path, **options: original(f"file:{str(path).replace('%', '%25')}?mode=ro", uri=True, **options),
        )
        with pytest.raises(ConfigError, match="copy the whole folder to where it can be written") as failure:
            correct_artifact_locations(default_tracking_uri(copy.storage), copy.storage)
        correct_artifact_locations(
            default_tracking_uri(runs.storage), runs.storage
        )  # nothing to change: reading is enough
    assert "\n" not in str(failure.value)


def test_a_copied_prefix_of_a_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original = Runs.of_kind("S3", request)
    original.whole_search()
    before = [(info.key, info.version) for info in original.storage.list()]
    for place in (open_storage(f"{original.storage.uri} copied"), open_storage(tmp_path / "brought here")):
        for info in original.storage.list():
            place.write(info.key, original.storage.read(info.key))
        copy = of_same_dataset(place, original)
        tracker = copy.search_tracker()
        tracker.record_trial(copy.trial(3, "complete", 2))
        ended(tracker)
        run = copy.held["0003-fvae"]
        assert run.info.artifact_uri.startswith(artifact_place(place))
        assert place.read(f"mlartifacts/{run.info.run_id}/artifacts/samples.png") == b"0003-fvae"
    assert [(info.key, info.version) for info in original.storage.list()] == before


def test_a_run_copied_under_another_name_is_another_run(runs: Runs) -> None:
    ids = runs.ids
    for name in (SEARCH, TRAINING):
        shutil.copytree(folder_of(runs) / name, folder_of(runs) / f"{name} again")
    search = runs.search_tracker(search_name=f"{SEARCH} again")
    search.record_trial(runs.trial(0, "complete", 5))
    ended(search)
    training = runs.run_tracker(run_name=f"{TRAINING} again")
    training.record(runs.training("complete", 5))
    ended(training)
    names = sorted(run.info.run_name for run in runs.all)
    assert names == sorted([*ids, f"{SEARCH} again", f"{TRAINING} again", TRIALS[0]])


def test_a_renamed_run_stays_the_run_that_it_is(runs: Runs) -> None:
    ids = runs.ids
    (folder_of(runs) / SEARCH).rename(folder_of(runs) / "renamed")
    tracker = runs.search_tracker(search_name="renamed")
    tracker.record_trial(runs.trial(0, "complete", 5, artifacts=()))
    ended(tracker)
    assert runs.ids == ids


def test_with_a_server_a_copy_is_another_search_and_a_moved_folder_is_not(
    request: pytest.FixtureRequest, tmp_path: Path, server: Server
) -> None:
    runs = Runs.of_kind("server", request)
    runs.whole_search()
    ids = runs.ids
    copy = copied(runs, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder_of(runs))
    linked = of_same_dataset(open_storage(tmp_path / "link"), runs)
    for place, count in ((linked, 0), (copy, 2)):
        tracker = place.search_tracker()
        tracker.record_trial(place.trial(0, "complete", 5))
        ended(tracker)
        assert len(runs.all) == len(ids) + count
    folder_of(copy).rename(tmp_path / "moved")
    moved = of_same_dataset(open_storage(tmp_path / "moved"), runs)
    tracker = moved.search_tracker()
    tracker.record_trial(moved.trial(0, "complete", 5))
    ended(tracker)
    assert len(runs.all) == len(ids) + 2

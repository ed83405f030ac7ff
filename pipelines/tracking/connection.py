"""Reaching MLflow: a tracking server, or a database that is made where it is missing. Importing this imports MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server or database; a missing SQLite file is created. Raises what MLflow raises."""
    # Ray may have imported MLflow before its variables were set.
    logging.getLogger("mlflow").setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "CRITICAL"))
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if not path.exists():
            _create_database(path)
    return MlflowClient(tracking_uri)


def _create_database(path: Path) -> None:
    """Create MLflow's tables at ``path``, whole or not at all.

    Its migrations recover neither from a kill half-way nor from a second process at the same work.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{built}").search_experiments(max_results=1)
        _put_in_place(built, path)


def _put_in_place(built: Path, path: Path) -> None:
    """Copy ``built`` to ``path`` in one step, unless there is something by now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    beside = Path(name)
    try:
        shutil.copyfile(built, beside)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(beside)  # unlike a rename, it never replaces a database that has runs already
    finally:
        beside.unlink()


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The experiment's id; it is created, or brought back from MLflow's trash, where needed.

    One that exists keeps its place for artifacts; without an ``artifact_location`` the server chooses it.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(name, artifact_location=artifact_location)
    if experiment.lifecycle_stage == "deleted":  # its name stays taken
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id

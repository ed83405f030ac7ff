"""Registered models and runs, found by MLflow's names: ``models:/name/3``, ``models:/name@alias``, ``runs:/ID/model``.

uri = tracking_uri_of(open_storage("runs"))
with model_location("models:/fvae-digits@champion", uri) as folder:
    model = fvae.load(folder)
model_config, train_config, parent_run_id, data = run_configs("8f2c…", uri)
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fvae.checkpoint import CONFIG, WEIGHTS
from fvae.config import ConfigError, ModelConfig, one_line, require
from fvae.train_config import TrainConfig
from pipelines.cli.redaction import plain_url, without_secrets
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.tracking.artifact_locations import correct_artifact_locations
from pipelines.tracking.artifacts import reachable
from pipelines.tracking.connection import connect, search_runs
from pipelines.tracking.model_folder import ARTIFACT, MLMODEL
from pipelines.tracking.settings import working_copy
from pipelines.tracking.tracking_uri import tracking_uri

if TYPE_CHECKING:  # it costs a second to import, which a model in a folder does not need
    from mlflow import MlflowClient
    from mlflow.entities import Run

_VERSION = re.compile(r"^models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))$")
_RUN = re.compile(r"^runs:/(?P<run_id>[^/]+)/(?P<path>.+)$")
_PARENT_TAG = "mlflow.parentRunId"


class RunConfigs(NamedTuple):
    """The configs of a run, read from its params."""

    model: ModelConfig
    train: TrainConfig
    parent_run_id: str | None
    """The run that it is nested under: a trial's search."""
    data: dict[str, str]
    """The params ``data.*`` without the prefix, as MLflow has them: text."""


def tracking_uri_of(storage: Storage) -> str:
    """``MLFLOW_TRACKING_URI`` where set, else the database of the runs in ``storage``, brought here if it is on S3.

    Raises ``StorageError`` and ``ConfigError`` as :meth:`WorkingCopy.bring` and :func:`tracking_uri` do.
    """
    uri = tracking_uri(storage)
    if database := working_copy(uri, storage):
        with contextlib.closing(database):
            database.bring()
    correct_artifact_locations(uri, storage)
    return uri


@contextlib.contextmanager
def model_location(location: str, tracking_uri: str) -> Iterator[Path]:
    """A local folder for ``fvae.load``, for as long as the context lasts.

    Args:
        location: ``models:/name/3``, ``models:/name@alias``, ``runs:/RUN_ID/model``, or a local folder or ``s3://…``
            that holds what ``fvae.save`` wrote or an MLflow model of ours.
        tracking_uri: MLflow's server or database, for the first three.

    Raises ``ConfigError`` where there is no such thing, ``StorageError`` where a store or a server does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="fvae-") as temporary:
        storage = _storage(location, tracking_uri, temporary)
        yield _weights(storage, location, Path(temporary, "weights"))


def run_configs(run_id: str, tracking_uri: str) -> RunConfigs:
    """The configs of a trial or a training run, read from its params.

    Raises ``ConfigError`` where there is no such run, or it is none of ours, or its params fit no config;
    ``StorageError`` where MLflow does not answer.
    """
    with _explained(f"run {run_id}", tracking_uri):
        data = connect(tracking_uri, create=False).get_run(run_id).data
    require(
        "model.family" in data.params,
        f"run {run_id}: no model's run (it has no param model.family); name a trial's or a training's",
    )
    try:
        model = ModelConfig.from_dict(_fields(ModelConfig, data.params, "model."))
        train = TrainConfig.from_dict(_fields(TrainConfig, data.params, "train."))
    except ConfigError as error:
        raise ConfigError(f"run {run_id}: {error}") from error
    return RunConfigs(model, train, data.tags.get(_PARENT_TAG), _below(data.params, "data."))


class FinishedRun(NamedTuple):
    """A fully trained model's run: a trial of a search, or a training."""

    run_id: str
    model: ModelConfig
    train: TrainConfig
    data: dict[str, str]
    """The params ``data.*`` without the prefix, as MLflow has them: text."""
    val_bpd: float
    """Validation bits/dim of the kept weights."""


def finished_runs(experiment: str, tracking_uri: str) -> list[FinishedRun]:
    """The finished trials and trainings of an experiment, the earliest first.

    Runs of other programs, and those whose params fit no config of this version, are left out. Raises ``ConfigError``
    where there is no such experiment, ``StorageError`` where MLflow does not answer.
    """
    what = f"experiment {experiment}"
    runs: list[Run] = []
    with _explained(what, tracking_uri):
        client = connect(tracking_uri, create=False)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise ConfigError(f"no such experiment in {plain_url(tracking_uri)}; `make ui` shows their names")
        runs += search_runs(
            client, found.experiment_id, "attributes.status = 'FINISHED'", order_by="attributes.start_time ASC"
        )
    finished = []
    for run in runs:
        params, metrics = run.data.params, run.data.metrics
        if "model.family" not in params or "best/val_bpd" not in metrics:
            continue  # a search's own run, or another program's
        with contextlib.suppress(ConfigError):
            model = ModelConfig.from_dict(_fields(ModelConfig, params, "model."))
            train = TrainConfig.from_dict(_fields(TrainConfig, params, "train."))
            data = _below(params, "data.")
            finished.append(FinishedRun(run.info.run_id, model, train, data, metrics["best/val_bpd"]))
    return finished


def _storage(location: str, tracking_uri: str, temporary: str) -> Storage:
    """Where the model lies; where only MLflow can read it, a copy below ``temporary``."""
    if not location.startswith(("models:", "runs:")):
        storage = open_storage(location)
    else:
        with _explained(location, tracking_uri):
            uri = _artifact_uri(connect(tracking_uri, create=False), location)
        found = reachable(uri)
        if found is None:
            from mlflow.artifacts import download_artifacts

            with _explained(location, tracking_uri):
                found = open_storage(download_artifacts(uri, dst_path=temporary, tracking_uri=tracking_uri))
        storage = found
    folder = storage.local_path
    if folder is not None and not folder.is_dir():
        beside = "; a copy of mlflow.db needs mlartifacts beside it" if "/mlartifacts/" in storage.uri else ""
        raise ConfigError(f"{location}: no model there; no such folder{_at(storage.uri, location)}{beside}")
    return storage


def _artifact_uri(client: MlflowClient, location: str) -> str:
    if found := _RUN.match(location):
        return f"{client.get_run(found['run_id']).info.artifact_uri}/{found['path']}"
    found = _VERSION.match(location)
    require(found is not None, "use models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/model")
    assert found is not None
    version = found["version"] or client.get_model_version_by_alias(found["name"], found["alias"]).version
    return client.get_model_version_download_uri(found["name"], version)


def _weights(storage: Storage, location: str, downloaded: Path) -> Path:
    """The folder itself where it is local, else a copy at ``downloaded`` of the two files that matter."""
    source = storage.child(ARTIFACT) if storage.exists(MLMODEL) else storage
    for name in (WEIGHTS, CONFIG):
        at = _at(source.uri, location)
        require(source.exists(name), f"{location}: no model there; {name} is missing{at}")
        if source.local_path is None:
            source.download(name, downloaded / name)
    return source.local_path or downloaded


def _at(place: str, location: str) -> str:
    return "" if place == location else f" ({place})"


@contextlib.contextmanager
def _explained(what: str, tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line: ``ConfigError`` for what is missing, ``StorageError`` for all else."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    except Exception as error:
        line, place = without_secrets(one_line(error)), plain_url(tracking_uri)
        if getattr(error, "error_code", "") in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}:
            raise ConfigError(f"{what}: not in {place} ({line})") from error
        raise StorageError(f"{what}: cannot be read from {place} ({line[:300]})") from error


def _below(params: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): text for name, text in params.items() if name.startswith(prefix)}


def _fields(config: type, params: Mapping[str, str], prefix: str) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {name: _value(prefix + name, hints.get(name, str), text) for name, text in _below(params, prefix).items()}


def _value(name: str, hint: Any, text: str) -> Any:
    """Undo ``str(value)`` for a field that is an int, a float, a bool, text, or one of them or ``None``."""
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    try:
        if hint is bool:
            return {"True": True, "False": False}[text]
        return hint(text) if hint in (int, float) else text
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{name}={text!r}: must be of type {hint.__name__}") from error

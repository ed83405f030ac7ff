"""A model by its name or place: a saved folder, a run's folder, a training's checkpoint, MLflow's registry.

model = open_model("runs/digits/trials/0007-fvae", "runs")
model = open_model("s3://bucket/runs/train-digits/checkpoints/step-000200.safetensors", "runs")
model = open_model("models:/fvae-digits@champion", "runs")
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from fvae.checkpoint import CONFIG, WEIGHTS, add_tensors, load
from fvae.config import ConfigError, ModelConfig, identity_fields, require
from fvae.model import Model, build
from fvae.training_state import TrainingState
from pipelines.storage import StorageError, open_storage
from pipelines.storage.local_copies import read_from
from pipelines.tracking.model_folder import MLMODEL
from pipelines.tracking.registry import model_location, tracking_uri_of
from pipelines.training.checkpoints import CHECKPOINTS, CheckpointStore
from pipelines.training.model_files import MODEL

SUFFIX = ".safetensors"


def open_model(location: str, runs: str) -> Model:
    """The model that ``location`` names, on the CPU, in evaluation mode.

    Args:
        location: one of

            - a folder that ``fvae.save`` wrote, or an MLflow model of ours;
            - a run's folder with one of them as ``model/``, or, while it trains, with ``checkpoints/``;
            - a training's checkpoint: its best weights, or its averaged ones where no epoch is done;
            - ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` or ``runs:/RUN_ID/model``.

            The first three lie on this machine or on ``s3://…``.
        runs: where the runs of MLflow's locations are, if ``MLFLOW_TRACKING_URI`` does not say.

    Raises ``ConfigError``, one line, where no whole model is there; ``StorageError`` where a store fails.
    """
    mlflow = location.startswith(("models:", "runs:"))
    if not mlflow:
        location = _model_place(location)
        if location.endswith(SUFFIX):
            return _from_checkpoint(location)
    tracking_uri = tracking_uri_of(open_storage(runs)) if mlflow else ""
    with model_location(location, tracking_uri) as path:
        try:
            return load(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), location)) from error


def weights_digest(model: Model) -> str:
    """16 hex digits of the config and every weight and buffer: the same wherever, and in whichever file, they lie."""
    config = identity_fields(ModelConfig, model.config.to_dict())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()[:16]


def short_name(location: str) -> str:
    """A name for results: ``0007-fvae`` of a trial's folder, ``fvae-digits-3`` of ``models:/fvae-digits/3``."""
    scheme, _, rest = location.rpartition(":/")
    if scheme == "models":
        return as_name(rest)
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    if scheme == "runs":
        return as_name(parts[0] if parts else "run")
    while len(parts) > 1 and parts[-1] in (MODEL, WEIGHTS):
        parts.pop()
    return as_name(parts[-1].removesuffix(SUFFIX) if parts else Path(location).resolve().name)


def as_name(text: str) -> str:
    """``text`` as one part of a key: letters, digits, ``_``, ``-`` and ``.`` stay."""
    return re.sub(r"[^\w.-]+|^[.-]+", "-", text).strip("-") or MODEL


def _from_checkpoint(location: str) -> Model:
    folder, name = _split(location)
    try:
        with read_from(open_storage(folder), name) as path:
            require(path.is_file(), f"{location}: no model there; no such file")
            try:
                state = TrainingState.read(path)
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(path), location)) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{location}: no model there; no such object") from error
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"{location}: cannot be read ({error.strerror or error})") from error
    model = build(ModelConfig.from_dict(state.metadata["model"]))
    try:
        model.load_state_dict(state.under("best/") or state.under("ema/"))
    except RuntimeError as error:
        raise ConfigError(f"{location}: does not fit its own config ({str(error).splitlines()[0]})") from error
    return model.eval()


def _model_place(location: str) -> str:
    """The folder that holds the model of ``location``, or a checkpoint."""
    if location.endswith(SUFFIX):
        folder, name = _split(location)
        return folder if name == WEIGHTS else location
    storage = open_storage(location)
    require(
        storage.local_path is None or not storage.local_path.is_file(),
        f"{location}: not a model; name a folder, or a checkpoint ({SUFFIX})",
    )
    for name in ("", MODEL):
        place = storage.child(name) if name else storage
        if any(place.exists(file) for file in (MLMODEL, WEIGHTS, CONFIG)):
            return f"{location.rstrip('/')}/{name}" if name else location
    checkpoints = CheckpointStore(storage.child(CHECKPOINTS), 1).all()
    return f"{location.rstrip('/')}/{CHECKPOINTS}/{checkpoints[-1].key}" if checkpoints else location


def _split(location: str) -> tuple[str, str]:
    folder, slash, name = location.rpartition("/")
    return folder or slash or ".", name

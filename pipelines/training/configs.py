"""What a training job trains: from a file, an MLflow run and options, for the images of a data set."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fvae.config import ConfigError, ModelConfig, is_number, require
from fvae.data.images import Dataset
from fvae.train_config import TrainConfig
from pipelines.cli.optional_fields import given
from pipelines.training.settings import IN_BINS, OF_THE_IMAGES, TrainSettings


class TrainConfigs(NamedTuple):
    """One training."""

    model: ModelConfig
    train: TrainConfig
    parent_run_id: str | None
    """The MLflow run that it is nested under."""


def train_configs(settings: TrainSettings, dataset: Dataset, say: Callable[[str], None]) -> TrainConfigs:
    """Put together what the settings name; ``say`` is called with a line for what is worth knowing.

    Raises ``ConfigError`` where they do not fit together, or not the images; ``StorageError`` where MLflow does not
    answer.
    """
    parent_run_id = None
    if settings.config is not None:
        where = settings.config
        tables = read_tables(Path(settings.config))
    elif settings.from_run is not None:
        from pipelines.tracking.registry import run_configs, tracking_uri_of  # MLflow takes a second to import

        where = f"run {settings.from_run}"
        theirs = run_configs(settings.from_run, tracking_uri_of(settings.all_runs()))
        tables = {"model": theirs.model.to_dict(), "train": theirs.train.to_dict()}
        parent_run_id = theirs.parent_run_id
        if theirs.data.get("hash") not in (None, dataset.content_hash()):
            say(f"{where} was trained on another data set ({theirs.data.get('name')}, hash {theirs.data['hash']})")
    else:
        where, tables = "--model", {"model": {}, "train": {}}

    channels, height, width = dataset.shape
    images = {"channels": channels, "height": height, "width": width, "bins": dataset.bins}
    for name in OF_THE_IMAGES:
        found = tables["model"].get(name, images[name])
        require(
            found == images[name],
            f"{where}: {name}={found}, but the images of {dataset.name} have {name}={images[name]}",
        )
    try:
        model = ModelConfig.from_dict({"family": "fvae"} | _scaled(tables["model"], given(settings.model), images))
        train = TrainConfig.from_dict(tables["train"] | given(settings.train))
        train.require_fits(model)
        return TrainConfigs(model, train, parent_run_id)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _scaled(table: dict[str, Any], options: dict[str, Any], images: dict[str, int]) -> dict[str, Any]:
    """A model's fields from a table and the options above it, with the scales that are given in bins in the config's
    own units. Raises ``ConfigError`` where one of them gives a scale twice."""
    fields: dict[str, Any] = {}
    for given_here in (table, options):
        for name in IN_BINS:
            field = name.replace("_bins", "_init")
            if name not in given_here:
                continue
            require(field not in given_here, f"{name} and {field}: are one scale in two units; give one of them")
            require(is_number(given_here[name]), f"{name}={given_here[name]!r}: must be a finite number, in bins")
            fields[field] = given_here[name] / images["bins"]
        fields |= {name: value for name, value in given_here.items() if name not in IN_BINS}
    return fields | images


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """The tables ``model`` and ``train`` of a TOML or JSON file. Raises ``ConfigError`` for what is none."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config={path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config={path}: is no text; give a TOML or JSON file") from error
    try:
        tables = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"--config={path}: is no {kind} ({error})") from error
    fits = isinstance(tables, dict) and all(isinstance(table, dict) for table in tables.values())
    require(fits and set(tables) <= {"model", "train"}, f"--config={path}: needs the tables 'model' and 'train' alone")
    return {"model": {}, "train": {}} | tables

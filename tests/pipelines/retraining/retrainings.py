"""Data sets that grow, and retrainings of tiny models on them: in this process, as a command, or as one that dies."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from rich.console import Console
from sklearn.datasets import load_digits

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from pipelines import retrain as retrain_command
from pipelines.cli.progress import Steps
from pipelines.data.ingest import ingest
from pipelines.data.settings import IngestSettings
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import open_storage
from pipelines.tracking.settings import default_tracking_uri
from pipelines.training.events import EpochDone, Event
from tests.commands import Called, call
from tests.waiting import DEADLINE, until

ROOT = Path(__file__).parents[3]
NAME, MODEL = "scans", "fvae-scans"
FLOW = {"family": "flow", "flow_levels": 1, "flow_depth": 2, "coupling_width": 8}
TRAIN = {"epochs": 2, "batch_size": 64, "warmup_steps": 10, "learning_rate": 4e-3}


def pixels(count: int) -> np.ndarray:
    """The first ``count`` scanned digits as 8-bit images, uint8 ``[count, 8, 8]``."""
    levels = load_digits().images[:count].astype(np.uint8)
    return levels * 15 + np.random.default_rng(0).integers(0, 15, (1797, 8, 8), dtype=np.uint8)[:count]


def data_set(folder: Path, images: np.ndarray, dest: str | Path | None = None, name: str = NAME) -> str:
    """A data set of ``images``, made or brought up to date at ``dest`` (default: below ``folder``); its location."""
    folder.mkdir(parents=True, exist_ok=True)
    source, place = folder / "source.npy", str(dest or folder / "data")
    buffer = io.BytesIO()
    np.save(buffer, images)
    source.write_bytes(buffer.getvalue())
    settings = IngestSettings(source=str(source), dest=place, name=name, test=0.25, processes=1)
    ingest(settings, lambda line: None, Steps(Console(quiet=True)))
    return place


def config_file(path: Path, train: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> str:
    """A file for ``--config``: the tiny flow with some fields changed; its path."""
    path.write_text(json.dumps({"model": FLOW | (model or {}), "train": TRAIN | (train or {})}))
    return str(path)


def options_of(storage: str | Path, *options: str) -> list[str]:
    """All options of a retraining."""
    return ["--model", MODEL, "--storage", str(storage), *options]


def command(storage: str | Path, *options: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "pipelines.retrain", *options_of(storage, *options)]


def retrain(storage: str | Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, run to its end."""
    return subprocess.run(
        command(storage, *options),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def called(storage: str | Path, *options: str) -> Called:
    """The command, in this process."""
    return call(retrain_command.main, RetrainSettings, *options_of(storage, *options))


class Registry:
    """What MLflow holds of the model, read with its plain client."""

    def __init__(self, tracking_uri: str) -> None:
        self.client = MlflowClient(tracking_uri)

    @classmethod
    def of(cls, storage: str | Path) -> Registry:
        """Of runs on a local folder."""
        return cls(default_tracking_uri(open_storage(str(storage))))

    def alias(self, alias: str = "champion") -> int | None:
        """The version that it names."""
        number = self.client.get_registered_model(MODEL).aliases.get(alias)
        return None if number is None else int(number)

    def versions(self) -> list[int]:
        """All there are."""
        return sorted(int(found.version) for found in self.client.search_model_versions(f"name = '{MODEL}'"))

    def tags(self, version: int) -> dict[str, str]:
        """Of a version."""
        return dict(self.client.get_model_version(MODEL, str(version)).tags)

    def decisions(self) -> list[Any]:
        """The runs of decisions, the earliest first."""
        experiment = self.client.get_experiment_by_name(f"fvae/{NAME}")
        if experiment is None:
            return []
        runs = self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
        return [run for run in runs if "fvae.decision" in run.data.tags]

    def outcomes(self) -> list[str]:
        """Of all decisions, the earliest first; every one must be finished."""
        decisions = self.decisions()
        assert all(run.info.status == "FINISHED" for run in decisions)
        return [run.data.tags["decision"] for run in decisions]

    def trainings(self) -> list[Any]:
        """The runs of trainings."""
        experiment = self.client.get_experiment_by_name(f"fvae/{NAME}")
        runs = self.client.search_runs([experiment.experiment_id]) if experiment else []
        return [run for run in runs if "model.family" in run.data.params]


MOMENTS = ("epoch", "trained", "reading", "alias", "moved")
"""Of :func:`die_at`."""


def die_at(moment: str) -> None:
    """From now on SIGKILL ends this process at a moment.

    ``epoch``: an epoch is trained and its checkpoint written; ``trained``: all is trained and not yet registered;
    ``reading``: the first reading of the test images is kept; ``alias``: the champion's alias is about to move;
    ``moved``: it has moved.
    """
    from pipelines.evaluation.image_scores import KeptReadings
    from pipelines.retraining.registered_model import CHAMPION, RegisteredModel
    from pipelines.training import run as training_run
    from pipelines.training.checkpoints import CHECKPOINTS
    from pipelines.training.run import Training

    hear, add, set_alias = Training._on_event, KeptReadings.add, RegisteredModel.set_alias
    write_result = training_run.write_result

    def reach(reached: str) -> None:
        if reached == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hearing(self: Training, event: Event) -> None:
        hear(self, event)
        if isinstance(event, EpochDone) and moment == "epoch":
            until(lambda: list(self.run.child(CHECKPOINTS).list()) != [], "its checkpoint, written in the background")
            reach("epoch")

    def writing(storage: Any, result: Any) -> None:
        write_result(storage, result)
        reach("trained")

    def adding(self: KeptReadings, measured: Any) -> None:
        add(self, measured)
        reach("reading")

    def setting(self: RegisteredModel, alias: str, number: int) -> None:
        if alias == CHAMPION:
            reach("alias")
        set_alias(self, alias, number)
        if alias == CHAMPION:
            reach("moved")

    Training._on_event = hearing  # type: ignore[method-assign]
    training_run.write_result = writing  # type: ignore[assignment]
    KeptReadings.add = adding  # type: ignore[method-assign]
    RegisteredModel.set_alias = setting  # type: ignore[method-assign]


def wait_at_the_first_epoch(folder: Path) -> None:
    """From now on this process makes ``folder/begun`` once an epoch is trained, and waits for ``folder/go``."""
    from pipelines.training.run import Training

    hear = Training._on_event

    def hearing(self: Training, event: Event) -> None:
        hear(self, event)
        if isinstance(event, EpochDone):
            (folder / "begun").touch()
            until((folder / "go").exists, "the file 'go'")

    Training._on_event = hearing  # type: ignore[method-assign]

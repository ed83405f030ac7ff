"""Training of the challenger, as ``python -m pipelines.train --register`` does it, on a data set that is open."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console

from fvae.data.images import Dataset
from pipelines.cli.run_settings import as_run_name
from pipelines.retraining.lease_wait import waited_for
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import Storage, StorageError
from pipelines.storage.run_lock import explained_disk
from pipelines.training.checkpoints import CHECKPOINTS
from pipelines.training.configs import TrainConfigs
from pipelines.training.job import TrainResult, identity, job_digest, open_job
from pipelines.training.run import Training
from pipelines.training.worker_warnings import Notices


class Trained(NamedTuple):
    """A training that has ended."""

    name: str
    """Its files are in STORAGE/NAME."""
    run: Storage
    """The storage of its files."""
    configs: TrainConfigs
    result: TrainResult
    run_id: str | None
    """Id of its run in MLflow."""
    version: int | None
    """Version of the registered model; None where the training failed."""

    def clean_up(self) -> None:
        """Remove its checkpoints, which are not needed any more."""
        self.run.delete_prefix(CHECKPOINTS)


def training_name(dataset: Dataset, configs: TrainConfigs) -> str:
    """The same for the same images and configuration, so that a job that was killed finds its training again."""
    digest = job_digest(identity(dataset, configs))[:8]
    return f"retrain-{as_run_name(dataset.name)}-{configs.model.family}-{dataset.content_hash()[:8]}-{digest}"


def train(
    settings: RetrainSettings, dataset: Dataset, configs: TrainConfigs, console: Console, notices: Notices
) -> Trained:
    """Run or resume the training, and register the model, unless that is done.

    Raises ``StorageError`` where a store, the workers or MLflow fail, ``ConfigError`` as the training does,
    ``KeyboardInterrupt``: the next start goes on from the last checkpoint.
    """
    name = training_name(dataset, configs)
    run = settings.runs().child(name)
    with explained_disk(run), waited_for(run, f"the training {name}", settings.wait_seconds, notices.say) as lease:
        run.clean_up()  # what a killed job was about to write
        job = identity(dataset, configs)
        open_job(run, job)
        training = Training(settings.training(name), dataset, configs, job, name, run, lease, console, notices)
        training.carry_out()
        lease.check()
        run.clean_up()
    result, tracker = training.result, training.tracker
    if result is None:
        raise KeyboardInterrupt
    if result.status == "complete" and tracker.model_version is None:
        problem = tracker.problems[0] if tracker.problems else "MLflow: no answer"
        raise StorageError(f"{name} is trained but not registered ({problem}); the same command goes on")
    return Trained(name, run, configs, result, tracker.run_id, tracker.model_version)

"""A registered model of MLflow, its aliases and tags, and the runs of the decisions about it.

with opened_tracking(runs) as (uri, database):
    model = RegisteredModel("fvae-digits", uri, runs)
    champion = model.champion()
    model.set_alias("champion", 3)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import tenacity

from fvae.config import ConfigError, one_line
from fvae.model import Model
from pipelines.cli.redaction import plain_url, without_secrets
from pipelines.retraining.decision import Decision
from pipelines.storage import Storage, StorageError
from pipelines.tracking.artifact_locations import correct_artifact_locations
from pipelines.tracking.database import DatabaseConflict, WorkingCopy
from pipelines.tracking.registry import RunConfigs, model_location, run_configs, tracking_uri_of
from pipelines.tracking.settings import artifact_location, default_tracking_uri, quiet_mlflow

if TYPE_CHECKING:  # a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")

CHAMPION, CHALLENGER = "champion", "challenger"
"""The aliases: the version in service, and the one that was last compared with it."""
PREVIOUS = "previous_champion"
"""Tag of a version that is or was champion: the previous champion's version."""
ROLLED_BACK = "rolled_back"
"""Tag of a version that was rolled back: the reason."""
PATIENCE = 60.0
"""Seconds for which requests to MLflow are retried: a service that restarts answers again by then."""

_DECISION, _MODEL = "fvae.decision", "fvae.decision.model"
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_PASSING = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
_REFUSED = {"PERMISSION_DENIED", "UNAUTHENTICATED"}


class Version(NamedTuple):
    """A version of the registered model."""

    number: int
    run_id: str
    """The training's run; empty where it was not registered by a training."""
    tags: dict[str, str]


@contextlib.contextmanager
def opened_tracking(runs: Storage) -> Iterator[tuple[str, WorkingCopy | None]]:
    """MLflow's URI, and this machine's copy of its database where that is on S3, while the block runs.

    Raises ``StorageError`` and ``ConfigError`` as :meth:`WorkingCopy.bring` does.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") or runs.local_path is not None:
        yield tracking_uri_of(runs), None
        return
    with contextlib.closing(WorkingCopy(runs)) as database:
        database.bring()
        correct_artifact_locations(default_tracking_uri(runs), runs)
        yield default_tracking_uri(runs), database


def put(database: WorkingCopy | None) -> None:
    """Upload the database to its store, where there is one. Raises ``StorageError`` where that fails."""
    if database is not None:
        try:
            database.put()
        except DatabaseConflict as conflict:
            raise StorageError(f"MLflow's database: {conflict}") from conflict


class RegisteredModel:
    """Every method raises ``StorageError`` where MLflow does not answer, ``ConfigError`` where it refuses."""

    def __init__(self, name: str, dataset_name: str, tracking_uri: str, runs: Storage) -> None:
        self.name, self.uri = name, tracking_uri
        self._experiment, self._runs = f"fvae/{dataset_name}", runs
        self._client: MlflowClient | None = None

    def exists(self) -> bool:
        """Whether the database exists: False where its file is missing, which any other method would make."""
        return not self.uri.startswith("sqlite:///") or Path(self.uri.removeprefix("sqlite:///")).exists()

    def champion(self) -> Version | None:
        """The version in service."""
        return self.of_alias(CHAMPION)

    def of_alias(self, alias: str) -> Version | None:
        """The version that an alias names; None where there is none."""

        def find(client: MlflowClient) -> Version | None:
            try:
                number = client.get_registered_model(self.name).aliases.get(alias)
                return None if number is None else _version(client.get_model_version(self.name, str(number)))
            except Exception as error:
                if _code(error) in _ABSENT:
                    return None
                raise

        return self._ask(f"{self.name}@{alias}", find)

    def version(self, number: int) -> Version | None:
        """A version by its number; None where it was deleted."""

        def find(client: MlflowClient) -> Version | None:
            try:
                return _version(client.get_model_version(self.name, str(number)))
            except Exception as error:
                if _code(error) in _ABSENT:
                    return None
                raise

        return self._ask(f"{self.name} version {number}", find)

    def configs(self, version: Version) -> RunConfigs | None:
        """The configuration and data set of a version's run; None where it has no run of a training."""
        if not version.run_id:
            return None
        # A request that is retried while MLflow does not answer, as run_configs is not.
        self._ask("MLflow", lambda client: client.search_experiments(max_results=1))
        try:
            return run_configs(version.run_id, self.uri)
        except ConfigError:
            return None

    def load(self, version: Version) -> Model:
        """The model, read as a serving process reads it. ``ConfigError`` where it is missing or damaged."""
        from fvae.checkpoint import load

        location = f"models:/{self.name}/{version.number}"
        with model_location(location, self.uri) as folder:
            try:
                return load(folder).float()
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(folder), location)) from error

    def set_alias(self, alias: str, number: int) -> None:
        """Point an alias at a version, atomically."""
        what = f"{self.name}@{alias}"
        self._ask(what, lambda client: client.set_registered_model_alias(self.name, alias, str(number)))

    def set_tag(self, number: int, key: str, value: str) -> None:
        """Tag a version."""
        what = f"{self.name} version {number}"
        self._ask(what, lambda client: client.set_model_version_tag(self.name, str(number), key, value[:4000]))

    def settled(self, content_hash: str) -> dict[str, str] | None:
        """The tags of the last decision that settled a data set; None where there is none."""

        def find(client: MlflowClient) -> dict[str, str] | None:
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                return None
            wanted = {_MODEL: self.name, "data.hash": content_hash, "settled": "True"}
            found = client.search_runs(
                [experiment.experiment_id],
                " and ".join(
                    ["attributes.status = 'FINISHED'", *(f"tags.`{key}` = '{value}'" for key, value in wanted.items())]
                ),
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
            return dict(found[0].data.tags) if found else None

        return self._ask(f"experiment {self._experiment}", find)

    def write(self, decision: Decision) -> str:
        """Make or update the run of a decision, which is still RUNNING. Returns its id."""
        from mlflow.entities import Metric, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        tags = {_DECISION: decision.id, _MODEL: self.name, MLFLOW_RUN_NOTE: decision.text()[:4000], **decision.tags()}
        metrics = decision.metrics()

        def bring(client: MlflowClient) -> str:
            run = self._find(client, decision.id)
            if run is None:
                experiment_id = self._experiment_id(client)
                name = f"{decision.outcome}-{decision.id[:6]}"
                began = int(decision.began * 1000)
                run = client.create_run(experiment_id, start_time=began, tags=tags, run_name=name)
            changed = {key: value for key, value in tags.items() if run.data.tags.get(key) != value}
            new = {key: value for key, value in metrics.items() if key not in run.data.metrics}
            if changed or new:
                time_ms = int(decision.began * 1000)
                client.log_batch(
                    run.info.run_id,
                    metrics=[Metric(key, value, time_ms, 0) for key, value in new.items()],
                    tags=[RunTag(key, value) for key, value in changed.items()],
                )
            return run.info.run_id

        return self._ask(f"experiment {self._experiment}", bring)

    def finish(self, run_id: str) -> None:
        """Mark the run of a decision as FINISHED."""
        self._ask(f"run {run_id}", lambda client: client.set_terminated(run_id, status="FINISHED"))

    def _find(self, client: MlflowClient, decision_id: str) -> Run | None:
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`{_DECISION}` = '{decision_id}'", max_results=1)
        return found[0] if found else None

    def _experiment_id(self, client: MlflowClient) -> str:
        from pipelines.tracking.connection import find_experiment

        return find_experiment(client, self._experiment, artifact_location(self.uri, self._runs))

    def _ask(self, what: str, question: Callable[[MlflowClient], T]) -> T:
        """The answer to an idempotent request, which is retried while MLflow does not answer."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: _code(error) in _PASSING),
            wait=tenacity.wait_exponential(multiplier=0.2, max=5),
            stop=tenacity.stop_after_delay(PATIENCE),
            reraise=True,
        )
        try:
            return retrying(lambda: question(self._connected()))
        except (ConfigError, StorageError):
            raise
        except Exception as error:
            line, place = without_secrets(one_line(error))[:300], plain_url(self.uri)
            if _code(error) in _REFUSED:
                raise ConfigError(f"{what}: refused by {place} ({line})") from error
            raise StorageError(f"{what}: {place} fails ({line})") from error

    def _connected(self) -> MlflowClient:
        if self._client is None:
            quiet_mlflow()  # before the import, which reads some of it
            from pipelines.tracking.connection import connect

            self._client = connect(self.uri)
        return self._client


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), found.run_id or "", dict(found.tags))


def _code(error: BaseException) -> str:
    return str(getattr(error, "error_code", ""))

"""Write one MLflow run: bring it to the state that a snapshot describes. Importing this module imports MLflow.

Every write is the difference between what MLflow holds of the run and the snapshot: a kill at any point leaves a
difference for the next start, never a second run or a second point. Runs are found by tags that ``create_run`` stores
in the same transaction.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.tracking.artifacts import Artifact, is_missing, log_artifact
from pipelines.tracking.connection import search_runs
from pipelines.tracking.snapshot import MODEL_ARTIFACT, EpochSnapshot, TrialSnapshot

# A stopped trial is no failure, but with KILLED the filter `attributes.status = 'FINISHED'` means the comparable ones.
_RUN_STATUS = {"running": "RUNNING", "complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_EPOCHS_TAG = "fvae.epochs"
_ARTIFACTS_TAG = "fvae.artifacts"

# `log_batch` takes 1000 entities, of which params and tags may be 100 each. An epoch is never split over two
# batches: a batch's metrics are one transaction, so every epoch is there whole or not at all.
_METRICS_PER_BATCH = 800
# Compare opens on size against bits/dim, because MLflow's plots open on the alphabetically first keys: the scatter
# plot on the first param and the first metric, parallel coordinates on the first three params that differ. Its
# colour is the first metric, in the order of logging, that all the runs have: this one, part-trained runs too.
_SIZE_AXIS = "axis.log10_params"
_BEST_SO_FAR = "best/val_bpd_so_far"


@dataclass
class RunState:
    """The state of one run in MLflow."""

    id: str
    artifact_uri: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    last_epoch: int
    certain: bool  # False: a killed process may have logged later epochs, but not yet the tag that counts them
    deleted: bool = False  # in MLflow's trash

    @classmethod
    def of(cls, run: Run, *, certain: bool) -> RunState:
        tags = dict(run.data.tags)
        return cls(
            id=run.info.run_id,
            artifact_uri=run.info.artifact_uri,
            status=run.info.status,
            params=dict(run.data.params),
            tags=tags,
            metrics=dict(run.data.metrics),
            last_epoch=int(tags.get(_EPOCHS_TAG, 0)),
            certain=certain,
            deleted=run.info.lifecycle_stage == "deleted",
        )


class RunWriter:
    """Finds, creates and completes runs. Any method may raise what MLflow raises; then read what it holds again."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def find(self, experiment_id: str, tags: Mapping[str, str], status: str | None = None) -> Iterator[RunState]:
        """The experiment's runs that have all these ``tags``, and MLflow's ``status`` where it is given.

        Those in MLflow's trash are among them; :meth:`restore` brings them back. Several milliseconds for each run
        that is found, hardly any for others.
        """
        wanted = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
        if status:
            wanted.append(f"attributes.status = '{status}'")
        found = search_runs(self._client, experiment_id, " and ".join(wanted), deleted=True)
        return (RunState.of(run, certain=False) for run in found)

    def find_one(self, experiment_id: str, tags: Mapping[str, str]) -> RunState | None:
        """The experiment's run that has all these ``tags``; one in MLflow's trash where there is no other."""
        return min(self.find(experiment_id, tags), key=lambda run: run.deleted, default=None)

    def restore(self, run: RunState) -> None:
        """Restore the run where it was deleted."""
        if run.deleted:
            self._client.restore_run(run.id)
            run.deleted = False

    def create(self, experiment_id: str, name: str, tags: Mapping[str, str], start_ms: int) -> RunState:
        """A new run with ``tags``, in one transaction."""
        run = self._client.create_run(experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
        return RunState.of(run, certain=True)

    def write_trial(self, run: RunState, trial: TrialSnapshot) -> int | None:
        """Bring ``run`` to ``trial``; returns the version of its registered model, where it has one.

        Raises ``ValueError`` for a param that has another value in MLflow, when all the rest is written.
        """
        last_epoch = trial.history[-1].epoch if trial.history else 0
        time_ms = trial.history[-1].time_ms if trial.history else now_ms()
        metrics = self._write_history(run, trial.history)
        if trial.history or trial.status != "running":  # not before the first epoch: see _BEST_SO_FAR
            new = {key: value for key, value in trial.constants.items() if key not in run.metrics}
            metrics += [Metric(key, value, time_ms, 0) for key, value in new.items()]
        metrics += [
            Metric(key, value, time_ms, last_epoch)
            for key, value in trial.final.items()
            if key not in run.metrics or not _same(run.metrics[key], value)
        ]
        params = dict(trial.params) | {"family": trial.family}
        if "size/params" in trial.constants:
            params[_SIZE_AXIS] = round(math.log10(trial.constants["size/params"]), 6)
        tags = {"status": trial.status, _EPOCHS_TAG: str(run.last_epoch)}
        if trial.reason or "reason" in run.tags:
            tags["reason"] = trial.reason

        conflicts = self.write(run, params, tags, metrics)
        self.set_status(run, _RUN_STATUS[trial.status], time_ms)
        if trial.status != "running":
            self.write_artifacts(run, trial.artifacts)
        version = None
        if trial.status == "complete" and trial.registered_as:
            version = self._register(run, trial.registered_as)
        refuse(conflicts)
        return version

    def _register(self, run: RunState, name: str) -> int:
        """The version of the registered model ``name`` that is this run's; made where there is none yet."""
        of_run = self._client.search_model_versions(f"run_id = '{run.id}'")
        if versions := [int(made.version) for made in of_run if made.name == name]:
            return min(versions)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{run.artifact_uri}/{MODEL_ARTIFACT}"
        return int(self._client.create_model_version(name, source, run.id, await_creation_for=0).version)

    def _write_history(self, run: RunState, history: Sequence[EpochSnapshot]) -> list[Metric]:
        """Log the epochs that MLflow lacks; the last batch is returned instead, to be written with all the rest."""
        if history and history[-1].epoch > run.last_epoch and not run.certain:
            logged = self._client.get_metric_history(run.id, next(iter(history[-1].metrics)))
            run.last_epoch = max((metric.step for metric in logged), default=0)
            run.certain = True
        batch: list[Metric] = []
        best = math.inf
        for epoch, time_ms, values in history:
            best = min(best, values.get("val/bpd", math.inf))
            if epoch <= run.last_epoch:  # also if it was trained again after a crash, with other times
                continue
            if len(batch) + len(values) + 1 > _METRICS_PER_BATCH:
                self._client.log_batch(run.id, metrics=batch)
                batch = []
            if math.isfinite(best):
                batch.append(Metric(_BEST_SO_FAR, best, time_ms, epoch))
            batch += [Metric(key, value, time_ms, epoch) for key, value in values.items()]
        run.last_epoch = max(run.last_epoch, history[-1].epoch if history else 0)
        return batch

    def write(
        self, run: RunState, params: Mapping[str, Any], tags: Mapping[str, str], metrics: Sequence[Metric] = ()
    ) -> list[str]:
        """Log ``metrics``, and the params and tags that differ. Returns the params that MLflow holds otherwise."""
        wanted = {key: str(value) for key, value in params.items() if value is not None}
        new_params = {key: value for key, value in wanted.items() if key not in run.params}
        new_tags = {key: str(value) for key, value in tags.items() if run.tags.get(key) != str(value)}
        if new_params or new_tags or metrics:
            self._client.log_batch(
                run.id,
                metrics=metrics,
                params=[Param(key, value) for key, value in new_params.items()],
                tags=[RunTag(key, value) for key, value in new_tags.items()],
            )
            run.params.update(new_params)
            run.tags.update(new_tags)
            run.metrics.update({metric.key: metric.value for metric in metrics})
        return sorted(key for key, value in wanted.items() if run.params[key] != value)

    def set_status(self, run: RunState, status: str, end_ms: int | None = None) -> None:
        """Bring the run to MLflow's ``status``; ``end_ms``: when it ended, in milliseconds since 1970."""
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status=status, end_time=end_ms)
        run.status = status

    def interrupt(self, run: RunState, status: str) -> None:
        """End a run that is RUNNING in MLflow while nothing runs it."""
        if run.status == "RUNNING":
            self.write(run, {}, {"status": "interrupted"})
            self.set_status(run, status)

    def write_artifacts(self, run: RunState, artifacts: Sequence[Artifact]) -> None:
        """Upload what is new or has changed since its last upload."""
        uploaded = json.loads(run.tags.get(_ARTIFACTS_TAG, "{}"))
        stamps = {artifact.name: artifact.stamp() for artifact in artifacts}
        for artifact in artifacts:
            if uploaded.get(artifact.name) != stamps[artifact.name] or is_missing(run.artifact_uri, artifact):
                log_artifact(self._client, run.id, run.artifact_uri, artifact)
        if stamps:
            self.write(run, {}, {_ARTIFACTS_TAG: json.dumps(uploaded | stamps, sort_keys=True)})


def refuse(conflicts: Sequence[str]) -> None:
    """Raise ``ValueError`` where there are ``conflicts``: params that MLflow holds otherwise."""
    if conflicts:
        raise ValueError(f"MLflow holds another value of {', '.join(conflicts)}, and params cannot be changed")


def _same(known: float, value: float) -> bool:
    return known == value or (math.isnan(known) and math.isnan(value))


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000

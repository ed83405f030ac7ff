"""A search as MLflow runs: one parent, one nested run per trial, each brought to the state it is described by.

What MLflow holds is read in one query at the start, and every write is the difference between that and the
description. A kill at any point leaves a difference for the next start, never a second run or a second point: runs
are found by tags that ``create_run`` stores in the same transaction. Importing this module imports MLflow.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipelines.artifacts import Artifact, log_artifact
from pipelines.trial_snapshot import EpochSnapshot, TrialSnapshot

# A stopped trial is no failure, but with KILLED the filter `attributes.status = 'FINISHED'` means the comparable ones.
_RUN_STATUS = {"running": "RUNNING", "complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_SEARCH_TAG = "fvae.search"
_TRIAL_TAG = "fvae.trial"
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

_NOTE = """\
One run below per trial. **To compare**: open the arrow beside this run, tick its trials, press *Compare*. The
scatter plot opens on `axis.log10_params` against `best/val_bpd`; parallel coordinates on size and family, coloured
by `best/val_bpd_so_far`.

- The filter `tags.status = 'complete'` leaves the trials that saw the whole training budget. Only they have
  `best/val_bpd` (the kept weights, chosen on validation images); only the fronts' models have `test/bpd` and
  `test/bpd_iwae64`.
- A `stopped` trial has its curves only: its `best/val_bpd_so_far` is a part-trained model's.
- The map (`tradeoff.html`) is among this run's artifacts.
"""


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server or database; a missing SQLite file is created. Raises what MLflow raises."""
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


@dataclass
class _RunState:
    """What MLflow holds of one run."""

    id: str
    artifact_uri: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    last_epoch: int
    certain: bool  # False: a killed process may have logged later epochs, but not yet the tag that counts them

    @classmethod
    def of(cls, run: Run, *, certain: bool) -> _RunState:
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
        )


class SearchRuns:
    """The runs of one search. Any method may raise what MLflow raises; make a new object then, which reads again."""

    def __init__(
        self,
        client: MlflowClient,
        *,
        experiment_name: str,
        artifact_location: str | None,
        search_id: str,
        search_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self._client = client
        self._experiment_id = _find_experiment(client, experiment_name, artifact_location)
        self._search_id = search_id
        self._trials: dict[str, _RunState] = {}
        parent: _RunState | None = None
        for run in self._existing_runs():
            state = _RunState.of(run, certain=False)
            if _TRIAL_TAG in state.tags:
                self._trials[state.tags[_TRIAL_TAG]] = state
            else:
                parent = state
        self._parent = parent or self._create_run(search_name, {MLFLOW_RUN_NOTE: _NOTE}, _now_ms())
        self._conflicts = self._write(self._parent, params, tags)

    def write_trial(self, trial: TrialSnapshot) -> None:
        """Bring a trial's run to ``trial``. Raises ``ValueError`` for a param that has another value in MLflow."""
        run = self._trials.get(trial.id)
        if run is None:
            tags = {_TRIAL_TAG: trial.id, MLFLOW_PARENT_RUN_ID: self._parent.id}
            start_ms = trial.history[0].time_ms if trial.history else _now_ms()
            run = self._trials[trial.id] = self._create_run(trial.id, tags, start_ms)
        if trial.status == "running":
            self._set_status(self._parent, "RUNNING")  # a search that was interrupted goes on

        last_epoch = trial.history[-1].epoch if trial.history else 0
        time_ms = trial.history[-1].time_ms if trial.history else _now_ms()
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
        tags = dict(trial.tags) | {"status": trial.status, _EPOCHS_TAG: str(run.last_epoch)}
        if trial.reason or "reason" in run.tags:
            tags["reason"] = trial.reason

        conflicts = self._write(run, params, tags, metrics)
        self._set_status(run, _RUN_STATUS[trial.status], time_ms)
        if trial.status != "running":
            self._write_artifacts(run, trial.artifacts)
        _refuse(conflicts)

    def write_search(self, status: str, artifacts: Sequence[Artifact]) -> None:
        """Bring the parent to ``FINISHED``, ``KILLED`` or ``FAILED``. Raises as :meth:`write_trial` does."""
        self._set_status(self._parent, status)
        self._write_artifacts(self._parent, artifacts)
        _refuse(self._conflicts)

    def interrupt_running(self, except_trials: Collection[str] = ()) -> None:
        """Correct the runs that are RUNNING in MLflow while nothing runs them."""
        for trial_id, run in self._trials.items():
            if run.status == "RUNNING" and trial_id not in except_trials:
                self._write(run, {}, {"status": "interrupted"})
                self._set_status(run, "KILLED")

    def _existing_runs(self) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`{_SEARCH_TAG}` = '{self._search_id}'", page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create_run(self, name: str, tags: dict[str, str], start_ms: int) -> _RunState:
        tags = tags | {_SEARCH_TAG: self._search_id}
        run = self._client.create_run(self._experiment_id, start_time=start_ms, tags=tags, run_name=name)
        return _RunState.of(run, certain=True)

    def _write_history(self, run: _RunState, history: Sequence[EpochSnapshot]) -> list[Metric]:
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

    def _write(
        self, run: _RunState, params: Mapping[str, Any], tags: Mapping[str, str], metrics: Sequence[Metric] = ()
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

    def _set_status(self, run: _RunState, status: str, end_ms: int | None = None) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status=status, end_time=end_ms)
        run.status = status

    def _write_artifacts(self, run: _RunState, artifacts: Sequence[Artifact]) -> None:
        """Upload what is new or has changed since its last upload."""
        uploaded = json.loads(run.tags.get(_ARTIFACTS_TAG, "{}"))
        stamps = {artifact.name: artifact.stamp() for artifact in artifacts}
        for artifact in artifacts:
            if uploaded.get(artifact.name) != stamps[artifact.name]:
                log_artifact(self._client, run.id, run.artifact_uri, artifact)
        if stamps:
            self._write(run, {}, {_ARTIFACTS_TAG: json.dumps(uploaded | stamps, sort_keys=True)})


def _find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The experiment's id; it is created, or brought back from MLflow's trash, where needed.

    One that exists keeps its place for artifacts; without an ``artifact_location`` the server chooses it.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(name, artifact_location=artifact_location)
    if experiment.lifecycle_stage == "deleted":  # its name stays taken
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _refuse(conflicts: Sequence[str]) -> None:
    if conflicts:
        raise ValueError(f"MLflow holds another value of {', '.join(conflicts)}, and params cannot be changed")


def _same(known: float, value: float) -> bool:
    return known == value or (math.isnan(known) and math.isnan(value))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

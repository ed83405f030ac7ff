"""MLflow runs of a search, a parent with a nested run per trial, or of one training.

What MLflow holds is read at the start; :mod:`pipelines.tracking.run_writer` writes what it lacks. Importing this module
imports MLflow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipelines.tracking.artifacts import Artifact
from pipelines.tracking.connection import find_experiment
from pipelines.tracking.run_writer import RunState, RunWriter, now_ms, refuse
from pipelines.tracking.snapshot import TrialSnapshot

_SEARCH_TAG = "fvae.search"
_PARENT_TAG = "fvae.search.parent"  # the parent's only, by which it is found among ten thousand trials
_TRIAL_TAG = "fvae.trial"
_RUN_TAG = "fvae.run"

_LOOKED_UP = 50
"""Trials to write up to which each is looked up; for more, all that MLflow has of the search are read at once."""

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
        trials: int,
    ) -> None:
        """``trials``: about how many trials are to be written now."""
        self._writer = RunWriter(client)
        self._experiment_id = find_experiment(client, experiment_name, artifact_location)
        self._search_id = search_id
        self._trials: dict[str, RunState] = {}  # those that were read
        parent = self._writer.find_one(self._experiment_id, {_PARENT_TAG: search_id})
        self._all_read = parent is None or trials > _LOOKED_UP
        if self._all_read:
            parent = self._read() or parent  # one of an earlier version of this software has no tag of its own
        else:
            self._read("RUNNING")
        own = {_PARENT_TAG: search_id}
        if parent:
            self._writer.restore(parent)
        self._parent = parent or self._create_run(search_name, {MLFLOW_RUN_NOTE: _NOTE, **own}, now_ms())
        self._conflicts = self._writer.write(self._parent, params, {**tags, **own})

    def write_trial(self, trial: TrialSnapshot) -> None:
        """Bring a trial's run to ``trial``. Raises ``ValueError`` for a param that has another value in MLflow."""
        run = self._trials.get(trial.id) or self._look_up(trial.id)
        if run:
            self._writer.restore(run)
            self._writer.write(run, {}, {MLFLOW_PARENT_RUN_ID: self._parent.id})  # its parent may have been removed
        else:
            tags = {_TRIAL_TAG: trial.id, MLFLOW_PARENT_RUN_ID: self._parent.id}
            start_ms = trial.history[0].time_ms if trial.history else now_ms()
            run = self._trials[trial.id] = self._create_run(trial.id, tags, start_ms)
        if trial.status == "running":
            self._writer.set_status(self._parent, "RUNNING")  # a search that was interrupted goes on
        self._writer.write_trial(run, trial)

    def write_search(self, status: str, artifacts: Sequence[Artifact]) -> None:
        """Bring the parent to ``FINISHED``, ``KILLED`` or ``FAILED``. Raises as :meth:`write_trial` does."""
        self._writer.set_status(self._parent, status)
        self._writer.write_artifacts(self._parent, artifacts)
        refuse(self._conflicts)

    def interrupt_running(self, except_trials: Collection[str] = ()) -> None:
        """End the runs that are RUNNING in MLflow while nothing runs them."""
        for trial_id, run in self._trials.items():
            if trial_id not in except_trials and not run.deleted:
                self._writer.interrupt(run, "KILLED")

    def _read(self, status: str | None = None) -> RunState | None:
        """Read the search's trials, those of MLflow's ``status`` or all. Returns the parent where it is among them."""
        parent = None
        for run in self._writer.find(self._experiment_id, {_SEARCH_TAG: self._search_id}, status):
            if trial_id := run.tags.get(_TRIAL_TAG):
                self._trials[trial_id] = _preferred(self._trials.get(trial_id), run)
            else:
                parent = _preferred(parent, run)
        return parent

    def _look_up(self, trial_id: str) -> RunState | None:
        if self._all_read:
            return None
        tags = {_SEARCH_TAG: self._search_id, _TRIAL_TAG: trial_id}
        found = self._writer.find_one(self._experiment_id, tags)
        if found:
            self._trials[trial_id] = found
        return found

    def _create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> RunState:
        return self._writer.create(self._experiment_id, name, {**tags, _SEARCH_TAG: self._search_id}, start_ms)


def _preferred(known: RunState | None, run: RunState) -> RunState:
    """The one of two runs with the same tags that is not in MLflow's trash."""
    return run if known is None or known.deleted else known


class TrainingRun:
    """The run of one training job. Any method may raise what MLflow raises; make a new object then."""

    def __init__(
        self,
        client: MlflowClient,
        *,
        experiment_name: str,
        artifact_location: str | None,
        identity: str,
        run_name: str,
        parent_run_id: str | None,
        tags: Mapping[str, str],
    ) -> None:
        self._writer = RunWriter(client)
        fixed = {_RUN_TAG: identity}
        if parent_run_id is not None:
            parent = client.get_run(parent_run_id)
            experiment_name = client.get_experiment(parent.info.experiment_id).name
            fixed[MLFLOW_PARENT_RUN_ID] = parent_run_id
        experiment_id = find_experiment(client, experiment_name, artifact_location)
        found = self._writer.find_one(experiment_id, {_RUN_TAG: identity})
        if found:
            self._writer.restore(found)
        self._run = found or self._writer.create(experiment_id, run_name, fixed, now_ms())
        self.model_version: int | None = None
        """The version of its registered model, once it has one."""
        self._writer.write(self._run, {}, tags)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run.id

    def write_trial(self, trial: TrialSnapshot) -> None:
        """Bring the run to ``trial``. Raises ``ValueError`` for a param that has another value in MLflow."""
        self.model_version = self._writer.write_trial(self._run, trial)

    def break_off(self, status: str) -> None:
        """End the run with ``status`` (``KILLED`` or ``FAILED``) where it is RUNNING, until it is written again."""
        self._writer.interrupt(self._run, status)

"""Track a search or a training in MLflow from a background thread, which neither delays nor ends it.

    storage = open_storage("runs")  # or s3://bucket/prefix
    tracker = SearchTracker(storage=storage, dataset_name="digits", search_name="digits-0")
    tracker.start()
    tracker.record_trial(snapshot)        # at any time: the whole trial so far, not what is new
    tracker.finish([Artifact(storage, "digits-0/tradeoff.html")])
    tracker.close()
    for problem in tracker.problems: ...

    tracker = RunTracker(storage=storage, dataset_name="digits", run_name="train-digits")
    tracker.start()
    tracker.record(snapshot)
    tracker.close()
    print(tracker.run_id, tracker.model_version)

Where the storage is S3 the artifacts lie there too, and so does a snapshot of MLflow's database
(:mod:`pipelines.tracking.database`), unless ``MLFLOW_TRACKING_URI`` names a server or another database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.storage import Storage
from pipelines.tracking.artifacts import Artifact
from pipelines.tracking.background import BackgroundTracker, Outcome
from pipelines.tracking.settings import artifact_location, default_tracking_uri, quiet_mlflow
from pipelines.tracking.snapshot import EpochSnapshot, TrialSnapshot

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import: the background thread pays, not the caller
    from mlflow import MlflowClient

    from pipelines.tracking.runs import SearchRuns, TrainingRun

__all__ = [
    "Artifact",
    "EpochSnapshot",
    "RunTracker",
    "SearchTracker",
    "TrialSnapshot",
    "default_tracking_uri",
    "quiet_mlflow",
]


class SearchTracker(BackgroundTracker["SearchRuns"]):
    """The MLflow side of one search: a parent run and a nested run per trial."""

    _what, _trial = "search", "trial"

    def __init__(
        self,
        *,
        storage: Storage,
        dataset_name: str,
        search_name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        tracking_uri: str | None = None,
        write_interval: float = 10.0,
    ) -> None:
        """
        Args:
            storage: the storage of all searches; this one's files lie below ``search_name``.
            dataset_name: the experiment is ``fvae/<dataset_name>``.
            search_name: the parent run's name.
            params: the parent run's params. MLflow keeps a param for ever: what may change, such as the number of
                trials, belongs in ``tags``.
            tags: the parent run's tags.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        super().__init__(storage=storage, name=search_name, tracking_uri=tracking_uri, write_interval=write_interval)
        self._dataset_name = dataset_name
        self._params = dict(params or {})
        self._tags = dict(tags or {})
        self._search_artifacts: tuple[Artifact, ...] = ()  # under `_changed`

    def record_trial(self, trial: TrialSnapshot) -> None:
        """Record the present state of a trial. Only its latest snapshot is kept for the next round."""
        self._record(trial)

    def finish(self, artifacts: Sequence[Artifact] = ()) -> None:
        """Record that the search has its result: ``artifacts`` go to the parent run, which is FINISHED.

        Without it the parent run becomes KILLED or FAILED in :meth:`close`. Trials still running become KILLED with
        the tag ``status`` = ``interrupted`` either way.
        """
        with self._changed:
            self._outcome = "FINISHED"
            self._search_artifacts = tuple(artifacts)

    def _write_end(self, outcome: Outcome | None, closing: bool) -> None:
        if closing:
            self._attempt("end of the running trials not logged", lambda runs: runs.interrupt_running())
        if outcome and self._runs:
            with self._changed:
                artifacts = self._search_artifacts
            self._attempt("result of the search not logged", lambda runs: runs.write_search(outcome, artifacts))

    def _make_runs(self, client: MlflowClient) -> SearchRuns:
        from pipelines.tracking.runs import SearchRuns

        runs = SearchRuns(
            client,
            experiment_name=f"fvae/{self._dataset_name}",
            artifact_location=artifact_location(self._tracking_uri, self._storage),
            search_id=self._identity,
            search_name=self._name,
            params=self._params,
            tags=self._tags,
            trials=self._at_hand,
        )
        with self._changed:
            recorded = frozenset(self._recorded)
        # Runs that a killed process left RUNNING. Those recorded here get their state from their snapshots.
        runs.interrupt_running(except_trials=recorded)
        return runs


class RunTracker(BackgroundTracker["TrainingRun"]):
    """The MLflow side of one training: one run, on its own or nested under a search's."""

    _what, _trial = "training", "run"

    def __init__(
        self,
        *,
        storage: Storage,
        dataset_name: str,
        run_name: str,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        tracking_uri: str | None = None,
        write_interval: float = 10.0,
    ) -> None:
        """
        Args:
            storage: the storage of all runs; this one's files lie below ``run_name``.
            dataset_name: the experiment is ``fvae/<dataset_name>``, unless there is a parent run.
            run_name: the run's name.
            parent_run_id: the run, such as a search's, that it is nested under, in that run's experiment.
            tags: the run's tags, beside those of its state.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        super().__init__(storage=storage, name=run_name, tracking_uri=tracking_uri, write_interval=write_interval)
        self._dataset_name = dataset_name
        self._parent_run_id = parent_run_id
        self._tags = dict(tags or {})
        self._run_id: str | None = None
        self._model_version: int | None = None

    def record(self, training: TrialSnapshot) -> None:
        """Record the present state of the training; its ``id`` is always the same. Only the latest is kept.

        One that is not recorded as ended is KILLED or FAILED after :meth:`close`, with the tag ``status`` =
        ``interrupted``.
        """
        self._record(training)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it has been created."""
        return self._run_id

    @property
    def model_version(self) -> int | None:
        """The version of the registered model ``registered_as`` that is this run's, once it is registered."""
        return self._model_version

    def _write_end(self, outcome: Outcome | None, closing: bool) -> None:
        assert self._runs is not None
        self._model_version = self._runs.model_version or self._model_version
        if closing and outcome:
            self._attempt("end of the training not logged", lambda runs: runs.break_off(outcome))

    def _make_runs(self, client: MlflowClient) -> TrainingRun:
        from pipelines.tracking.runs import TrainingRun

        run = TrainingRun(
            client,
            experiment_name=f"fvae/{self._dataset_name}",
            artifact_location=artifact_location(self._tracking_uri, self._storage),
            identity=self._identity,
            run_name=self._name,
            parent_run_id=self._parent_run_id,
            tags=self._tags,
        )
        self._run_id = run.run_id
        return run

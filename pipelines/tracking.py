"""A search in MLflow, written from the background: the search never waits for it and never ends because of it.

    storage = open_storage("runs")  # or s3://bucket/prefix
    tracker = SearchTracker(storage=storage, dataset_name="digits", search_name="digits-0")
    tracker.start()
    tracker.record_trial(snapshot)        # as often as liked: the whole trial so far, not what is new
    tracker.finish([Artifact(storage, "digits-0/tradeoff.html")])
    tracker.close()
    for problem in tracker.problems: ...

A snapshot says how a trial *is*; what MLflow lacks of it is worked out when it is written. So recording the same
trial again, in this process or after a crash in the next one, adds nothing twice and completes what is missing.

Where the storage is S3 the artifacts lie there too, and so does a snapshot of MLflow's database
(:mod:`pipelines.tracking_database`), unless ``MLFLOW_TRACKING_URI`` names a server or another database.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fvae.config import ConfigError
from pipelines.artifacts import Artifact
from pipelines.mlflow_settings import artifact_location, default_tracking_uri, quiet_mlflow
from pipelines.storage import Storage, StorageError
from pipelines.tracking_database import DATABASE, DatabaseConflict, WorkingCopy
from pipelines.trial_snapshot import EpochSnapshot, TrialSnapshot

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import: the background thread pays, not the caller
    from pipelines.mlflow_runs import SearchRuns

__all__ = [
    "Artifact",
    "EpochSnapshot",
    "SearchTracker",
    "TrialSnapshot",
    "default_tracking_uri",
    "quiet_mlflow",
]

# Seconds between the attempts to write what is left when the tracker closes.
_CLOSING_RETRIES = (1.0, 3.0)
# Seconds between two snapshots of a changing database in the store: what a lost machine costs at most.
_SNAPSHOT_SECONDS = 180.0

_IDENTITY = "tracking.json"


class SearchTracker:
    """The MLflow side of one search; every method returns at once, except :meth:`flush` and :meth:`close`."""

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
            storage: of all searches; this one's files lie below ``search_name``.
            dataset_name: the experiment is ``fvae/<dataset_name>``.
            search_name: the parent run's name.
            params: the parent run's params. MLflow keeps a param for ever: what may change, such as the number of
                trials, belongs in ``tags``.
            tags: the parent run's tags.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        self._storage = storage
        self._dataset_name = dataset_name
        self._search_name = search_name
        self._params = dict(params or {})
        self._tags = dict(tags or {})
        default_uri = default_tracking_uri(storage)
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri
        self._write_interval = write_interval

        # Shared with the thread, under `_changed`.
        self._changed = threading.Condition()
        self._pending: dict[str, TrialSnapshot] = {}
        self._recorded: set[str] = set()
        self._problems: dict[str, str] = {}
        self._outcome: Literal["FINISHED", "KILLED", "FAILED"] | None = None
        self._search_artifacts: tuple[Artifact, ...] = ()
        self._rounds_asked = 1  # the first round opens the search in MLflow without waiting for the interval
        self._rounds_done = 0
        self._closing = False

        # The thread's own.
        self._runs: SearchRuns | None = None
        self._search_id = ""
        is_copy = storage.local_path is None and self._tracking_uri == default_uri
        self._database = WorkingCopy(storage) if is_copy else None
        self._last_snapshot = -_SNAPSHOT_SECONDS  # the first as soon as the search's run is made
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to write. Raises ``StorageError`` where the storage fails, ``ConfigError`` where its settings do."""
        self._search_id = _search_id(self._storage.child(self._search_name))
        self._thread.start()

    def record_trial(self, trial: TrialSnapshot) -> None:
        """Tell how a trial is now. Only the latest snapshot of each trial is kept for the next round."""
        with self._changed:
            self._pending[trial.id] = trial
            self._recorded.add(trial.id)

    def finish(self, artifacts: Sequence[Artifact] = ()) -> None:
        """The search has its result: ``artifacts`` go to the parent run, which is FINISHED."""
        with self._changed:
            self._outcome = "FINISHED"
            self._search_artifacts = tuple(artifacts)

    def flush(self, timeout: float = 60.0) -> bool:
        """Write now what was recorded. True when a round went through in time with nothing left over."""
        with self._changed:
            self._rounds_asked += 1
            asked = self._rounds_asked
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._rounds_done >= asked, timeout)
            return done and not self._problems

    def close(self, *, interrupted: bool = False, timeout: float = 60.0) -> None:
        """Write what is left and stop; :attr:`problems` is then final.

        Without :meth:`finish` before it the parent run becomes KILLED (``interrupted``) or FAILED. Trials still
        running become KILLED with the tag ``status`` = ``interrupted``, until they are recorded again.

        Args:
            interrupted: the user stopped the search.
            timeout: seconds after which an unresponsive MLflow is left alone.
        """
        with self._changed:
            self._outcome = self._outcome or ("KILLED" if interrupted else "FAILED")
            self._closing = True
            self._rounds_asked += 1
            self._changed.notify_all()
        if self._thread.ident is None:  # never started
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._problems["closing"] = f"no answer within {timeout:.0f} s"

    @property
    def problems(self) -> list[str]:
        """What is not written and why, a line each. A later success removes it: the next start at the latest."""
        with self._changed:
            problems = [f"MLflow: {subject}: {error}" for subject, error in sorted(self._problems.items())]
        return problems + [f"MLflow: {note}" for note in (self._database.notes if self._database else ())]

    def _serve(self) -> None:
        try:
            self._write_rounds()
        finally:
            if self._database:
                self._database.close()

    def _write_rounds(self) -> None:
        """The thread: a round at every interval, or when asked; at closing, some more while anything is left."""
        retries = iter(_CLOSING_RETRIES)
        wait = self._write_interval
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rounds_asked > self._rounds_done, wait)
                asked, closing = self._rounds_asked, self._closing
                trials, self._pending = self._pending, {}
                outcome, artifacts = self._outcome, self._search_artifacts
            left_over = self._write_trials(trials) if self._connected() else trials
            # Only while nothing is known to be wrong with the connection: each new attempt may wait for a timeout.
            if closing and self._runs:
                self._attempt("end of the running trials not logged", lambda runs: runs.interrupt_running())
            if outcome and self._runs:
                self._write_search(outcome, artifacts)
            if closing or time.monotonic() - self._last_snapshot >= _SNAPSHOT_SECONDS:
                self._keep_database()
            with self._changed:
                self._pending = left_over | self._pending  # what was recorded meanwhile is newer
                self._rounds_done = asked
                self._changed.notify_all()
                if closing:
                    wait = next(retries, 0.0) if self._problems else 0.0
                    if not wait:
                        return

    def _write_trials(self, trials: dict[str, TrialSnapshot]) -> dict[str, TrialSnapshot]:
        """Returns those that are still to be written.

        After a failure it is unknown what arrived, so what MLflow holds is read again. That also tells a trial that
        is refused (go on with the others) from a server that is gone (do not wait for it once per trial).
        """
        left_over = dict(trials)
        for trial in trials.values():
            if self._write_trial(trial):
                del left_over[trial.id]
            elif not self._connected():
                break
        return left_over

    def _write_trial(self, trial: TrialSnapshot) -> bool:
        return self._attempt(f"trial {trial.id} not logged", lambda runs: runs.write_trial(trial))

    def _write_search(self, status: str, artifacts: tuple[Artifact, ...]) -> None:
        self._attempt("result of the search not logged", lambda runs: runs.write_search(status, artifacts))

    def _connected(self) -> bool:
        return self._runs is not None or self._attempt("search not logged", None)

    def _keep_database(self) -> None:
        """Put the working copy, where there is one, into the store."""
        if self._database and self._database.ready:
            self._last_snapshot = time.monotonic()
            self._try(f"{DATABASE} not kept in {self._storage.uri}", self._database.put)

    def _attempt(self, subject: str, write: Callable[[SearchRuns], None] | None) -> bool:
        """Run one write, opening the search first where it is not."""

        def attempt() -> None:
            runs, self._runs = self._runs or self._open(), None
            if write:
                write(runs)
            self._runs = runs

        return self._try(subject, attempt)

    def _try(self, subject: str, action: Callable[[], None]) -> bool:
        """Whether ``action`` went well; a failure becomes the problem of ``subject``."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread's edge: databases, HTTP, cloud storage raise their own
            with self._changed:
                self._problems[subject] = _one_line(error)
            return False
        with self._changed:
            self._problems.pop(subject, None)
        return True

    def _open(self) -> SearchRuns:
        if self._database:
            self._database.bring()
        quiet_mlflow()  # before the import, which reads some of it
        from pipelines import mlflow_runs

        runs = mlflow_runs.SearchRuns(
            mlflow_runs.connect(self._tracking_uri),
            experiment_name=f"fvae/{self._dataset_name}",
            artifact_location=artifact_location(self._tracking_uri, self._storage),
            search_id=self._search_id,
            search_name=self._search_name,
            params=self._params,
            tags=self._tags,
        )
        with self._changed:
            recorded = frozenset(self._recorded)
        # Runs that a killed process left RUNNING. Those recorded here are told how they are by their snapshots.
        runs.interrupt_running(except_trials=recorded)
        return runs


def _search_id(search: Storage) -> str:
    """The search's identity in MLflow: made once, kept with the search's files, gone when they are deleted."""
    try:
        content = search.read(_IDENTITY)
    except FileNotFoundError:
        search.create(_IDENTITY, json.dumps({"search_id": uuid.uuid4().hex}).encode())
        content = search.read(_IDENTITY)
    try:
        return str(json.loads(content)["search_id"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{search.uri}/{_IDENTITY}: damaged; remove it: the search gets new runs then") from error


def _one_line(error: Exception, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError | StorageError | DatabaseConflict):  # made to be read, and whole
        return text
    return f"{type(error).__name__}: {text if len(text) <= limit else text[: limit - 1] + '…'}"

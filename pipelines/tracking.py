"""A search in MLflow, written from the background: the search never waits for it and never ends because of it.

    tracker = SearchTracker(runs_dir=Path("runs"), dataset_name="digits", search_name="digits-0")
    tracker.start()
    tracker.record_trial(snapshot)        # as often as liked: the whole trial so far, not what is new
    tracker.finish([Path("runs/digits-0/tradeoff.html")])
    tracker.close()
    for problem in tracker.problems: ...

A snapshot says how a trial *is*; what MLflow lacks of it is worked out when it is written. So recording the same
trial again, in this process or after a crash in the next one, adds nothing twice and completes what is missing.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fvae.files import read_json, write_text

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import: the background thread pays, not the caller
    from pipelines.mlflow_runs import SearchRuns

# Seconds between the attempts to write what is left when the tracker closes.
_CLOSING_RETRIES = (1.0, 3.0)

_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # failures are reported once, by `problems`, not across the live table
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A failed write is repeated in a later round. MLflow's own 7 retries would hold one call for minutes, and could
    # create a run twice when only the answer was lost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class EpochSnapshot(NamedTuple):
    """What one epoch measured."""

    epoch: int
    """Epochs finished, from 1: MLflow's step."""
    time_ms: int
    """When it was measured: milliseconds since 1970. The same at every replay."""
    metrics: Mapping[str, float]
    """For example ``train/bpd``, ``val/bpd``, ``grad_norm``: the same keys in every epoch."""


@dataclass(frozen=True, kw_only=True)
class TrialSnapshot:
    """One trial as it is now.

    Raises ``ValueError`` for final metrics of a trial that is not complete, or of the same name as an epoch's.
    """

    id: str
    """The trial's name, unique within its search."""
    family: str
    """Model family; logged as the param ``family``."""
    status: Literal["running", "complete", "stopped", "failed"]
    """Logged as the tag ``status``. As MLflow's run status: RUNNING, FINISHED, KILLED, FAILED."""
    reason: str = ""
    """Why it was stopped or failed: the tag ``reason``."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Flat, with their prefixes (``model.``, ``train.``, ``data.``). ``None`` means absent: it is not logged."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Metrics known before training, logged once at step 0: ``size/params``, ``size/flops_per_image``."""
    history: Sequence[EpochSnapshot] = ()
    """Every epoch so far, in order."""
    final: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the kept weights, complete trials only, at the last epoch's step: ``best/val_bpd``, ``test/bpd``."""
    artifacts: tuple[Path, ...] = ()
    """Files and folders to upload under their own names once the trial has ended."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags."""

    def __post_init__(self) -> None:
        if self.final and self.status != "complete":
            raise ValueError(f"trial {self.id} is {self.status}: only a complete trial has final metrics")
        repeated = set(self.final).intersection(self.history[-1].metrics if self.history else ())
        if repeated:
            raise ValueError(f"trial {self.id}: {', '.join(sorted(repeated))} in its history and its final metrics")


def default_tracking_uri(runs_dir: Path) -> str:
    """The SQLite database that serves where ``MLFLOW_TRACKING_URI`` is not set: ``runs_dir/mlflow.db``."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


def quiet_mlflow() -> None:
    """Set this product's defaults for MLflow's environment variables; a user's own settings stay. No telemetry."""
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)


class SearchTracker:
    """The MLflow side of one search; every method returns at once, except :meth:`flush` and :meth:`close`."""

    def __init__(
        self,
        *,
        runs_dir: Path,
        dataset_name: str,
        search_name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        tracking_uri: str | None = None,
        write_interval: float = 10.0,
    ) -> None:
        """
        Args:
            runs_dir: the folder of all searches; this one lies in ``runs_dir/search_name``.
            dataset_name: the experiment is ``fvae/<dataset_name>``.
            search_name: the parent run's name.
            params: the parent run's params. MLflow keeps a param for ever: what may change, such as the number of
                trials, belongs in ``tags``.
            tags: the parent run's tags.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        self._runs_dir = runs_dir
        self._dataset_name = dataset_name
        self._search_name = search_name
        self._params = dict(params or {})
        self._tags = dict(tags or {})
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(runs_dir)
        self._write_interval = write_interval

        # Shared with the thread, under `_changed`.
        self._changed = threading.Condition()
        self._pending: dict[str, TrialSnapshot] = {}
        self._recorded: set[str] = set()
        self._problems: dict[str, str] = {}
        self._outcome: Literal["FINISHED", "KILLED", "FAILED"] | None = None
        self._search_artifacts: tuple[Path, ...] = ()
        self._rounds_asked = 1  # the first round opens the search in MLflow without waiting for the interval
        self._rounds_done = 0
        self._closing = False

        # The thread's own.
        self._runs: SearchRuns | None = None
        self._search_id = ""
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to write. Raises ``OSError`` where the run directory cannot be written."""
        self._search_id = _search_id(self._runs_dir / self._search_name)
        self._thread.start()

    def record_trial(self, trial: TrialSnapshot) -> None:
        """Tell how a trial is now. Only the latest snapshot of each trial is kept for the next round."""
        with self._changed:
            self._pending[trial.id] = trial
            self._recorded.add(trial.id)

    def finish(self, artifacts: Sequence[Path] = ()) -> None:
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
            return [f"MLflow: {subject} not logged: {error}" for subject, error in sorted(self._problems.items())]

    def _serve(self) -> None:
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
                self._attempt("end of the running trials", lambda runs: runs.interrupt_running())
            if outcome and self._runs:
                self._write_search(outcome, artifacts)
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
        return self._attempt(f"trial {trial.id}", lambda runs: runs.write_trial(trial))

    def _write_search(self, status: str, artifacts: tuple[Path, ...]) -> None:
        self._attempt("result of the search", lambda runs: runs.write_search(status, artifacts))

    def _connected(self) -> bool:
        return self._runs is not None or self._attempt("search", None)

    def _attempt(self, subject: str, write: Callable[[SearchRuns], None] | None) -> bool:
        """Run one write, opening the search first where it is not; a failure becomes the problem of ``subject``."""
        try:
            runs = self._runs or self._open()
            if write:
                write(runs)
        except Exception as error:  # noqa: BLE001 - the thread's edge: databases, HTTP, cloud storage raise their own
            self._runs = None
            with self._changed:
                self._problems[subject] = _one_line(error)
            return False
        self._runs = runs
        with self._changed:
            self._problems.pop(subject, None)
        return True

    def _open(self) -> SearchRuns:
        quiet_mlflow()  # before the import, which reads some of it
        from pipelines import mlflow_runs

        runs = mlflow_runs.SearchRuns(
            mlflow_runs.connect(self._tracking_uri),
            experiment_name=f"fvae/{self._dataset_name}",
            artifact_folder=self._runs_dir.resolve() / "mlartifacts",
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


def _search_id(run_dir: Path) -> str:
    """The search's identity in MLflow: made once, kept with the run directory, gone when that is deleted."""
    path = run_dir / "tracking.json"
    if not path.exists():
        write_text(path, json.dumps({"search_id": uuid.uuid4().hex}))
    return read_json(path)["search_id"]


def _one_line(error: Exception, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= limit else text[: limit - 1] + '…'}"

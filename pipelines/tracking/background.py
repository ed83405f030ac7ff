"""Background thread of every tracker: it writes recorded snapshots to MLflow, round by round.

A snapshot says how a trial *is*; what MLflow lacks of it is worked out when it is written. So recording the same
trial again, in this process or after a crash in the next one, adds nothing twice and completes what is missing.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from fvae.config import ConfigError, one_line
from pipelines.cli.redaction import without_secrets
from pipelines.storage import Storage, StorageError
from pipelines.tracking.artifact_locations import correct_artifact_locations
from pipelines.tracking.connection import connect, unreachable_for_now
from pipelines.tracking.database import DATABASE, DatabaseConflict
from pipelines.tracking.run_identity import run_identity
from pipelines.tracking.settings import default_tracking_uri, working_copy
from pipelines.tracking.snapshot import TrialSnapshot
from pipelines.tracking.tracking_uri import tracking_uri as chosen_uri

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import: the background thread pays, not the caller
    from mlflow import MlflowClient

Outcome = Literal["FINISHED", "KILLED", "FAILED"]
"""Status of a search or a training that has ended, as MLflow names it."""

# Seconds between the attempts to write what is left when the tracker closes.
_CLOSING_RETRIES = (1.0, 3.0)
# Seconds between two snapshots of a changing database in the store: what a lost machine costs at most.
_SNAPSHOT_SECONDS = 180.0


class Runs(Protocol):
    """The MLflow runs that a tracker writes; a method may raise what MLflow raises."""

    def write_trial(self, trial: TrialSnapshot) -> None:
        """Bring a trial's run to ``trial``."""


RunsT = TypeVar("RunsT", bound=Runs)


class BackgroundTracker(ABC, Generic[RunsT]):
    """Snapshots into MLflow; every method returns at once, except :meth:`flush` and :meth:`close`."""

    _what: str
    """Name of what is tracked, in messages."""
    _trial: str
    """Name of what a snapshot describes, in messages."""

    def __init__(self, *, storage: Storage, name: str, tracking_uri: str | None, write_interval: float) -> None:
        """
        Args:
            storage: the storage of all searches and trainings; this one's files lie below ``name``.
            name: unique there.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        self._storage = storage
        self._name = name
        self._tracking_uri = tracking_uri or chosen_uri(storage)
        self._write_interval = write_interval

        # Shared with the thread, under `_changed`.
        self._changed = threading.Condition()
        self._pending: dict[str, TrialSnapshot] = {}
        self._recorded: set[str] = set()
        self._problems: dict[str, str] = {}
        self._outcome: Outcome | None = None
        self._rounds_asked = 1  # the first round opens the runs in MLflow without waiting for the interval
        self._rounds_done = 0
        self._closing = False
        self._opened = False

        # The thread's own.
        self._runs: RunsT | None = None
        self._identity = ""
        self._at_hand = 0  # snapshots that this round has still to write
        self._database = working_copy(self._tracking_uri, storage)
        self._last_snapshot = -_SNAPSHOT_SECONDS  # the first as soon as the run is made
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start the thread, once. Raises ``StorageError`` where the storage fails, ``ConfigError``
        where its settings do."""
        if self._thread.ident is not None:
            return
        own = self._tracking_uri == default_tracking_uri(self._storage)
        self._identity = run_identity(self._storage, self._name, own_database=own)
        self._thread.start()

    def flush(self, timeout: float = 60.0) -> bool:
        """Write now what was recorded. Returns whether a round wrote everything in time."""
        with self._changed:
            self._rounds_asked += 1
            asked = self._rounds_asked
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._rounds_done >= asked, timeout)
            return done and not self._problems

    def begin_to_close(self, *, interrupted: bool = False) -> None:
        """Write the end already, while the caller still ends other things; :meth:`close` follows."""
        with self._changed:
            if not self._closing:
                self._outcome = self._outcome or ("KILLED" if interrupted else "FAILED")
                self._closing = True
                self._rounds_asked += 1
                self._changed.notify_all()

    def close(self, *, interrupted: bool = False, timeout: float = 60.0) -> None:
        """Write what is left and stop; :attr:`problems` is then final.

        What is not finished by then becomes KILLED (``interrupted``) or FAILED, until it is recorded again.

        Args:
            interrupted: whether the user stopped it.
            timeout: seconds after which the tracker stops waiting for MLflow.
        """
        self.begin_to_close(interrupted=interrupted)
        if self._thread.ident is None:  # never started
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._problems["closing"] = f"no answer within {timeout:.0f} s"

    @property
    def logged(self) -> bool:
        """Whether MLflow has answered at least once, and so holds some of it."""
        return self._opened

    @property
    def problems(self) -> list[str]:
        """What is not written, and why: a line each. A later success removes it, at the latest in the next start."""
        with self._changed:
            problems = [f"MLflow: {subject}: {error}" for subject, error in sorted(self._problems.items())]
        return problems + [f"MLflow: {note}" for note in (self._database.notes if self._database else ())]

    @abstractmethod
    def _make_runs(self, client: MlflowClient) -> RunsT:
        """Find or create the runs in MLflow, in the thread. May raise what MLflow raises."""

    @abstractmethod
    def _write_end(self, outcome: Outcome | None, closing: bool) -> None:
        """Write, at the end of a round, what is not a trial; in the thread, connected as a rule."""

    def _record(self, trial: TrialSnapshot) -> None:
        with self._changed:
            self._pending[trial.id] = trial
            self._recorded.add(trial.id)

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
                outcome = self._outcome
            self._at_hand = len(trials)
            left_over = self._write_trials(trials) if self._connected() else trials
            # Only while nothing is known to be wrong with the connection: each new attempt may wait for a timeout.
            if self._runs:
                self._write_end(outcome, closing)
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
            self._at_hand = len(left_over)
            if self._write_trial(trial):
                del left_over[trial.id]
            elif not self._connected():
                break
        return left_over

    def _write_trial(self, trial: TrialSnapshot) -> bool:
        return self._attempt(f"{self._trial} {trial.id} not logged", lambda runs: runs.write_trial(trial))

    def _connected(self) -> bool:
        return self._runs is not None or self._attempt(f"{self._what} not logged", None)

    def _keep_database(self) -> None:
        """Put the working copy, where there is one, into the store."""
        if self._database and self._database.ready:
            self._last_snapshot = time.monotonic()
            self._try(f"{DATABASE} not kept in {self._storage.uri}", self._database.put)

    def _attempt(self, subject: str, write: Callable[[RunsT], None] | None) -> bool:
        """Run one write, and open the runs before it where they are not open."""

        def attempt() -> None:
            runs, self._runs = self._runs or self._open(), None
            self._opened = True
            if write:
                write(runs)
            self._runs = runs

        return self._try(subject, attempt)

    def _try(self, subject: str, action: Callable[[], None]) -> bool:
        """Return whether ``action`` succeeds; a failure becomes the problem of ``subject``."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread's edge: databases, HTTP, cloud storage raise their own
            with self._changed:
                self._problems[subject] = _one_line(error)
            return False
        with self._changed:
            self._problems.pop(subject, None)
        return True

    def _open(self) -> RunsT:
        if self._database:
            self._database.bring()
        if not self._tracking_uri.startswith("http") and (note := unreachable_for_now(self._tracking_uri)):
            raise StorageError(note)
        correct_artifact_locations(self._tracking_uri, self._storage)
        return self._make_runs(connect(self._tracking_uri))


def _one_line(error: Exception, limit: int = 300) -> str:
    text = without_secrets(one_line(error))
    if isinstance(error, ConfigError | StorageError | DatabaseConflict):  # made to be read, and whole
        return text
    return f"{type(error).__name__}: {text if len(text) <= limit else text[: limit - 1] + '…'}"

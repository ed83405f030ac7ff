"""What every tracker does: a thread of its own that brings MLflow to what was recorded, round by round.

A snapshot says how a trial *is*; what MLflow lacks of it is worked out when it is written. So recording the same
trial again, in this process or after a crash in the next one, adds nothing twice and completes what is missing.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from fvae.config import ConfigError, one_line
from pipelines.cli.redaction import without_secrets
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.tracking import stores
from pipelines.tracking.artifact_locations import settle
from pipelines.tracking.database import DATABASE, DatabaseConflict, WorkingCopy
from pipelines.tracking.settings import default_tracking_uri, quiet_mlflow
from pipelines.tracking.snapshot import TrialSnapshot

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import: the background thread pays, not the caller
    from mlflow import MlflowClient

Outcome = Literal["FINISHED", "KILLED", "FAILED"]
"""How a search or a training ended, in MLflow's words."""

# Seconds between the attempts to write what is left when the tracker closes.
_CLOSING_RETRIES = (1.0, 3.0)
# Seconds between two snapshots of a changing database in the store: what a lost machine costs at most.
_SNAPSHOT_SECONDS = 180.0

_IDENTITY = "tracking.json"


class Runs(Protocol):
    """What a tracker writes to; it may raise what MLflow raises."""

    def write_trial(self, trial: TrialSnapshot) -> None:
        """Bring a trial's run to ``trial``."""


RunsT = TypeVar("RunsT", bound=Runs)


class BackgroundTracker(ABC, Generic[RunsT]):
    """Snapshots into MLflow; every method returns at once, except :meth:`flush` and :meth:`close`."""

    _what: str
    """What is tracked, for a line to the user."""
    _trial: str
    """What a snapshot is of, likewise."""

    def __init__(self, *, storage: Storage, name: str, tracking_uri: str | None, write_interval: float) -> None:
        """
        Args:
            storage: of all searches and trainings; this one's files lie below ``name``.
            name: unique there.
            tracking_uri: default: ``MLFLOW_TRACKING_URI`` where set, else :func:`default_tracking_uri`.
            write_interval: seconds between two rounds of writing; what comes in between is written as one batch.
        """
        self._storage = storage
        self._name = name
        default_uri = default_tracking_uri(storage)
        self._tracking_uri = tracking_uri or stores.tracking_uri(storage)
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
        is_copy = storage.local_path is None and self._tracking_uri == default_uri
        self._database = WorkingCopy(storage) if is_copy else None
        self._last_snapshot = -_SNAPSHOT_SECONDS  # the first as soon as the run is made
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to write, if that is not done yet. Raises ``StorageError`` where the storage fails, ``ConfigError``
        where its settings do."""
        if self._thread.ident is not None:
            return
        own = self._tracking_uri == default_tracking_uri(self._storage)
        self._identity = _identity(self._storage, self._name, own_database=own)
        self._thread.start()

    def flush(self, timeout: float = 60.0) -> bool:
        """Write now what was recorded. True when a round went through in time with nothing left over."""
        with self._changed:
            self._rounds_asked += 1
            asked = self._rounds_asked
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._rounds_done >= asked, timeout)
            return done and not self._problems

    def begin_to_close(self, *, interrupted: bool = False) -> None:
        """Let MLflow have the end at once, while the caller still has to end other things; :meth:`close` follows."""
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
            interrupted: the user stopped it.
            timeout: seconds after which an unresponsive MLflow is left alone.
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
        """Whether MLflow holds anything of it: it has answered at least once."""
        return self._opened

    @property
    def problems(self) -> list[str]:
        """What is not written and why, a line each. A later success removes it: the next start at the latest."""
        with self._changed:
            problems = [f"MLflow: {subject}: {error}" for subject, error in sorted(self._problems.items())]
        return problems + [f"MLflow: {note}" for note in (self._database.notes if self._database else ())]

    @abstractmethod
    def _make_runs(self, client: MlflowClient) -> RunsT:
        """Find or create the runs in MLflow, in the thread. May raise what MLflow raises."""

    @abstractmethod
    def _write_end(self, outcome: Outcome | None, closing: bool) -> None:
        """Write what else there is to write in a round, in the thread, connected as a rule."""

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
        """Run one write, opening the runs first where it is not."""

        def attempt() -> None:
            runs, self._runs = self._runs or self._open(), None
            self._opened = True
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

    def _open(self) -> RunsT:
        if self._database:
            self._database.bring()
        quiet_mlflow()  # before the import, which reads some of it
        from pipelines.tracking.connection import connect

        if not self._tracking_uri.startswith("http") and (note := stores.unreachable_for_now(self._tracking_uri)):
            raise StorageError(note)
        settle(self._tracking_uri, self._storage)
        return self._make_runs(connect(self._tracking_uri))


def _identity(storage: Storage, name: str, *, own_database: bool) -> str:
    """What the runs of ``name`` are found by in MLflow: made once, kept with the files, gone when they are deleted.

    The identity names its place. A folder that was moved keeps its identity; a copy whose original is still there is
    another search or training and gets an identity of its own, so that the two never write to the same runs.

    Args:
        storage: of all runs.
        name: of the run's folder there.
        own_database: MLflow's database lies beside the runs: a copy of all of them has a database of its own, and
            only a copy under another name shares one with its original.
    """
    place = storage.child(name)
    here = {"storage": storage.uri, "name": name}
    try:
        content = place.read(_IDENTITY)
    except FileNotFoundError:
        place.create(_IDENTITY, json.dumps({"search_id": uuid.uuid4().hex, **here}).encode())
        content = place.read(_IDENTITY)
    known = _parsed(content, place)
    identity = str(known["search_id"])
    if not here.keys() <= known.keys():  # of an earlier version; from now on a copy is told from its original
        if _a_neighbour_has(place, identity):
            identity = uuid.uuid4().hex  # either may be the original, and the other keeps the runs
        place.write(_IDENTITY, json.dumps({"search_id": identity, **here}).encode())
        return identity
    was_in, was_called = str(known["storage"]), str(known["name"])
    if was_called == name and (own_database or was_in == storage.uri):
        return identity
    original = (storage if own_database else open_storage(was_in)).child(was_called)
    if _is_another(original, place) and _has_identity(original, identity):
        identity = uuid.uuid4().hex
    place.write(_IDENTITY, json.dumps({"search_id": identity, **here}).encode())
    return identity


def _is_another(original: Storage, place: Storage) -> bool:
    """Whether two places are two, and not one under two names."""
    first, second = original.local_path, place.local_path
    if first is None or second is None:
        return original.uri != place.uri
    return first.exists() and not first.samefile(second)


def _a_neighbour_has(place: Storage, identity: str) -> bool:
    """Whether a folder beside ``place`` has its identity. In S3, where that takes a listing of all, none is found."""
    if place.local_path is None:
        return False
    beside = [
        path for path in place.local_path.parent.iterdir() if path.is_dir() and path.name != place.local_path.name
    ]
    return any(_has_identity(open_storage(path), identity) for path in beside)


def _has_identity(place: Storage, identity: str) -> bool:
    try:
        return bool(_parsed(place.read(_IDENTITY), place)["search_id"] == identity)
    except (FileNotFoundError, StorageError, ConfigError):
        return False


def _parsed(content: bytes, place: Storage) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(content)
        known["search_id"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{place.uri}/{_IDENTITY}: damaged; remove it: MLflow gets new runs then") from error
    return known


def _one_line(error: Exception, limit: int = 300) -> str:
    text = without_secrets(one_line(error))
    if isinstance(error, ConfigError | StorageError | DatabaseConflict):  # made to be read, and whole
        return text
    return f"{type(error).__name__}: {text if len(text) <= limit else text[: limit - 1] + '…'}"

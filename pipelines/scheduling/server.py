"""The process that keeps schedules: notes the slots that are due, and brings every run on, until it is ended.

It holds nothing that is not in the store: ended at any moment, by SIGTERM or by kill -9, and started again, it goes on
with what it finds there. Several may serve one store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pipelines.cli.quantities import duration
from pipelines.retraining.failure_hooks import run_hook
from pipelines.scheduling.ray_jobs import RayJobs, RayUnreachable
from pipelines.scheduling.run_steps import advance
from pipelines.scheduling.runs import FAILED, RUNNING, STOPPED, SUBMITTING, SUCCEEDED, TIMED_OUT, WAITING, Run
from pipelines.scheduling.store import Store
from pipelines.storage import StorageError

Say = Callable[[str], None]


class Scheduler:
    """Serves a store.

    Args:
        store: of the schedules.
        jobs: the Ray that runs them.
        say: takes a line about each thing that happens.
    """

    def __init__(self, store: Store, jobs: RayJobs, say: Say) -> None:
        self._store, self._jobs, self._say = store, jobs, say
        self._trouble: str | None = None
        self._telling: threading.Thread | None = None

    def serve(self, poll_seconds: float) -> None:
        """For ever; a pass over everything, then a pause.

        By the monotonic clock: a clock that is put back an hour must not leave runs alone for an hour. That is why
        APScheduler is asked for the slots, but does not wait for them.
        """
        while True:
            began = time.monotonic()
            self.turn()
            time.sleep(max(0.0, began + poll_seconds - time.monotonic()))

    def turn(self) -> None:
        """One pass: slots, runs, hooks. What is out of reach is said once, and tried again in the next pass."""
        try:
            trouble = self._turn()
        except StorageError as error:
            trouble = str(error)
        if trouble is not None and self._trouble is None:
            self._say(f"{trouble}; trying again")
        self._trouble = trouble

    def _turn(self) -> str | None:
        trouble = None
        now = datetime.now(UTC)
        for entry in self._store.entries():
            slot = None if entry.paused else entry.next_slot()
            if slot is not None and slot <= now:
                self._tell(self._store.claim(entry.schedule.name, now))
        for run in self._store.open_runs():
            try:
                self._tell(advance(self._store, self._jobs, run))
            except RayUnreachable as error:
                trouble = str(error)
        self._tell_hooks()
        return trouble

    def _tell(self, run: Run | None) -> None:
        if run is not None:
            self._say(describe(run))

    def _tell_hooks(self) -> None:
        """In a thread of its own: a hook may take a minute, and jobs have limits."""
        if self._telling is None or not self._telling.is_alive():
            run = self._store.take_hook()
            if run is not None:
                self._telling = threading.Thread(target=self._tell_hook, args=(run,), name="hook", daemon=True)
                self._telling.start()

    def _tell_hook(self, run: Run) -> None:
        problem = tell_hook(self._store, run)
        self._say(f"{run.job.name} {run.slot}: {problem or 'the failure hook was told'}")


def tell_hook(store: Store, run: Run) -> str | None:
    """Tell a run's failure hook, and note that; returns what went wrong, in one line."""
    assert run.job.on_failure is not None
    event = {
        "event": run.state,
        "schedule": run.job.name,
        "slot": run.slot,
        "attempts": str(run.attempt),
        "reason": run.reason,
        "submission_id": run.submission_id,
        "text": describe(run),
    }
    problem = run_hook(run.job.on_failure, event)
    try:
        store.hook_told(run, problem)
    except StorageError as error:
        logging.getLogger(__name__).debug("%s", error)  # it is told again later
    return problem


def describe(run: Run) -> str:
    """What has just happened to a run, in a line."""
    name = f"{run.job.name} {run.slot}"
    if run.state in (SUBMITTING, RUNNING):
        return f"{name}: {run.state}, attempt {run.attempt} of {run.job.attempts}, as {run.submission_id}"
    if run.state == WAITING:
        return f"{name}: due"
    took = f" after {duration(run.seconds)}" if run.seconds is not None else ""
    done = run.state in (SUCCEEDED, FAILED, TIMED_OUT, STOPPED)
    return f"{name}: {run.state}" + (took if done else "") + (f" ({run.reason})" if run.reason else "")

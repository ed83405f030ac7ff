"""The scheduler process: records the slots that are due, advances every run, and runs failure hooks.

It keeps no state outside the store: ended at any moment, by SIGTERM or by kill -9, and started again, it resumes from
there. Several may serve one store.
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
        store: the schedules and runs.
        jobs: the Ray cluster that runs the jobs.
        say: takes a line about each thing that happens.
    """

    def __init__(self, store: Store, jobs: RayJobs, say: Say) -> None:
        self._store, self._jobs, self._say = store, jobs, say
        self._trouble: str | None = None
        self._hook: threading.Thread | None = None

    def serve(self, poll_seconds: float) -> None:
        """Repeat :meth:`turn` for ever, with a pause in between.

        Pauses use the monotonic clock: a system clock that is set back an hour must not stop runs for an hour. That is
        why APScheduler computes the slots, but does not wait for them.
        """
        while True:
            began = time.monotonic()
            self.turn()
            time.sleep(max(0.0, began + poll_seconds - time.monotonic()))

    def turn(self) -> None:
        """One pass over slots, runs and hooks. An outage is reported once, and retried in the next pass."""
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
                self._report(self._store.claim(entry.schedule.name, now))
        for run in self._store.open_runs():
            try:
                self._report(advance(self._store, self._jobs, run))
            except RayUnreachable as error:
                trouble = str(error)
        self._start_hook()
        return trouble

    def _report(self, run: Run | None) -> None:
        if run is not None:
            self._say(describe(run))

    def _start_hook(self) -> None:
        """Run the next hook in a thread of its own: a hook may take a minute, and jobs have limits."""
        if self._hook is None or not self._hook.is_alive():
            run = self._store.take_hook()
            if run is not None:
                self._hook = threading.Thread(target=self._run_hook, args=(run,), name="hook", daemon=True)
                self._hook.start()

    def _run_hook(self, run: Run) -> None:
        problem = run_failure_hook(self._store, run)
        self._say(f"{run.job.name} {run.slot}: {problem or 'the failure hook was run'}")


def run_failure_hook(store: Store, run: Run) -> str | None:
    """Run the failure hook of a run, and record that; returns what went wrong, in one line."""
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
        store.finish_hook(run, problem)
    except StorageError as error:
        logging.getLogger(__name__).debug("%s", error)  # it is run again later
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

"""The state machine of a run: one step at a time, which any process can take at any moment.

Each function reads the run from the store, queries Ray, does one thing, and records it. If this process dies in
between, the next one finds the run as it was, and repeating the step changes nothing: Ray accepts a job of the same
submission id only once, and a step is recorded only once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.cli.quantities import duration
from pipelines.scheduling.cron import slot_time
from pipelines.scheduling.ray_jobs import RayJobs
from pipelines.scheduling.runs import (
    BACKING_OFF,
    FAILED,
    MANUAL,
    MISSED,
    RUNNING,
    STOPPED,
    STOPPING,
    SUBMITTING,
    SUCCEEDED,
    TIMED_OUT,
    WAITING,
    Run,
)
from pipelines.scheduling.store import Store

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

BAD_INPUT = 2
"""Exit status of commands for bad input, which is not retried."""
LONGEST_REASON = 300
"""Maximum length of a reason taken from a job's log."""
_OF_RAY = re.compile(r"^Running entrypoint for job |\bjob_manager\.py:\d+ -- ")
"""Lines in a job's log that are not its own, and in no order with its own."""


def advance(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    """Take the next step of a run; returns the run after it, or None where there was nothing to do.

    Raises ``RayUnreachable`` and ``StorageError``; nothing is lost by that.
    """
    return _STEPS[run.state](store, jobs, run)


def _waiting(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    now = time.time()
    grace = None if run.slot.startswith(MANUAL) else run.job.grace
    if grace is not None and now > slot_time(run.slot).timestamp() + grace:
        return store.move(run, MISSED, reason=f"could not begin within {duration(grace)}")
    jobs.require_answer()  # while Ray is away a run waits, so that later slots are coalesced with it
    begun = store.move(run, SUBMITTING, attempt=1, submission_id=run.submission(1), started_at=now)
    return begun and (_submitting(store, jobs, begun) or begun)


def _submitting(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    if jobs.find(run.submission_id) is None:  # otherwise a process that died, or another scheduler, has submitted it
        if _late(run):
            return store.move(run, TIMED_OUT, reason=_limit(run))
        jobs.submit(run.submission_id, run.job.command(), {"schedule": run.job.name, "slot": run.slot})
    return store.move(run, RUNNING)


def _running(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    job = jobs.find(run.submission_id)
    if job is None:
        return _attempt_failed(store, run, "Ray was restarted meanwhile and does not know the job any more")
    status = str(job.status.value)
    if status == "SUCCEEDED":
        return store.move(run, SUCCEEDED)
    if status == "STOPPED":
        return store.move(run, STOPPED, reason="the Ray job was stopped by hand")
    if status == "FAILED":
        code = job.driver_exit_code
        if code == BAD_INPUT:
            return store.move(run, FAILED, reason=f"{_why(job)}; trying again would not help")
        return _attempt_failed(store, run, _why(job))
    if _late(run):
        return store.move(run, STOPPING, reason=_limit(run))
    return None


def _stopping(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    job = jobs.find(run.submission_id)
    if job is None or job.status.is_terminal():
        done = job is not None and str(job.status.value) == "SUCCEEDED"  # at the same moment
        return store.move(run, SUCCEEDED, reason="") if done else store.move(run, TIMED_OUT)
    jobs.stop(run.submission_id)
    return None


def _backing_off(store: Store, jobs: RayJobs, run: Run) -> Run | None:
    assert run.next_at is not None
    if _late(run):
        return store.move(run, TIMED_OUT, reason=f"{_limit(run)}, after {run.attempt} failed attempts")
    if time.time() < run.next_at:
        return None
    jobs.require_answer()
    attempt = run.attempt + 1
    return store.move(run, SUBMITTING, attempt=attempt, submission_id=run.submission(attempt), next_at=None, reason="")


def _attempt_failed(store: Store, run: Run, reason: str) -> Run | None:
    if run.attempt >= run.job.attempts:
        return store.move(run, FAILED, reason=reason)
    return store.move(run, BACKING_OFF, reason=reason, next_at=time.time() + run.job.pause_after(run.attempt))


def _late(run: Run) -> bool:
    return run.deadline is not None and time.time() > run.deadline


def _limit(run: Run) -> str:
    assert run.job.limit is not None
    return f"longer than its limit of {duration(run.job.limit)}"


def _why(job: JobDetails) -> str:
    """The exit status and the last line that the command itself printed, in one line; or Ray's own message."""
    message, _, log = (job.message or "the job failed").partition("\n")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _OF_RAY.search(line)]
    last = lines[-1][:LONGEST_REASON] if lines else ""
    if job.driver_exit_code is None:
        return last or message[:LONGEST_REASON]
    return f"exit status {job.driver_exit_code}" + (f": {last}" if last else "")


_STEPS: dict[str, Callable[[Store, RayJobs, Run], Run | None]] = {
    WAITING: _waiting,
    SUBMITTING: _submitting,
    RUNNING: _running,
    STOPPING: _stopping,
    BACKING_OFF: _backing_off,
}

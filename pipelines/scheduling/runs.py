"""A run of a schedule, and its states.

waiting → submitting → running → succeeded
             ↑            ├────→ backing off (then submitting again, the next attempt) or failed
             └────────────┘
                          ├────→ stopping → timed out
                          └────→ stopped (by hand)
waiting → coalesced (a later slot came), missed (too late), cancelled (paused or removed)
"""

from __future__ import annotations

import dataclasses

from pipelines.scheduling.definition import Schedule

WAITING, SUBMITTING, RUNNING, STOPPING, BACKING_OFF = "waiting", "submitting", "running", "stopping", "backing off"
SUCCEEDED, FAILED, TIMED_OUT, STOPPED = "succeeded", "failed", "timed out", "stopped"
COALESCED, MISSED, CANCELLED = "coalesced", "missed", "cancelled"

ACTIVE = (SUBMITTING, RUNNING, STOPPING, BACKING_OFF)
"""One run of an exclusive key at a time is in one of these."""
OPEN = (WAITING, *ACTIVE)
"""Not over yet."""
UNSUCCESSFUL = (FAILED, TIMED_OUT)
"""States in which the failure hook is run."""

MANUAL = "now-"
"""Prefix of the slot names of runs that were started by hand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A slot of a schedule and its outcome; times are seconds since 1970."""

    id: int
    slot: str
    """:func:`~pipelines.scheduling.cron.slot_name`, or ``now-…`` for a run started by hand."""
    job: Schedule
    """The schedule as it was when the slot came: a later change concerns later slots."""
    state: str
    attempt: int = 0
    """Counted from 1 with the first submission."""
    submission_id: str = ""
    """Submission id of the latest attempt."""
    reason: str = ""
    claimed_at: float
    """When the slot was recorded."""
    started_at: float | None = None
    """When the first attempt began."""
    next_at: float | None = None
    """When the next attempt begins, where there is one."""
    ended_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When it is stopped."""
        if self.job.limit is None or self.started_at is None:
            return None
        return self.started_at + self.job.limit

    @property
    def seconds(self) -> float | None:
        """From the first attempt to the end."""
        return None if self.started_at is None or self.ended_at is None else self.ended_at - self.started_at

    def submission(self, attempt: int) -> str:
        """The submission id of an attempt: the same from every process, as Ray accepts each only once."""
        return f"{self.job.name}-{self.slot}" + (f"-retry{attempt - 1}" if attempt > 1 else "")

"""What is known of one run of a schedule, and the states that it goes through.

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
"""What the failure hook is told of."""

MANUAL = "now-"
"""How the name of a slot begins that no cron expression asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A slot of a schedule and what became of it; times are seconds since 1970."""

    id: int
    slot: str
    """:func:`~pipelines.scheduling.cron.slot_name`, or ``now-…`` for one asked for by hand."""
    job: Schedule
    """The schedule as it was when the slot came: a later change concerns later slots."""
    state: str
    attempt: int = 0
    """Counted from 1 with the first submission."""
    submission_id: str = ""
    """Of the latest attempt."""
    reason: str = ""
    claimed_at: float
    """When the slot was noted."""
    started_at: float | None = None
    """When the first attempt began."""
    next_at: float | None = None
    """When the next attempt begins, where one is waited for."""
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
        """The submission id of an attempt: the same from whoever submits it, and Ray takes each only once."""
        return f"{self.job.name}-{self.slot}" + (f"-retry{attempt - 1}" if attempt > 1 else "")

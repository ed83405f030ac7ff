"""A trial's attempts: each time that a process takes the trial up, and what became of it.

Everything that a trial cost is in them, exactly once: also epochs that were trained again because a crash came before
the next checkpoint. What is known of an attempt:

- **Epochs, images and seconds** of the epochs that it finished and reported to the driver: measured by the process
  itself. Whatever happens afterwards, they do not change.
- **The rest**: what it did after the last of these. A process that dies takes its figures along, so the images of an
  unfinished epoch are never known. Its seconds are, by the driver's clock, from the last finished epoch (or the start)
  until the driver noticed the end: an upper bound, in which the process also started or wrote a checkpoint. Where the
  driver itself was killed they are not known (``None``), nor is what was reported to it in its last second
  (:data:`tune.records.ledger.WRITE_SECONDS`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Literal

AttemptEnd = Literal["", "done", "stopped", "failed", "lost", "put aside"]
"""How an attempt ended: with the trial (``done``, ``stopped``, ``failed``), by the death of its process or driver or
for want of a card's memory (``lost``), or because the search paused before the trial ended (``put aside``). Empty: it
has not ended.
"""

OF_STATUS: dict[str, AttemptEnd] = {"complete": "done", "stopped": "stopped", "failed": "failed"}
"""How the last attempt of a trial ended, by the trial's status."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process (or group of workers) that took a trial up."""

    started_ms: int
    """Start, in milliseconds since 1970."""
    cpus: float
    """Cores that it held, of all its workers together."""
    gpus: float
    """GPUs likewise; a fraction where several trials share one."""
    first_epoch: int | None = None
    """The first epoch that it finished; before a checkpoint's epochs are trained again, not the trial's newest."""
    epochs: int = 0
    """Epochs that it finished."""
    images: int = 0
    """Training images of these epochs."""
    seconds: float = 0.0
    """Seconds of training and validation of these epochs, by the process's own clock."""
    rest_seconds: float | None = 0.0
    """Seconds that it held its devices after the last of these epochs, by the driver's clock. None: not known."""
    ended: AttemptEnd = ""
    """How it ended."""
    ended_ms: int | None = None
    """End, in milliseconds since 1970; None where no driver noticed it."""

    @property
    def held_seconds(self) -> float:
        """Seconds that are known: of the finished epochs, and the rest."""
        return self.seconds + (self.rest_seconds or 0.0)


Attempts = tuple[Attempt, ...]


def begin_attempt(attempts: Attempts, attempt: Attempt) -> Attempts:
    """Add the attempt of a process that takes the trial up. An earlier attempt without a reported end was lost."""
    return (*end_attempt(attempts, "lost", None), attempt)


def update_attempt(attempts: Attempts, result: Mapping[str, Any]) -> Attempts:
    """Update the running attempt by a result of :class:`tune.run.trial.TrialTraining`.

    The figures are sums since the attempt began, so the same result twice changes nothing.
    """
    if not attempts or "attempt_epochs" not in result:
        return attempts
    figures = {name: result[f"attempt_{name}"] for name in ("first_epoch", "epochs", "images", "seconds")}
    return (*attempts[:-1], dataclasses.replace(attempts[-1], **figures))


def end_attempt(attempts: Attempts, how: AttemptEnd, rest_seconds: float | None = 0.0) -> Attempts:
    """End the running attempt, where there is one: now, or (``rest_seconds`` None) at an unknown time."""
    if not attempts or attempts[-1].ended:
        return attempts
    moment = None if rest_seconds is None else now_ms()
    last = dataclasses.replace(attempts[-1], ended=how, rest_seconds=rest_seconds, ended_ms=moment)
    return (*attempts[:-1], last)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000

"""Decides when all workers write a checkpoint in mid-epoch: by the clock, and before a machine is preempted."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fvae.workers import Workers

LOOK_SECONDS = 10.0
"""How often, at least, the workers ask whether one of their machines is about to go."""


class CheckpointClock:
    """Says after which steps a checkpoint is due: every so many seconds, and when a machine is about to go.

    Worker 0 decides, by its clock. So that the others need not ask after every step, its answer also says at which
    step they all ask again.
    """

    def __init__(
        self, workers: Workers, device: torch.device, seconds: float, preempted: Callable[[], bool] = lambda: False
    ) -> None:
        """
        Args:
            workers: all of them call :meth:`due` after the same steps.
            device: where their process group's tensors lie.
            seconds: from one checkpoint to the next.
            preempted: whether a machine is about to go; called by every worker at the same steps.
        """
        self.workers, self.device, self.seconds, self.preempted = workers, device, seconds, preempted
        self._saved = self._asked = time.monotonic()
        self._asked_step = self._ask_at = -1

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due now, ``step`` steps being done: the same answer on every worker."""
        if step < self._ask_at:
            return False
        going = self.preempted()
        now = time.monotonic()
        due = now - self._saved >= self.seconds or going
        if due:
            self._saved = now
        pace = (now - self._asked) / max(1, step - self._asked_step) if self._asked_step >= 0 else now - self._asked
        wait = min(LOOK_SECONDS, self._saved + self.seconds - now)
        answer = torch.tensor([due, step + max(1, int(wait / max(pace, 1e-6)))], device=self.device)
        self.workers.broadcast([answer])
        self._asked, self._asked_step = now, step
        due, self._ask_at = bool(answer[0]), int(answer[1])
        if due:
            self._saved = now
        return due

    def saved(self) -> None:
        """A checkpoint was made for another reason, such as the end of an epoch."""
        self._saved = time.monotonic()

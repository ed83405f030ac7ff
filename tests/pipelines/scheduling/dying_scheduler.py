"""``python -m pipelines.schedule serve`` that is killed (SIGKILL, by itself) at one step of its first run.

    dying_scheduler.py MOMENT serve --store … --address …

MOMENT: ``noted`` (the slot is in the store, nothing of it begun), ``claimed`` (the store has it as being submitted, Ray
knows nothing), ``submitted`` (Ray has it, the store does not know), ``ended`` (the job has ended, which is not noted),
``recorded`` (noted, and its failure hook not run), ``reporting`` (the hook run, and that not noted).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import schedule
from pipelines.cli import command_line
from pipelines.scheduling.ray_jobs import RayJobs
from pipelines.scheduling.runs import OPEN, SUBMITTING
from pipelines.scheduling.store import Store


def plan(moment: str, die: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    """Let the schedulers of this process call ``die`` at that moment."""
    submit, move = RayJobs.submit, Store.move

    def submitting(self: RayJobs, *arguments: Any) -> None:
        submit(self, *arguments)
        die()

    def moving(self: Store, run: Any, state: str, **changes: Any) -> Any:
        ends = state not in OPEN
        if (moment == "noted" and state == SUBMITTING) or (moment == "ended" and ends):
            die()
        moved = move(self, run, state, **changes)
        if moment == "recorded" and ends:
            die()
        return moved

    if moment == "claimed":
        patch.setattr(RayJobs, "submit", die)
    elif moment == "submitted":
        patch.setattr(RayJobs, "submit", submitting)
    elif moment == "reporting":
        patch.setattr(Store, "finish_hook", die)
    patch.setattr(Store, "move", moving)


def kill(*_arguments: Any, **_options: Any) -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    plan(sys.argv.pop(1), kill, pytest.MonkeyPatch())
    command_line.run(schedule.main, schedule.ScheduleSettings)

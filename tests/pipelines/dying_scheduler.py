"""``python -m pipelines.schedule serve`` that is killed (SIGKILL, by itself) at one step of its first run.

    dying_scheduler.py MOMENT serve --store … --address …

MOMENT: ``noted`` (the slot is in the store, nothing of it begun), ``claimed`` (the store says that it is being
submitted, Ray knows nothing), ``submitted`` (Ray has it, the store does not know), ``ended`` (the job has ended, which
is not noted), ``recorded`` (noted, and its failure hook not told), ``telling`` (the hook told, and that not noted).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from pipelines import command_line, schedule
from pipelines.scheduling import serve
from pipelines.scheduling.jobs import RayJobs
from pipelines.scheduling.runs import OPEN, SUBMITTING
from pipelines.scheduling.store import Store


def die(*_arguments: Any, **_options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plan(moment: str) -> None:
    """Let this process die there."""
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
        RayJobs.submit = die  # type: ignore[method-assign,assignment]
    elif moment == "submitted":
        RayJobs.submit = submitting  # type: ignore[method-assign]
    elif moment == "telling":
        Store.hook_told = die  # type: ignore[method-assign,assignment]
    Store.move = moving  # type: ignore[method-assign]
    assert serve.Scheduler  # the module is loaded, with what was changed


if __name__ == "__main__":
    plan(sys.argv.pop(1))
    command_line.run(schedule.main, schedule.ScheduleSettings)

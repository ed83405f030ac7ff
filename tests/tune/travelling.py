"""Processes of trials as the tests need them; a module of its own, because Ray's processes import it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune import trial_files, trial_workers
from tune.trial import TrialProcess
from tune.trial_workers import TrialCoordinator, TrialWorker

SECONDS = 60.0


def wait_until(happened: Callable[[], bool]) -> None:
    """Look until it is so, for a minute at most."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class HastyWorker(TrialWorker):
    """Writes a checkpoint before every epoch."""

    def __init__(self, *arguments: Any) -> None:
        trial_files.CHECKPOINT_SECONDS, trial_files.CHECKPOINT_SHARE = 0.0, 1e9
        super().__init__(*arguments)


class HastyCoordinator(TrialCoordinator):
    """Has hasty workers."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        trial_workers.TrialWorker = HastyWorker  # type: ignore[misc]
        super().setup(*arguments, **options)


class MeetingProcess(TrialProcess):
    """Trains once four trials have begun."""

    def step(self) -> dict[str, Any]:
        trial = Path(self.training.storage.local_path)  # type: ignore[arg-type]
        (trial.parent / f"{trial.name}.begun").touch()
        wait_until(lambda: len(list(trial.parent.glob("*.begun"))) >= 4)
        return super().step()

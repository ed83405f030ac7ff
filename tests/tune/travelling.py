"""Processes of trials as the tests need them: Ray's processes import this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.s3 import set_constants
from tune.run import trial_checkpoint
from tune.run import trial_workers as trial_workers_module
from tune.run.gpu_shares import assigned_share
from tune.run.trial import TrialProcess
from tune.run.trial_workers import TrialCoordinator, TrialWorker

SECONDS = 300.0
WORKER_KILLED = ("0001-fvae", 3)
"""The trial, and after which epoch."""
IMPATIENT = {
    "READ_TIMEOUT": 2.0,
    "FIRST_WAIT": 0.05,
    "ATTEMPTS": 4,
    "PATIENCE": 3.0,
    "LONGEST_WAIT": 1.0,
}
"""Constants of requests to S3 with which a store is given up after seconds: see ``tests.s3.set_constants``."""


def wait_until(happened: Callable[[], bool]) -> None:
    """Look until it is so, for minutes at most."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hasten_checkpoints() -> None:
    """From now on trials in this process write a checkpoint before every epoch."""
    trial_checkpoint.CHECKPOINT_SECONDS, trial_checkpoint.CHECKPOINT_SHARE = 0.0, 1e9


class MortalWorker(TrialWorker):
    """Writes a checkpoint before every epoch; the second of a trial's is killed in the midst of an epoch, once."""

    def __init__(self, *arguments: Any) -> None:
        hasten_checkpoints()
        super().__init__(*arguments)

    def step(self) -> dict[str, Any]:
        """One epoch, or a part of it: the other worker then waits for this one's gradients."""
        assert self.training is not None
        trial, trainer = Path(self.training.storage.local_path), self.training.trainer  # type: ignore[arg-type]
        killed = trial.parents[1] / "killed"
        if self.workers.rank == 1 and (trial.name, trainer.epoch) == WORKER_KILLED and not killed.exists():
            killed.touch()
            trainer.train_step = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        return super().step()


class MortalCoordinator(TrialCoordinator):
    """Has mortal workers."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        trial_workers_module.TrialWorker = MortalWorker  # type: ignore[misc]
        super().setup(*arguments, **options)


def trial_workers() -> set[int]:
    """Process ids of the workers of trials that descend from this process."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it ended
            continue
        parents[int(folder.name)] = int(status[1]) if status[0] != "Z" else 0

    def descends(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    names = ("ray::TrialWorker", "ray::MortalWorker")
    return {pid for pid, title in titles.items() if title.startswith(names) and descends(pid)}


class MeetingProcess(TrialProcess):
    """Trains once two trials have begun."""

    def step(self) -> dict[str, Any]:
        """One epoch."""
        trial = Path(self.training.storage.local_path)  # type: ignore[arg-type]
        (trial.parent / f"{trial.name}.begun").touch()
        wait_until(lambda: len(list(trial.parent.glob("*.begun"))) >= 2)
        return super().step()


class LargeProcess(TrialProcess):
    """Trains on a whole card alone."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        super().setup(*arguments, **options)
        self.whole = assigned_share() == 1
        self.training.share = assigned_share()

    def step(self) -> dict[str, Any]:
        """One epoch, if there is the memory."""
        if not self.whole:
            self.training._make_trainer = out_of_memory  # type: ignore[assignment]
        return super().step()


def out_of_memory() -> None:
    """What a card does that is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class HastyProcess(TrialProcess):
    """Writes a checkpoint before every epoch."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        hasten_checkpoints()
        super().setup(*arguments, **options)


class ImpatientProcess(HastyProcess):
    """Besides, gives a store up that does not answer for seconds."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        set_constants(IMPATIENT)
        super().setup(*arguments, **options)


class MortalProcess(HastyProcess):
    """The second trial loses its process within its second epoch, once."""

    def step(self) -> dict[str, Any]:
        """One epoch, which is not reported where the process ends with it."""
        result = super().step()
        trial = Path(self.training.storage.local_path)  # type: ignore[arg-type]
        exited = trial.parents[2] / "exited"
        if trial.name.startswith("0001-") and result["epoch"] == 2 and not exited.exists():
            exited.touch()
            os._exit(1)
        return result

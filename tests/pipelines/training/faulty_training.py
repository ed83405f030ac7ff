"""``python -m pipelines.train`` that loses something at set moments: as a script, in a fork, or in the test's process.

    faulty_training.py FOLDER '[["step:1", "worker"], ["evaluation:2", "node"]]' --workers 2 …

Moments of the workers: ``step:N`` (N steps are done), ``write:N`` (the first checkpoint of N steps or more is half
written, or not yet uploaded), ``evaluation:N`` (in the middle of epoch N's validation), ``end`` (all is trained, the
model is not yet kept). Of the driver: ``result`` (before ``result.json`` is written) and ``told`` (after that, before
MLflow has it). What is lost, by SIGKILL: ``worker``, ``node`` (with all its processes), ``driver``; ``outside`` makes
FOLDER/MOMENT and waits for FOLDER/MOMENT.done, so that the test may end something of its own just then. Every fault
happens once.
FOLDER/log tells at which step workers began and faults came.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pipelines.training.ray_environment  # noqa: F401
from pipelines import train as train_command
from pipelines.cli import command_line
from pipelines.storage import open_storage
from pipelines.training import run as training_run
from pipelines.training import worker as train_worker
from pipelines.training.checkpoints import CHECKPOINTS, CheckpointStore
from pipelines.training.settings import TrainSettings
from tests.waiting import DEADLINE, until

STEPS = 10
"""Of an epoch."""
Plan = Sequence[Sequence[str]]
"""Moments, and what is lost at each."""


class Faults:
    """What is to happen in this process; travels to workers with the training function."""

    def __init__(self, folder: Path, plan: Plan, driver: int) -> None:
        self.folder, self.plan, self.driver = folder, plan, driver
        self.losing = False

    def reach(self, kind: str, number: int, step: int, before: Callable[[], None] = lambda: None) -> None:
        """A moment of this process: the loss where one is planned and has not happened yet, after ``before()``."""
        from fvae.workers import Workers

        workers = Workers.of_process_group()
        if workers.rank != (workers.count - 1 if kind in ("step", "evaluation") else 0):
            return
        if self.losing:  # in another thread: the end of this process, or of its driver, is near
            time.sleep(DEADLINE)
        for moment, loss in self.plan:
            planned, _, at = moment.partition(":")
            if planned != kind or number < int(at or 0):
                continue
            if (self.folder / moment).exists():
                continue
            if loss != "outside":
                before()
            (self.folder / moment).touch(exist_ok=False)
            self.say({"fault": moment, "step": step})
            self.lose(moment, loss)

    def lose(self, moment: str, loss: str) -> None:
        """End what is to be lost."""
        if loss == "outside":
            until((self.folder / f"{moment}.done").exists, f"{moment}.done")
            return
        self.losing = True
        doomed = [os.getpid()]
        if loss == "driver":
            doomed = [self.driver]
        if loss == "node":
            raylet = os.getppid()
            children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
            doomed = [raylet, *(int(child) for child in children if int(child) != os.getpid()), os.getpid()]
        for process in doomed:
            os.kill(process, signal.SIGKILL)
        time.sleep(DEADLINE)  # what is left of this worker does nothing more, however long Ray takes to end it

    def say(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        with (self.folder / "log").open("a") as log:
            log.write(json.dumps(line) + "\n")


def faulty(faults: Faults) -> Callable[[Any, Any], Any]:
    """The training function with moments in it."""

    def train(task: Any, events: Any) -> Any:
        return _train(task, events, faults)

    return train


def _train(task: Any, events: Any, faults: Faults) -> Any:
    from fvae import train as fvae_train
    from fvae import training_state
    from fvae.files import written_whole
    from fvae.train import Trainer
    from pipelines.training import checkpoint_clock

    load_state, train_step, evaluate = Trainer.load_state, Trainer.train_step, fvae_train.evaluate
    write_tensors, keep_model = training_state.write_tensors, train_worker.keep_model
    store = CheckpointStore(open_storage(task.storage).child(CHECKPOINTS), 1)
    restored = [0]

    def epoch_is_kept(step: int) -> None:
        """Checkpoints are written in the background: what is lost before that is no interval but two."""
        if step > STEPS:
            until(lambda: any(each.step >= step - STEPS for each in store.all()), f"a checkpoint since {step - STEPS}")

    def loading(self: Any, state: Any, where: str = "") -> None:
        load_state(self, state, where)
        restored[0] = self.step

    def stepping(self: Any) -> None:
        if restored[0] is not None:
            faults.say({"begin": restored[0], "rank": self.workers.rank, "workers": self.workers.count})
            restored[0] = None  # type: ignore[call-overload]
        train_step(self)
        faults.reach("step", self.step, self.step, lambda: epoch_is_kept(self.step))

    def evaluating(model: Any, images: Any, **options: Any) -> Any:
        step = current[0].step
        epoch = step // current[0].steps_per_epoch

        def advance(count: int) -> None:
            faults.reach("evaluation", epoch, step, lambda: epoch_is_kept(step))

        return evaluate(model, images, **options, advance=advance)

    def writing(path: Path, tensors: Any, metadata: dict[str, Any]) -> None:
        write_tensors(path, tensors, metadata)
        content = path.read_bytes()
        if task.storage.startswith("s3://"):  # whole here, and not yet in the store
            faults.reach("write", metadata["step"], metadata["step"])
            return
        path.unlink()
        with written_whole(path) as file:
            file.write(content[: len(content) // 2])
            file.flush()
            faults.reach("write", metadata["step"], metadata["step"])
            file.write(content[len(content) // 2 :])

    def keeping(trainer: Any, storage: Any) -> None:
        faults.reach("end", 0, trainer.step)
        keep_model(trainer, storage)

    current: list[Any] = []
    make = Trainer.__init__

    def making(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        current[:] = [self]

    Trainer.__init__ = making  # type: ignore[method-assign]
    Trainer.load_state, Trainer.train_step = loading, stepping  # type: ignore[method-assign]
    fvae_train.evaluate, training_state.write_tensors = evaluating, writing  # type: ignore[assignment]
    train_worker.keep_model = keeping  # type: ignore[assignment]
    checkpoint_clock.LOOK_SECONDS = 0.5
    return THEIRS(task, events)


THEIRS = train_worker.train
"""The product's training function."""


def run(faults: Faults, options: Sequence[str]) -> None:
    """The command with these faults, in a process of its own."""
    write_result = training_run.write_result

    def writing(storage: Any, result: Any) -> None:
        steps = len(result.history) * STEPS
        faults.reach("result", 0, steps)
        write_result(storage, result)
        faults.reach("told", 0, steps)

    training_run.write_result = writing  # type: ignore[assignment]
    train_worker.train = faulty(faults)  # type: ignore[assignment]
    sys.argv = ["train.py", *options]
    command_line.run(train_command.main, TrainSettings)


if __name__ == "__main__":
    from tests.pipelines.training import faulty_training  # by this name the workers find it too

    faulty_training.run(faulty_training.Faults(Path(sys.argv[1]), json.loads(sys.argv[2]), os.getpid()), sys.argv[3:])

"""``python tune/search.py`` that counts what happens in all its processes and loses one of them at set numbers.

    killed_search.py FOLDER '[[17, "driver"], [40, "process"], [81, "node"]]' --trials 6 …

FOLDER/events has a line for each thing that happened, in every session of the search, whichever process it was in:
what, and in which trial. A loss comes with the N-th line, or with the first after it in a process that can bring it
about. By SIGKILL are lost: the ``driver``; the ``process`` of the trial; a ``node``: its raylet and every process on
it. Each comes once, and leaves FOLDER/lost-N. Run as a script by the tests; one trial at a time, and nothing by the
clock (a checkpoint, and with it the trial's record, is written after every other epoch), so that the order is always
the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pipelines.training.ray_environment  # noqa: F401
from pipelines.cli import command_line
from tune import search
from tune.records import ledger as tune_ledger
from tune.records.ledger import Ledger
from tune.run import engine
from tune.run.trial import TrialProcess
from tune.settings import SearchSettings


class Events:
    """What has happened, and what is to be lost; travels to Ray's processes with the script's own code."""

    def __init__(self, folder: Path, losses: list[tuple[int, str]], driver: int) -> None:
        self.folder, self.losses, self.driver = folder, losses, driver
        self.losing = False

    def happen(self, what: str, trial: str) -> None:
        """One more event, and the loss that is due with it."""
        if self.losing:
            return
        with (self.folder / "events").open("a+") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.write(f"{what} {trial}\n")
            log.flush()
            log.seek(0)
            count = len(log.readlines())
        for number, loss in self.losses:
            lost = self.folder / f"lost-{number}"
            if number <= count and not lost.exists() and (loss == "driver" or os.getpid() != self.driver):
                self.losing = True
                lost.write_text(f"{loss}: {what} {trial}")
                self.lose(loss)

    def lose(self, loss: str) -> None:
        for process in {"driver": self.only_driver, "process": self.only_this, "node": self.node}[loss]():
            os.kill(process, signal.SIGKILL)
        time.sleep(600)  # without a driver a trial's process does nothing more, however long Ray takes to end it

    def only_driver(self) -> list[int]:
        return [self.driver]

    def only_this(self) -> list[int]:
        return [os.getpid()]

    def node(self) -> list[int]:
        """The processes of the node of this trial's process, this one last."""
        raylet = os.getppid()
        children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        return [raylet, *(int(child) for child in children if int(child) != os.getpid()), os.getpid()]


def watch_ledger(events: Events) -> None:
    """In the driver: before and after each record is written. Epochs without a checkpoint wait for the next one."""
    tune_ledger.WRITE_SECONDS = 1e9
    put = Ledger.put

    def putting(self: Ledger, record: Any) -> None:
        events.happen("write", record.id)
        put(self, record)
        events.happen(f"written-{record.status}", record.id)

    Ledger.put = putting  # type: ignore[method-assign]


def watch_training(events: Events, trial: str) -> None:
    """In a trial's process: after each step, in a validation, in the middle of a checkpoint, around the kept model."""
    from fvae import train as fvae_train
    from fvae import training_state
    from fvae.files import written_whole
    from tune.run import trial as tune_trial
    from tune.run import trial_checkpoint

    watched = globals().setdefault("watched", {})
    watched["trial"] = trial
    if len(watched) > 1:
        return  # the process is reused: its methods are counted already
    train_step, evaluate = fvae_train.Trainer.train_step, fvae_train.evaluate
    write_tensors, keep_model = training_state.write_tensors, tune_trial.keep_model
    watched["methods"] = (train_step, evaluate, write_tensors, keep_model)

    def stepping(self: Any) -> None:
        train_step(self)
        events.happen("step", watched["trial"])

    def evaluating(*arguments: Any, **options: Any) -> Any:
        events.happen("validation", watched["trial"])
        return evaluate(*arguments, **options)

    def writing(path: Path, tensors: Any, metadata: dict[str, Any]) -> None:
        write_tensors(path.with_suffix(".other"), tensors, metadata)
        content = path.with_suffix(".other").read_bytes()
        path.with_suffix(".other").unlink()
        with written_whole(path) as file:
            file.write(content[: len(content) // 2])
            file.flush()
            events.happen("checkpoint", watched["trial"])
            file.write(content[len(content) // 2 :])

    def keeping(trainer: Any, storage: Any) -> None:
        events.happen("model", watched["trial"])
        keep_model(trainer, storage)
        events.happen("kept", watched["trial"])

    def due(self: Any, trainer: Any) -> bool:
        return trainer.epoch % 2 == 0 and not self.holds(trainer)

    fvae_train.Trainer.train_step = stepping  # type: ignore[method-assign]
    fvae_train.evaluate, training_state.write_tensors = evaluating, writing  # type: ignore[assignment]
    tune_trial.keep_model = keeping  # type: ignore[assignment]
    trial_checkpoint.Checkpoints.due = due  # type: ignore[method-assign]


class WatchedTrialProcess(TrialProcess):
    """Travels to Ray's processes whole, as everything of a script's own does, so it can change their modules too."""

    def setup(self, config: dict[str, Any], **options: Any) -> None:
        watch_training(plan, config["id"])
        super().setup(config, **options)


if __name__ == "__main__":
    plan = Events(Path(sys.argv[1]), [(number, loss) for number, loss in json.loads(sys.argv[2])], os.getpid())
    watch_ledger(plan)
    engine.TrialProcess = WatchedTrialProcess  # type: ignore[misc]
    sys.argv = ["search.py", *sys.argv[3:]]
    command_line.run(search.main, SearchSettings)

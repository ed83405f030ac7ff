"""Runs the trials on Ray: Tune drives, our searcher proposes, our scheduler stops, the ledger remembers."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.experiment import Trial

from fvae.config import ConfigError
from fvae.data.images import Dataset
from pipelines.data.datasets import memory_bytes
from pipelines.storage import Storage, StorageError
from pipelines.training import main_memory
from pipelines.training.autoscaler import await_machines
from pipelines.training.ray_session import ray_session
from pipelines.training.worker_resources import workers_on
from pipelines.training.worker_warnings import raise_trouble
from tune.propose.expected_front import Standings
from tune.records.ledger import Ledger, TrialRecord
from tune.run.callbacks import BudgetStopper
from tune.run.gpu_shares import GpuShares, PeakMemory, smallest_card_bytes
from tune.run.placement import placement, trials_at_once
from tune.run.test_scores import read_test_split
from tune.run.trial import TrialProcess
from tune.run.trial_workers import TrialCoordinator
from tune.run.tune_scheduler import FrontScheduler
from tune.run.tune_searcher import FrontSearcher
from tune.settings import SearchSettings

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

RETRIES = 2
"""How often a trial that crashed starts again from its checkpoint before it has failed."""


@dataclasses.dataclass(frozen=True)
class Room:
    """What there is for the trials of a search, and what each of them gets of it."""

    settings: SearchSettings
    trials_at_once: int | None
    """At most; None: as many as Ray finds room for."""
    nodes: Sequence[Mapping[str, float]]
    """The resources of each node."""
    gpu_shares: GpuShares | None
    """With ``--gpus-per-trial auto``."""

    def gpus(self, model: dict[str, Any], train: dict[str, Any]) -> float:
        """GPUs of each worker of a trial, by its ``ModelConfig`` and ``TrainConfig`` as dictionaries."""
        if self.gpu_shares:
            return self.gpu_shares.share(model, train)
        return float(self.settings.gpus_per_trial)

    def expected_at_once(self) -> int:
        """How many trials will probably train side by side; GPUs that are shared by need count as one a trial."""
        if self.trials_at_once is not None and self.settings.workers_per_trial > 1:
            return self.trials_at_once
        gpus = 1.0 if self.gpu_shares else float(self.settings.gpus_per_trial)
        room = sum(workers_on(node, self.settings.cpus_per_trial, gpus) for node in self.nodes)
        return max(1, min(room, self.trials_at_once or room))


@contextmanager
def search_session(settings: SearchSettings, dataset: Dataset) -> Iterator[Room]:
    """A Ray in which there is room for a trial. Raises ``ConfigError`` where no trial could ever run."""
    needed = {"CPU": ("--cpus-per-trial", float(settings.cpus_per_trial))}
    if settings.gpus_per_trial != "auto":
        needed["GPU"] = ("--gpus-per-trial", settings.gpus_per_trial)
    with ray_session(dataset.held_bytes(), needed):
        if "RAY_ADDRESS" in os.environ:
            await_room(settings)
        nodes = alive_nodes()
        resources = [node["Resources"] for node in nodes]
        at_once, shares = settings.concurrent, None
        if settings.workers_per_trial > 1:
            fitting = trials_at_once(settings, resources)
            at_once = min(fitting, at_once or fitting)
        if settings.gpus_per_trial == "auto":
            shares = GpuShares(smallest_card_bytes(nodes), dataset.held_bytes())
        yield Room(settings, at_once, resources, shares)


def await_room(settings: SearchSettings) -> None:
    """Wait for the machines that a cluster's autoscaler brings for one trial, or for ``--concurrent`` of them."""
    gpus = 1.0 if settings.gpus_per_trial == "auto" else settings.gpus_per_trial
    bundle = {"CPU": float(settings.cpus_per_trial)} | ({"GPU": gpus} if gpus else {})
    workers = settings.workers_per_trial * (settings.concurrent or 1)

    def enough() -> bool:
        return sum(workers_on(node["Resources"], settings.cpus_per_trial, gpus) for node in alive_nodes()) >= workers

    await_machines([bundle] * workers, enough)


def alive_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def run_trials(
    room: Room,
    dataset: Dataset,
    standings: Standings,
    searcher: FrontSearcher,
    callbacks: Sequence[tune.Callback],
    stopper: BudgetStopper,
) -> bool:
    """Train until the searcher has no more trials, or the budget is used up. False where Ctrl-C ended it before."""
    ledger = standings.ledger
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are in the ledger, a line each
    settings = room.settings
    peaks = [PeakMemory(room.gpu_shares)] if room.gpu_shares else []
    searcher.trials_may_return = room.gpu_shares is not None
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with scratch_folder(ledger.root) as scratch:
            tune.Tuner(
                trainable(settings, dataset),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=PlacingScheduler(standings, room),
                    num_samples=-1,
                    max_concurrent_trials=room.trials_at_once,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=settings.run_name(dataset.name),
                    storage_path=str(scratch),
                    callbacks=[*callbacks, *peaks],
                    stop=stopper,
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    verbose=0,
                ),
            ).fit()
    except tune.TuneError as error:
        # What a callback or the searcher raised (a full disk, say) comes wrapped in Tune's traceback.
        if isinstance(error.__context__, OSError | ConfigError):
            raise error.__context__ from None
        raise
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own handler, which only it listens to
    return stopper.why is not None or (searcher.ended is not None and not ledger.with_status("running"))


def trainable(settings: SearchSettings, dataset: Dataset) -> type[tune.Trainable]:
    """What Tune runs a trial in; images in memory go to its processes through Ray's object store."""
    images = {split: dataset.images(split) for split in ("train", "val")}
    told = {"device": device(settings), "threads": settings.cpus_per_trial}
    if settings.workers_per_trial == 1:
        return tune.with_parameters(TrialProcess, images=images, shares_grow=settings.gpus_per_trial == "auto", **told)
    shared = {split: ray.put(each) for split, each in images.items()}
    return tune.with_parameters(TrialCoordinator, images=shared, **told)


class PlacingScheduler(FrontScheduler):
    """Gives each trial its resources when it comes, by what is known of the GPUs' memory by then.

    Not through ``tune.with_resources``: Tune asks a copy of what it gets there, which learns nothing.
    """

    def __init__(self, standings: Standings, room: Room) -> None:
        super().__init__(standings)
        self.room = room
        self._placed: set[str] = set()

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """A new trial, or one to try again: it keeps its resources, by which Tune has it in its books."""
        if trial.trial_id not in self._placed:
            self._placed.add(trial.trial_id)
            gpus = self.room.gpus(trial.config["model"], trial.config["train"])
            trial.update_resources(placement(self.room.settings, gpus))
        super().on_trial_add(tune_controller, trial)


@contextmanager
def scratch_folder(run: Storage) -> Iterator[Path]:
    """A local folder for Tune's own files: the ledger holds everything, so they go when it ends."""
    if run.local_path is None:
        with tempfile.TemporaryDirectory(prefix="fvae-tune-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    scratch = run.local_path / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_tests(
    room: Room, dataset: Dataset, ledger: Ledger, ids: Sequence[str], warn: Callable[[str], None]
) -> Iterator[TrialRecord]:
    """Read the test split for each model of ``ids``, side by side; yields each record when it is written.

    A model that cannot be measured fails its trial, with the reason: the fronts may then be others. A storage that
    fails raises ``OSError`` or ``ConfigError``; ``warn`` gets a line for each retry.
    """
    images = ray.put(dataset.images("test"))
    settings = room.settings
    waiting = list(reversed(ids))
    pending: dict[ray.ObjectRef, str] = {}
    while waiting or pending:
        while waiting and len(pending) < (settings.concurrent or len(ids)):
            record = ledger.records[waiting.pop()]
            gpus = room.gpus(record.config, record.train)
            read = ray.remote(num_cpus=settings.cpus_per_trial, num_gpus=gpus)(read_test_split)
            arguments = (images, settings.seed, settings.cpus_per_trial, device(settings))
            pending[read.remote(ledger.trial_storage(record.id).uri, *arguments)] = record.id
        (done,), _ = ray.wait(list(pending))
        record_id = pending.pop(done)
        try:
            result: dict[str, Any] = ray.get(done)
        except RayError as error:
            raise StorageError(f"{record_id}: its test split was not read: {_why_lost(error)}") from error
        for line in result.get("warnings", ()):
            warn(f"{record_id}: {line}")
        raise_trouble(result)
        failed = "failure" in result
        outcome = {"status": "failed", "reason": result["failure"]} if failed else {"test": result["test"]}
        yield ledger.update(record_id, **outcome)


def _why_lost(error: RayError) -> str:
    """One line for a reading that failed or whose process was ended, and what would do."""
    if main_memory.ran_out(f"{type(error).__name__} {error}"):
        room = None if "RAY_ADDRESS" in os.environ else memory_bytes()  # it may have run on another machine
        in_use = main_memory.was_in_use(room)
        return f"out of memory: {in_use}; the same command with --concurrent 1 reads one by one"
    if isinstance(error, RayTaskError):
        said = " ".join(str(error.cause).split())[:200]
        return f"{type(error.cause).__name__}: {said}; the same command tries it again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its process was lost ({(lines or [type(error).__name__])[0][:200]}); the same command goes on"


def device(settings: SearchSettings) -> str:
    """Where trials train."""
    return "cuda" if settings.gpus_per_trial else "cpu"

"""Runs the trials on Ray: Tune drives, our searcher proposes, our scheduler stops, the ledger remembers."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from fvae.config import ConfigError
from fvae.data import Dataset
from pipelines.ray_session import ray_session
from pipelines.storage import Storage
from pipelines.troubles import raise_trouble
from tune.ledger import Ledger, TrialRecord
from tune.scheduler import FrontScheduler
from tune.searcher import FrontSearcher
from tune.settings import SearchSettings
from tune.trial import TrialProcess, read_test_split

RETRIES = 2
"""How often a trial that crashed starts again from its checkpoint before it has failed."""


def search_session(settings: SearchSettings, dataset: Dataset) -> AbstractContextManager[None]:
    """A Ray in which there is room for a trial. Raises ``ConfigError`` where no node could ever run one."""
    needed = {
        "CPU": ("--cpus-per-trial", settings.cpus_per_trial),
        "GPU": ("--gpus-per-trial", settings.gpus_per_trial),
    }
    return ray_session(dataset.held_bytes(), needed)


def run_trials(
    settings: SearchSettings,
    dataset: Dataset,
    ledger: Ledger,
    searcher: FrontSearcher,
    callbacks: Sequence[tune.Callback],
) -> bool:
    """Train until the searcher has no more trials. False where Ctrl-C ended it before."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are in the ledger, a line each
    images = {split: dataset.images(split) for split in ("train", "val")}
    process = tune.with_parameters(
        TrialProcess, images=images, device=device(settings), threads=settings.cpus_per_trial
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with scratch_folder(ledger.root) as scratch:
            tune.Tuner(
                tune.with_resources(process, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=FrontScheduler(ledger, settings.epochs),
                    num_samples=-1,
                    max_concurrent_trials=settings.concurrent,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=settings.run_name(dataset.name),
                    storage_path=str(scratch),
                    callbacks=list(callbacks),
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
    return len(ledger.records) >= searcher.trials and not ledger.with_status("running")


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
    settings: SearchSettings, dataset: Dataset, ledger: Ledger, ids: Sequence[str], warn: Callable[[str], None]
) -> Iterator[TrialRecord]:
    """Read the test split for each model of ``ids``, side by side; yields each record when it is written.

    A model that cannot be measured fails its trial, with the reason: the fronts may then be others. A storage that
    fails raises ``OSError`` or ``ConfigError``; ``warn`` gets a line for each retry.
    """
    images = ray.put(dataset.images("test"))
    read = ray.remote(num_cpus=settings.cpus_per_trial, num_gpus=settings.gpus_per_trial)(read_test_split)
    pending = {
        read.remote(
            ledger.trial_storage(record_id).uri, images, settings.seed, settings.cpus_per_trial, device(settings)
        ): record_id
        for record_id in ids
    }
    while pending:
        (done,), _ = ray.wait(list(pending))
        result: dict[str, Any] = ray.get(done)
        record_id = pending.pop(done)
        for line in result.get("warnings", ()):
            warn(f"{record_id}: {line}")
        raise_trouble(result)
        failed = "failure" in result
        outcome = {"status": "failed", "reason": result["failure"]} if failed else {"test": result["test"]}
        yield ledger.update(record_id, **outcome)


def device(settings: SearchSettings) -> str:
    """Where trials train."""
    return "cuda" if settings.gpus_per_trial else "cpu"

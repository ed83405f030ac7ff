"""Run the trials on Ray Tune: its searcher proposes, its scheduler stops, and the ledger keeps every result."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import tune

from fvae.config import ConfigError
from fvae.data.images import Dataset
from pipelines.storage import Storage
from tune.propose.expected_front import ExpectedFronts
from tune.run.callbacks import BudgetStopper, PeakMemory
from tune.run.resources import Resources
from tune.run.trial import TrialProcess
from tune.run.trial_workers import TrialCoordinator
from tune.run.tune_scheduler import PlacingScheduler
from tune.run.tune_searcher import FrontSearcher
from tune.settings import SearchSettings

RETRIES = 2
"""How often a trial that crashed starts again from its checkpoint before it has failed."""


def run_trials(
    resources: Resources,
    dataset: Dataset,
    expected: ExpectedFronts,
    searcher: FrontSearcher,
    callbacks: Sequence[tune.Callback],
    stopper: BudgetStopper,
) -> bool:
    """Train until the searcher has no more trials, or the budget is used up. False where Ctrl-C ended it before."""
    ledger = expected.ledger
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are in the ledger, a line each
    settings = resources.settings
    peaks = [PeakMemory(resources.gpu_shares)] if resources.gpu_shares else []
    searcher.trials_may_return = resources.gpu_shares is not None
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with scratch_folder(ledger.root) as scratch:
            tune.Tuner(
                trainable(settings, dataset),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=PlacingScheduler(expected, resources),
                    num_samples=-1,
                    max_concurrent_trials=resources.trials_at_once,
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
        # What a callback or the searcher raised, as for a full disk, comes wrapped in Tune's traceback.
        if isinstance(error.__context__, OSError | ConfigError):
            raise error.__context__ from None
        raise
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own handler, which only it listens to
    return stopper.why is not None or (searcher.ended is not None and not ledger.with_status("running"))


def trainable(settings: SearchSettings, dataset: Dataset) -> type[tune.Trainable]:
    """What Tune runs a trial in; images in memory go to its processes through Ray's object store."""
    images = {split: dataset.images(split) for split in ("train", "val")}
    options = {"device": settings.device, "threads": settings.cpus_per_trial}
    if settings.workers_per_trial == 1:
        return tune.with_parameters(
            TrialProcess, images=images, shares_grow=settings.gpus_per_trial == "auto", **options
        )
    shared = {split: ray.put(each) for split, each in images.items()}
    return tune.with_parameters(TrialCoordinator, images=shared, **options)


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

"""What :mod:`benchmarks.search.overhead` measures: so many trials of trivial work, one way, in a process of its own.

    python -m benchmarks.search.overhead_parts idle 24 FOLDER

The last line that it prints is JSON: the trials' ``seconds``. Ray's own ways are as its documentation has them, with
Ray's defaults; FOLDER takes their files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORES = 2
"""Given to Ray, whatever the machine has."""
DRIVER = "driver"
"""A resource of the functions that start a Train run, where they take no core."""


# --- ours ----------------------------------------------------------------------------------------------------


def idle(trials: int, folder: Path) -> dict[str, float]:
    """``python tune/search.py`` with trials that do nothing, two at a time.

    All else is what a search does: searcher, scheduler, placement, reused processes, images through the object store,
    a result, its record in the ledger, the live table, and the runs in MLflow, waited for at the end.
    """
    return our_search(trials, folder, idle=True)


def trained(trials: int, folder: Path) -> dict[str, float]:
    """The same with models that train for one epoch, one at a time; and their work alone, in this process."""
    measured = our_search(trials, folder, idle=False)
    return measured | {"work": the_work_alone(folder)}


def our_search(trials: int, folder: Path, idle: bool) -> dict[str, float]:
    """A search of the digits, up to where it would read the test split; ``FOLDER`` is its storage."""
    import pipelines.training.ray_environment  # noqa: F401
    from pipelines.tracking.tracker import SearchTracker
    from tune import search
    from tune.run import engine
    from tune.settings import SearchSettings

    taken = {"seconds": 0.0}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments, **options)
            taken["seconds"] += time.perf_counter() - started
            return result

        return timing

    trackers: list[SearchTracker] = []
    start, run_trials = SearchTracker.start, timed(engine.run_trials)

    def started(self: SearchTracker) -> None:
        trackers.append(self)
        start(self)

    def trials_only(*arguments: Any, **options: Any) -> bool:
        for tracker in trackers:
            tracker.flush()  # or making MLflow's database would hide what the first trials take
        run_trials(*arguments, **options)
        return False  # as after Ctrl-C: without the test split, which is no part of a trial

    engine.run_trials, SearchTracker.start = trials_only, started  # type: ignore[method-assign]
    SearchTracker.close = timed(SearchTracker.close)  # type: ignore[method-assign]  # what MLflow still lacks
    if idle:
        engine.TrialProcess = idle_process()  # type: ignore[misc]
    one_at_a_time = {} if idle else {"concurrent": 1}
    search.main(SearchSettings(trials=trials, epochs=1, storage=str(folder), **one_at_a_time))
    return taken


def idle_process() -> type:
    """A trial's process whose trials are over as soon as they have begun."""
    from tune.run.trial import TrialProcess

    class IdleProcess(TrialProcess):
        def setup(self, config: dict[str, Any], images: Any, device: str, threads: int, shares_grow: bool) -> None:
            self.number = int(config["id"].split("-")[0])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)  # type: ignore[call-arg]  # with_parameters supplies the rest
            return True

        def cleanup(self) -> None:
            """Nothing to keep."""

        def step(self) -> dict[str, Any]:
            bits = 3.0 + 1.0 / (1 + self.number)
            epoch = {"epoch": 1, "train_bpd": bits, "val_bpd": bits, "grad_norm": 1.0, "images": 1257, "seconds": 0.01}
            speed = {"images_per_second": 1.0, "sigma1": 0.1, "sigma2": 0.1, "time_ms": time.time_ns() // 1_000_000}
            attempt = {"attempt_first_epoch": 1, "attempt_epochs": 1, "attempt_images": 1257, "attempt_seconds": 0.01}
            return epoch | speed | attempt | {"best_epoch": 1, "best_val_bpd": bits, "done": True}

    return IdleProcess


def the_work_alone(folder: Path) -> float:
    """Seconds that the same trials take without a search: each trained and kept, one after another, one thread."""
    import torch

    from pipelines.data.datasets import load_dataset
    from pipelines.storage import open_storage
    from tune.records.ledger import Ledger
    from tune.run.trial import TrialTraining

    torch.set_num_threads(1)
    dataset = load_dataset("digits")
    images = {split: dataset.images(split) for split in ("train", "val")}
    records = list(Ledger(open_storage(str(folder)).child("digits")).records.values())
    with tempfile.TemporaryDirectory() as elsewhere:
        started = time.perf_counter()
        for record in records:
            storage = open_storage(elsewhere).child(record.id)
            config = {"storage": storage.uri, "model": record.config, "train": record.train, "seconds": 0.0}
            TrialTraining({"id": record.id, **config}, images, "cpu").step()
        return time.perf_counter() - started


# --- Ray's own -----------------------------------------------------------------------------------------------


def function(trials: int, folder: Path) -> dict[str, float]:
    """Tune's function trials."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"bpd": config["x"]})

    return tuned(trial, trials, folder)


def class_(trials: int, folder: Path) -> dict[str, float]:
    """Tune's class trials, each in a new process."""
    return tuned(trainable(), trials, folder)


def reused(trials: int, folder: Path) -> dict[str, float]:
    """Tune's class trials in reused processes."""
    return tuned(trainable(), trials, folder, reuse_actors=True)


def trainable() -> type:
    from ray import tune

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.x = config["x"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            return {"bpd": self.x, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing to save."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing to load."""

    return Trial


def documented(trials: int, folder: Path) -> dict[str, float]:
    """A Train run of one worker inside each function trial, one trial at a time.

    As in Ray's guide "Hyperparameter Tuning with Ray Tune". One trial takes both cores, one for the function that
    starts the Train run and one for its worker; two at a time would wait for each other's for ever.
    """
    return train_in_tune(trials, folder, takes={"CPU": 1}, at_once=1)


def documented_twice(trials: int, folder: Path) -> dict[str, float]:
    """The same, two trials at a time: the functions take no core, but a resource that is there for them."""
    return train_in_tune(trials, folder, takes={DRIVER: 1}, at_once=2)


def train_in_tune(trials: int, folder: Path, *, takes: dict[str, float], at_once: int) -> dict[str, float]:
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker(config: dict[str, Any]) -> None:
        train.report({"bpd": config["x"]})

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            worker,
            train_loop_config=config,
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(
                name=f"train-trial_id={tune.get_context().get_trial_id()}",
                storage_path=str(folder),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    return tuned(tune.with_resources(trial, takes), trials, folder, max_concurrent_trials=at_once)


def tuned(trial: Any, trials: int, folder: Path, **options: Any) -> dict[str, float]:
    """Seconds of so many trials under Tune: from ``Tuner.fit`` to its end."""
    import ray
    from ray import tune

    ray.init(address="local", num_cpus=CORES, resources={DRIVER: 2}, include_dashboard=False)
    started = time.perf_counter()
    results = tune.Tuner(
        trial,
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=trials, **options),
        run_config=tune.RunConfig(storage_path=str(folder)),
    ).fit()
    seconds = time.perf_counter() - started
    assert not results.errors and len(results) == trials, results.errors
    assert all("bpd" in result.metrics for result in results)
    ray.shutdown()
    return {"seconds": seconds}


PARTS = {part.__name__: part for part in (idle, trained, function, class_, reused, documented, documented_twice)}

if __name__ == "__main__":
    print("\n" + json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))))

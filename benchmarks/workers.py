"""One worker through Ray Train against the plain loop, and two workers on two cores against one on one.

PYTHONPATH=. python benchmarks/workers.py --output benchmarks/results/workers.txt

Every process has one torch thread. Rounds take turns within one run: the plain loop, one worker, two workers, and two
plain loops side by side, which shows what the machine itself costs. Then where a step's time goes, part by part.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipelines.training.ray_environment  # noqa: F401
from fvae import ImageDataset, ModelConfig, TrainConfig, Trainer
from fvae.data.images import Dataset
from fvae.flops import parameters_and_flops
from fvae.workers import Workers
from pipelines.data.datasets import load_dataset
from pipelines.training.events import EpochDone, Event, Events
from pipelines.training.job import JOB
from pipelines.training.ray_session import ray_session
from pipelines.training.worker import WorkerTask, train
from pipelines.training.worker_group import fetched, ray_images, run_job
from pipelines.training.worker_resources import WorkerResources

MODEL = {"family": "flow", "flow_levels": 2, "flow_depth": 4, "coupling_width": 64}
STEPS = 30
"""Steps whose parts are timed."""


def configs(dataset: Dataset, epochs: int, batch_size: int) -> tuple[ModelConfig, TrainConfig]:
    channels, height, width = dataset.shape
    images = {"channels": channels, "height": height, "width": width, "bins": dataset.bins}
    return ModelConfig(**MODEL, **images), TrainConfig(epochs=epochs, batch_size=batch_size)  # type: ignore[arg-type]


def images(options: argparse.Namespace) -> ImageDataset:
    """The data set, its training images so many times over that an epoch takes seconds: as in real training, what is
    done once an epoch (a checkpoint, for one) then weighs little."""
    dataset = load_dataset(options.dataset, "never")
    train = np.tile(dataset.images("train"), (options.times, 1, 1, 1))
    splits = {split: dataset.images(split) for split in ("val", "test")}
    return ImageDataset(name=dataset.name, bins=dataset.bins, train=train, **splits)  # type: ignore[arg-type]


def plain(options: argparse.Namespace) -> float:
    """Images/s of ``fvae``'s own loop in this process: the median of its epochs, without the first."""
    torch.set_num_threads(1)
    dataset = images(options)
    trainer = Trainer(
        *configs(dataset, options.epochs, options.batch_size), dataset.images("train"), dataset.images("val")
    )
    return median_speed([trainer.train_epoch().images_per_second for _ in range(options.epochs)])


def side_by_side(options: argparse.Namespace, processes: int) -> float:
    """Images/s of so many plain loops at once, all together."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.map(plain, [options] * processes, chunksize=1))


def through_ray(options: argparse.Namespace, workers: int) -> float:
    """Images/s of a training job with so many workers: checkpoints, events, reports and all."""
    dataset = images(options)
    model, config = configs(dataset, options.epochs, options.batch_size)
    speeds: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, EpochDone):
            speeds.append(event.metrics.images_per_second)

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, JOB).touch()  # by which workers know the driver's disk
        task = WorkerTask(
            storage=folder,
            model=model,
            train=config,
            images=ray_images(dataset, ("train", "val")),
            keep=2,
            checkpoint_seconds=600.0,
            micro_batch_size=None,
            compile=False,
            checkpoint_activations=False,
        )
        resources = WorkerResources(workers=workers)
        run_job(train, task, name="benchmark", resources=resources, max_failures=0, on_event=on_event)
    return median_speed(speeds)


def median_speed(speeds: list[float]) -> float:
    return statistics.median(speeds[1:])


@dataclasses.dataclass
class Parts:
    """What a part of the step took, in ms."""

    noise: float
    gradient: float
    exchange: float
    update: float


def time_parts(task: dict[str, Any], events: Events) -> Parts:
    """On each worker: the parts of a step, each timed by itself, all workers beginning it together."""
    workers = Workers.of_process_group()
    images = (fetched(task["images"][split]) for split in ("train", "val"))
    trainer = Trainer(*task["configs"], *images, workers=workers)
    for _ in range(5):
        trainer.train_step()
    batch = trainer._optimizer_step.global_batch
    assert batch is not None
    parallel = batch._parallel
    taken: dict[str, list[float]] = {field.name: [] for field in dataclasses.fields(Parts)}

    def timed(part: str, action: Any) -> Any:
        workers.all_reduce(torch.zeros(1))
        started = time.perf_counter()
        result = action()
        taken[part].append(1000 * (time.perf_counter() - started))
        return result

    count = trainer.config.batch_size
    for _ in range(STEPS):
        images_ = trainer._batches.share(trainer.step)
        noise = timed("noise", functools.partial(trainer.model.noise, count, trainer.generator))
        if parallel is None:
            timed("gradient", functools.partial(batch.backward, images_, noise, count))
            taken["exchange"].append(0.0)
        else:
            with parallel.no_sync():
                timed("gradient", functools.partial(batch.backward, images_, noise, count))
            trainer._optimizer_step.optimizer.zero_grad(set_to_none=True)
            timed("exchange", functools.partial(batch.backward, images_, noise, count))
            taken["exchange"][-1] -= taken["gradient"][-1]
        timed("update", functools.partial(update, trainer))
    return Parts(**{part: statistics.median(values) for part, values in taken.items()})


def update(trainer: Trainer) -> None:
    """Clipping, Adam and the average of the weights: every worker does all of it."""
    updated = trainer._optimizer_step
    updated.clip()
    updated.optimizer.step()
    updated.optimizer.zero_grad(set_to_none=True)
    torch._foreach_lerp_(updated.ema_parameters, updated.parameters, 0.01)
    trainer.step += 1


def parts(options: argparse.Namespace, workers: int) -> Parts:
    """Worker 0's."""
    dataset = images(options)
    task = {
        "configs": configs(dataset, 100, options.batch_size),
        "images": ray_images(dataset, ("train", "val")),
    }
    resources = WorkerResources(workers=workers)
    return run_job(time_parts, task, name="parts", resources=resources, max_failures=0, on_event=lambda event: None)


def main() -> None:
    """Measure and print; with --output also keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[float, float, float, float]] = []
    dataset = images(options)
    with ray_session(dataset.held_bytes(), {"CPU": ("--workers", 1.0)}):
        for _ in range(options.rounds):
            one, both = side_by_side(options, 1), side_by_side(options, 2)
            rows.append((one, through_ray(options, 1), through_ray(options, 2), both))
        split = {workers: parts(options, workers) for workers in (1, 2)}

    plain_, ray_one, ray_two, both_ = (statistics.median(column) for column in zip(*rows, strict=True))

    def ratio(first: int, second: int, factor: float = 1.0) -> str:
        values = sorted(factor * row[first] / row[second] for row in rows)
        return f"{statistics.median(values):.3f} ({values[0]:.3f}–{values[-1]:.3f})"

    model = configs(dataset, 1, options.batch_size)[0]
    lines = [
        "PYTHONPATH=. python benchmarks/workers.py",
        f"{options.dataset}: flow of {parameters_and_flops(model)[0]:,} parameters on "
        f"{model.width}×{model.height}×{model.channels}, global batch {options.batch_size}; one thread a process, "
        f"torch {torch.__version__}; medians of {options.rounds} rounds of {options.epochs - 1} epochs",
        "",
        f"{'images/s':<44}{'median':>10}",
        f"{'plain loop':<44}{plain_:>10,.0f}",
        f"{'one worker through Ray Train':<44}{ray_one:>10,.0f}   {ratio(1, 0)} of the plain loop",
        f"{'two workers through Ray Train':<44}{ray_two:>10,.0f}   {ratio(2, 1, 0.5)} of twice one (efficiency)",
        f"{'two plain loops side by side':<44}{both_:>10,.0f}   {ratio(3, 0, 0.5)} of twice one (the machine)",
        "",
        f"{'ms of a step':<44}{'1 worker':>10}{'2 workers':>10}",
    ]
    said = {
        "noise": "noise of the whole batch, drawn by each",
        "gradient": "forward and backward of the share",
        "exchange": "exchange of gradients, with waiting",
        "update": "clipping, Adam, average: done by each",
    }
    for field, what in said.items():
        one_, two_ = (getattr(split[workers], field) for workers in (1, 2))
        lines.append(f"{what:<44}{one_:>10.1f}{two_:>10.1f}")
    sums = [sum(dataclasses.astuple(split[workers])) for workers in (1, 2)]
    lines.append(f"{'sum':<44}{sums[0]:>10.1f}{sums[1]:>10.1f}")
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A table of real learning curves: models of the search's own space, each trained to the full budget on the digits.

    python -m benchmarks.search.table                  # 330 configurations, 60 epochs each: about 70 minutes on 2 cores
    python -m benchmarks.search.table --configurations 600

It goes on where it was stopped, and more configurations add to those that there are. They are drawn uniformly from the
space (Optuna's random sampler), but for twelve of each family, which are sound designs as a search begins with. Every
epoch's validation bits/dim is kept, and the processor seconds that it took (one thread), as little else of a busy
machine disturbs. ``curves.parquet`` has a row a configuration; :mod:`benchmarks.search.curves` reads it. Rows that it
has are not trained again.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track

from fvae import ConfigError, ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.config import FAMILIES
from fvae.files import write_text
from fvae.flops import parameters_and_flops
from fvae.memory import training_memory
from pipelines import command_line
from pipelines.datasets import load_dataset
from tune.space import SearchSpace, initial_designs, suggest

DESIGNS = 12
"""Of each family, from small to large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train the table's configurations, and keep every epoch."""

    configurations: int = 330
    """In all; the families' shares are equal."""
    epochs: int = 60
    """Passes over the training images."""
    seed: int = 0
    """Of the draws, and of every training."""
    processes: int = 2
    """Side by side, a thread each."""
    work: Path = Path("runs/.table")
    """One file for each trained configuration: what a stopped table goes on from."""
    output: Path = Path(__file__).with_name("curves.parquet")
    """The table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row before it is trained."""

    id: str
    family: str
    source: str
    """``design`` or ``random``."""
    suggestion: dict[str, Any]
    model: ModelConfig
    train: TrainConfig


def main(settings: Settings) -> int:
    """Train what is missing, then write the table. Returns the exit status."""
    dataset = load_dataset("digits")
    channels, height, width = dataset.shape
    images = {"channels": channels, "height": height, "width": width, "bins": dataset.bins}
    wanted = list(configurations(settings, images, SearchSpace.for_images(dataset.shape, dataset.bins)))
    settings.work.mkdir(parents=True, exist_ok=True)
    kept = kept_rows(settings, dataset.content_hash())
    missing = [each for each in wanted if each.id not in kept and not row_file(settings, each).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = [pool.submit(train_one, each, row_file(settings, each)) for each in missing]
        for done in track(as_completed(pending), "Training", total=len(pending)):
            done.result()
    rows = [kept.get(each.id) or json.loads(row_file(settings, each).read_text()) for each in wanted]
    metadata = {
        "dataset": dataset.name,
        "hash": dataset.content_hash(),
        "bins": dataset.bins,
        "shape": list(dataset.shape),
        **{f"{split}_images": count for split, count in dataset.counts().items()},
        "epochs": settings.epochs,
        "seed": settings.seed,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata({"curves": json.dumps(metadata)})
    pq.write_table(table, settings.output, compression="zstd", compression_level=19)
    print(f"{settings.output}: {len(rows)} configurations, {settings.output.stat().st_size:,} bytes")
    return 0


FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "family": pa.string(),
        "source": pa.string(),
        "params": pa.int64(),
        "flops_per_image": pa.int64(),
        "memory_bytes": pa.int64(),
        "suggestion": pa.string(),
        "model": pa.string(),
        "train": pa.string(),
        "failure": pa.string(),
        "val_bpd": FLOATS,
        "train_bpd": FLOATS,
        "seconds": FLOATS,
        "sigma1": FLOATS,
        "sigma2": FLOATS,
    }
)


def kept_rows(settings: Settings, dataset_hash: str) -> dict[str, dict[str, Any]]:
    """The rows of a table of the same images, epochs and seed that is there already, by id."""
    if not settings.output.exists():
        return {}
    table = pq.read_table(settings.output)
    told = json.loads(table.schema.metadata[b"curves"])
    if (told["hash"], told["epochs"], told["seed"]) != (dataset_hash, settings.epochs, settings.seed):
        raise ConfigError(f"{settings.output}: a table of other trainings; give another --output and --work")
    return {row["id"]: row for row in table.to_pylist()}


def configurations(settings: Settings, images: dict[str, int], space: SearchSpace) -> Iterator[Configuration]:
    """The table's configurations, families in turn; a larger table begins with a smaller one's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = {
        family: optuna.create_study(sampler=optuna.samplers.RandomSampler(settings.seed + place))
        for place, family in enumerate(FAMILIES)
    }
    designs = {family: initial_designs(family, space, DESIGNS) for family in FAMILIES}
    seen: set[str] = set()
    number = 0
    while number < settings.configurations:
        family = FAMILIES[number % len(FAMILIES)]
        design = designs[family].pop() if designs[family] and number // len(FAMILIES) % 3 == 2 else None
        trial: optuna.trial.BaseTrial = optuna.trial.FixedTrial(design) if design else studies[family].ask()
        try:
            model, searched = suggest(trial, family, space, images)
        except ConfigError:
            continue
        train = TrainConfig(epochs=settings.epochs, seed=settings.seed, **searched)
        identity = json.dumps([model.to_dict(), train.to_dict()])
        if identity in seen:
            continue
        seen.add(identity)
        source = "design" if design else "random"
        yield Configuration(
            id=f"{number:04d}-{family}", family=family, source=source, suggestion=trial.params, model=model, train=train
        )
        number += 1


def row_file(settings: Settings, configuration: Configuration) -> Path:
    """Where a trained configuration waits for the table."""
    return settings.work / f"{configuration.id}.json"


def train_one(configuration: Configuration, file: Path) -> None:
    """Train, and keep the curve; one that diverges is kept up to there, with its reason."""
    params, flops = parameters_and_flops(configuration.model)
    row: dict[str, Any] = {
        "id": configuration.id,
        "family": configuration.family,
        "source": configuration.source,
        "params": params,
        "flops_per_image": flops,
        "memory_bytes": training_memory(configuration.model, configuration.train.batch_size).total,
        "suggestion": json.dumps(configuration.suggestion),
        "model": json.dumps(configuration.model.to_dict()),
        "train": json.dumps(configuration.train.to_dict()),
        "failure": None,
        **{name: [] for name in ("val_bpd", "train_bpd", "seconds", "sigma1", "sigma2")},
    }
    dataset = load_dataset("digits")
    trainer = Trainer(configuration.model, configuration.train, dataset.images("train"), dataset.images("val"))
    try:
        while not trainer.finished:
            started = time.process_time()
            metrics = trainer.train_epoch()
            row["seconds"].append(time.process_time() - started)
            for name in ("val_bpd", "train_bpd", "sigma1", "sigma2"):
                row[name].append(getattr(metrics, name))
    except NonFiniteError as error:
        row["failure"] = str(error)
    write_text(file, json.dumps(row))


if __name__ == "__main__":
    command_line.run(main, Settings)

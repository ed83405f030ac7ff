"""A table of real learning curves: models of the search's own space, each trained to the full budget.

    python -m benchmarks.search.table                  # the digits: 330 configurations and 30 second and third seeds
    python -m benchmarks.search.table --dataset PATH --train-images 6000 --output benchmarks/search/other.parquet

It goes on where it was stopped, and more configurations add to those that there are. They are drawn uniformly from the
space (Optuna's random sampler), but for twelve of each family, which are sound designs as a search begins with. They
train as a search's trials do. Every epoch's validation bits/dim is kept, and the processor seconds that it took (one
thread), as little else of a busy machine disturbs; of the weights that are kept, each validation image's. The Parquet
file has a row a training; :mod:`benchmarks.search.curves` reads it. Rows that it has are not trained again, unless the
designs have changed since.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Mapping
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
from fvae.data.images import Dataset, TensorImages, derived_seed
from fvae.evaluation import evaluate
from fvae.files import write_text
from fvae.flops import parameters_and_flops
from fvae.memory import training_memory
from pipelines.cli import command_line
from pipelines.data.datasets import load_dataset
from tune.records.search_folder import validation_samples
from tune.run.assembly import shared_training
from tune.settings import SearchSettings
from tune.space import SearchSpace, initial_designs, suggest

DESIGNS = 12
"""Of each family, from small to large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train the table's configurations, and keep every epoch."""

    dataset: str = "digits"
    """The digits, or what `python -m pipelines.ingest` wrote."""
    train_images: int | None = None
    """Of the training split the first so many."""
    val_images: int = 1000
    """Of the validation split the first so many."""
    configurations: int = 330
    """In all; the families' shares are equal."""
    replicated: int = 30
    """Of these, so many, evenly over the table, are trained with two further seeds."""
    epochs: int = 40
    """Passes over the training images."""
    seed: int = 0
    """Of the draws, and of every training."""
    processes: int = 2
    """Side by side, a thread each."""
    work: Path = Path("runs/.table")
    """One file for each trained configuration: what a stopped table goes on from."""
    output: Path = Path(__file__).with_name("digits.parquet")
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
    replicate_of: str | None = None
    """Whose further seed it is."""


def main(settings: Settings) -> int:
    """Train what is missing, then write the table. Returns the exit status."""
    dataset = load_dataset(settings.dataset, streaming="never")
    counts = {split: len(images) for split, images in images_of(dataset, settings).items()}
    wanted = list(with_replicates(settings, list(configurations(settings, dataset, counts))))
    settings.work.mkdir(parents=True, exist_ok=True)
    kept = kept_rows(settings, dataset.content_hash())
    kept = {each.id: row for each in wanted if (row := kept.get(each.id)) and is_row_of(each, row)}
    missing = [each for each in wanted if each.id not in kept and not row_file(settings, each).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = [pool.submit(train_one, each, settings) for each in missing]
        for done in track(as_completed(pending), "Training", total=len(pending)):
            done.result()
    rows = [kept.get(each.id) or json.loads(row_file(settings, each).read_text()) for each in wanted]
    metadata = {
        "dataset": dataset.name,
        "hash": dataset.content_hash(),
        "bins": dataset.bins,
        "shape": list(dataset.shape),
        **{f"{split}_images": count for split, count in counts.items()},
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
        "replicate_of": pa.string(),
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
        "val_bits": FLOATS,
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


def is_row_of(configuration: Configuration, row: Mapping[str, Any]) -> bool:
    """Whether this is what was trained."""
    model, train = ModelConfig.from_dict(json.loads(row["model"])), TrainConfig.from_dict(json.loads(row["train"]))
    return (model, train) == (configuration.model, configuration.train)


def images_of(dataset: Dataset, settings: Settings) -> dict[str, torch.Tensor]:
    """The training and validation images, integers ``[N, C, H, W]``."""
    most = {"train": settings.train_images, "val": settings.val_images}
    splits = {split: dataset.images(split) for split in most}
    return {
        split: torch.as_tensor(each.images if isinstance(each, TensorImages) else each)[: most[split]].contiguous()
        for split, each in splits.items()
    }


def configurations(settings: Settings, dataset: Dataset, counts: dict[str, int]) -> Iterator[Configuration]:
    """The table's configurations, families in turn; a larger table begins with a smaller one's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    channels, height, width = dataset.shape
    images = {"channels": channels, "height": height, "width": width, "bins": dataset.bins}
    space = SearchSpace.for_images(dataset.shape, dataset.bins)
    shared = shared_training(SearchSettings(epochs=settings.epochs, seed=settings.seed), validation_samples(counts))
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
        train = dataclasses.replace(shared, **searched)
        identity = json.dumps([model.to_dict(), train.to_dict()])
        if identity in seen:
            continue
        seen.add(identity)
        source = "design" if design else "random"
        yield Configuration(
            id=f"{number:04d}-{family}", family=family, source=source, suggestion=trial.params, model=model, train=train
        )
        number += 1


def with_replicates(settings: Settings, firsts: list[Configuration]) -> Iterator[Configuration]:
    """The configurations, and of some of them two further seeds."""
    yield from firsts
    # Not a multiple of the number of families, whose turns would fall together with it.
    places = [int((place + 0.5) * len(firsts) / settings.replicated) for place in range(settings.replicated)]
    for first in (firsts[place] for place in places):
        for number in (1, 2):
            train = dataclasses.replace(first.train, seed=settings.seed + number)
            yield dataclasses.replace(first, id=f"{first.id}-{number}", train=train, replicate_of=first.id)


def row_file(settings: Settings, configuration: Configuration) -> Path:
    """Where a trained configuration waits for the table."""
    return settings.work / f"{configuration.id}.json"


def train_one(configuration: Configuration, settings: Settings) -> None:
    """Train, and keep the curve; one that diverges is kept up to there, with its reason."""
    params, flops = parameters_and_flops(configuration.model)
    row: dict[str, Any] = {
        "id": configuration.id,
        "replicate_of": configuration.replicate_of,
        "family": configuration.family,
        "source": configuration.source,
        "params": params,
        "flops_per_image": flops,
        "memory_bytes": training_memory(configuration.model, configuration.train.batch_size).total,
        "suggestion": json.dumps(configuration.suggestion),
        "model": json.dumps(configuration.model.to_dict()),
        "train": json.dumps(configuration.train.to_dict()),
        "failure": None,
        **{name: [] for name in ("val_bpd", "train_bpd", "seconds", "sigma1", "sigma2", "val_bits")},
    }
    images = images_of(load_dataset(settings.dataset, streaming="never"), settings)
    train = configuration.train
    trainer = Trainer(configuration.model, train, images["train"], images["val"])
    try:
        while not trainer.finished:
            started = time.process_time()
            metrics = trainer.train_epoch()
            row["seconds"].append(time.process_time() - started)
            for name in ("val_bpd", "train_bpd", "sigma1", "sigma2"):
                row[name].append(getattr(metrics, name))
        noise = derived_seed(train.seed, "val")
        bits = evaluate(trainer.best_model(), images["val"], samples=train.validation_samples, seed=noise)
        row["val_bits"] = [round(float(each), 5) for each in bits]
    except NonFiniteError as error:
        row["failure"] = str(error)
    write_text(row_file(settings, configuration), json.dumps(row))


if __name__ == "__main__":
    command_line.run(main, Settings)

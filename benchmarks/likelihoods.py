"""Every family with every option of how an image is observed, trained alike: bits/dim, parameters, scales.

    python -m benchmarks.likelihoods --mnist DATASET --cifar DATASET > benchmarks/results/likelihoods.txt

The digits train for 40 epochs, as in a search; MNIST (28×28) and the centres (16×16) of CIFAR-10's images for 1,000
steps of 64. DATASET is what `python -m pipelines.ingest` wrote; without one its table is left out. Each training is a
file in ``--work``: what a stopped run goes on from. Models train through :class:`fvae.Trainer`, as everywhere;
validation chooses their epoch, and the test split is read once for each.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.parts import variant
from fvae import ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.data.images import TensorImages, derived_seed
from fvae.evaluation import evaluate
from fvae.files import write_text
from pipelines.cli import command_line
from pipelines.data.datasets import load_dataset
from tune.run.assembly import SIGMA_LEARNING_RATE

RATE = (5e-3 * 3e-2) ** 0.5
"""Learning rate: the middle of the search's range."""
EPOCHS = {"digits": 40, "mnist": 2, "cifar": 2}
"""Two of 32,000 images are 1,000 steps."""
F = {"flow_levels": 2, "flow_depth": 2, "coupling_width": 21}
LIGHT = {"encoder_levels": 1, "encoder_blocks": 0, "encoder_width": 12}
G = {"encoder_levels": 2, "encoder_blocks": 1, "encoder_width": 20}
KL_WARMUP = {"kl_warmup": 0.7}
NETWORKS = {"posterior_scale": "network", "decoder_scale": "network"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train what is missing, then print the tables."""

    mnist: str | None = None
    """Data set of MNIST."""
    cifar: str | None = None
    """Data set of CIFAR-10, 32×32; its images' 16×16 centres are used."""
    seeds: int = 3
    """Trainings of each row."""
    processes: int = 2
    """Side by side, a thread each."""
    tables: Literal["likelihoods", "parts", "starts", "rates"] = "likelihoods"
    """``parts``: small parts of models and trainings. ``starts``: the first steps of a Gaussian f-VAE. ``rates``:
    learning rates and batch sizes, on the digits alone."""
    work: Path = Path("runs/.likelihoods")
    """One file for each training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table."""

    images: str
    """``digits``, ``mnist`` or ``cifar``."""
    name: str
    model: Mapping[str, Any]
    """Fields of the config; ``sigma1_bins`` and ``sigma2_bins`` in bins."""
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: str = ""
    """A name of :data:`benchmarks.parts.VARIANTS`."""


def digits() -> Iterator[Entry]:
    """The table of the digits, 17 levels."""

    def entry(name: str, **model: Any) -> Entry:
        return Entry(images="digits", name=name, model=model)

    flow = {"family": "flow", **F}
    yield entry("flow, σ 0.15 bins", **flow, sigma1_init=0.0086)
    yield entry("flow, σ 0.08 bins", **flow, sigma1_init=0.0048)
    yield entry("flow, σ 0", **flow, sigma1_init=0.0)
    yield entry("flow, variational dequantization", **flow, sigma1_init=0.0, dequantization="variational")
    fvae = {"family": "fvae", **F, **LIGHT}
    yield entry("f-VAE, Gaussian, start σ1 .29 σ2 .76 bins", **fvae, sigma1_init=0.0173, sigma2_init=0.0447)
    yield entry("f-VAE, Gaussian, start σ1 = σ2 = .15 bins", **fvae, sigma1_init=0.0086, sigma2_init=0.0086)
    yield entry("f-VAE, Gaussian, σ1(x) σ2(w)", **fvae, sigma1_init=0.0086, sigma2_init=0.0086, **NETWORKS)
    start = {"likelihood": "discretized", "sigma1_bins": 1.0, "sigma2_bins": 1.0}
    yield entry("f-VAE, discretized", **fvae, **start)
    yield entry("f-VAE, discretized, σ1(x)", **fvae, **start, posterior_scale="network")
    yield entry("f-VAE, discretized, σ2(w)", **fvae, **start, decoder_scale="network")
    yield entry("f-VAE, discretized, σ1(x) σ2(w)", **fvae, **start, **NETWORKS)
    small = {"flow_depth": 1, "coupling_width": 10, "encoder_width": 9}
    large = {"flow_depth": 4, "coupling_width": 45, "encoder_width": 17}
    yield entry("f-VAE, discretized, σ1(x), small", **fvae | start | small, posterior_scale="network")
    yield entry("f-VAE, discretized, σ1(x), large", **fvae | start | large, posterior_scale="network")
    vae = {"family": "vae", **G, "latent_channels": 8, "sigma1_init": 0.17}
    for name, warm_up in (("", {}), (", KL warm-up", KL_WARMUP)):
        options = {"Gaussian": {"sigma2_bins": 3.0}, "discretized": {"likelihood": "discretized", "sigma2_bins": 1.0}}
        for of, option in options.items():
            for scale, network in (("", {}), (", σ2(w)", {"decoder_scale": "network"})):
                model = vae | option | network
                yield Entry(images="digits", name=f"VAE, {of}{scale}{name}", model=model, train=warm_up)


def photographs(images: str, width: int) -> Iterator[Entry]:
    """The table of MNIST or CIFAR-10, 256 levels; ``width`` is the couplings'."""

    def entry(name: str, **model: Any) -> Entry:
        return Entry(images=images, name=name, model=model)

    flow = {"family": "flow", **F, "coupling_width": width}
    yield entry("flow, σ 0", **flow, sigma1_init=0.0)
    yield entry("flow, variational dequantization", **flow, sigma1_init=0.0, dequantization="variational")
    fvae = {**flow, "family": "fvae", **LIGHT}
    yield entry("f-VAE, Gaussian, σ1 = σ2", **fvae, sigma1_bins=0.1, sigma2_bins=0.1)
    yield entry("f-VAE, Gaussian, σ1(x) σ2(w)", **fvae, sigma1_bins=0.1, sigma2_bins=0.1, **NETWORKS)
    start = {"likelihood": "discretized", "sigma1_bins": 0.5, "sigma2_bins": 0.5}
    yield entry("f-VAE, discretized", **fvae, **start)
    yield entry("f-VAE, discretized, σ1(x) σ2(w)", **fvae, **start, **NETWORKS)
    vae = {"family": "vae", **G, "encoder_width": 10 if images == "mnist" else 18, "sigma1_init": 0.17}
    vae |= {"latent_channels": 4 if images == "mnist" else 12, "sigma2_bins": 16.0}
    vae |= {"decoder_scale": "network"}
    discretized = vae | {"likelihood": "discretized"}
    yield Entry(images=images, name="VAE, Gaussian, σ2(w), KL warm-up", model=vae, train=KL_WARMUP)
    yield Entry(images=images, name="VAE, discretized, σ2(w), KL warm-up", model=discretized, train=KL_WARMUP)


def parts(images: str) -> Iterator[Entry]:
    """The small parts, on a flow and on a discretized f-VAE."""
    scale = 1.0 if images == "digits" else 8.0
    fvae = {"likelihood": "discretized", "sigma1_bins": scale, "sigma2_bins": scale, **LIGHT, **NETWORKS}
    models = {"flow": {"family": "flow", **F, "sigma1_init": 0.0}, "f-VAE": {"family": "fvae", **F, **fvae}}
    if images == "digits":  # where there is something to overfit
        large = {"flow_depth": 5, "coupling_width": 66}
        models |= {f"large {name}": model | large for name, model in models.items()}
    for name, model in models.items():
        yield Entry(images=images, name=f"{name}, as it is", model=model)
        for decay in (0.1, 1.0) if name.startswith("large") else (0.1,):
            yield Entry(images=images, name=f"{name}, weight decay {decay}", model=model, train={"weight_decay": decay})
        if name == "f-VAE":
            rate = {"sigma_learning_rate": None}
            yield Entry(images=images, name=f"{name}, no rate of their own for σ", model=model, train=rate)
        if not name.startswith("large"):
            faster = {"learning_rate": 2 * RATE}
            yield Entry(images=images, name=f"{name}, 2 × the rate", model=model, train=faster)
            for factor in (1, 2):
                faster = {"learning_rate": factor * RATE}
                what = f"{name}, Adamax" + (f", {factor} × the rate" if factor > 1 else "")
                yield Entry(images=images, name=what, model=model, variant="adamax", train=faster)
            for part in ("last ActNorm", "mixing before the split", "dropout 0.1"):
                yield Entry(images=images, name=f"{name}, {part}", model=model, variant=part)
        if name == "f-VAE":
            yield Entry(images=images, name=f"{name}, clipped apart", model=model, variant="clipped apart")


def starts(images: str) -> Iterator[Entry]:
    """A Gaussian f-VAE from where the search used to begin it, and from where the flow inside it is."""
    model = {"family": "fvae", **F, **LIGHT}
    scales = {"σ1 .017, σ2 .045 of the range": (0.0173, 0.0447), "σ1 = σ2 = .0086 of the range": (0.0086, 0.0086)}
    for name, (sigma1, sigma2) in scales.items():
        yield Entry(images=images, name=name, model=model | {"sigma1_init": sigma1, "sigma2_init": sigma2})
    for bins in (0.1, 0.02):
        equal = {"sigma1_bins": bins, "sigma2_bins": bins}
        yield Entry(images=images, name=f"σ1 = σ2 = {bins} bins", model=model | equal)
    yield Entry(images=images, name="the flow inside, σ 0", model={"family": "flow", **F, "sigma1_init": 0.0})


def rates() -> Iterator[Entry]:
    """Learning rates for models of two sizes, and a batch of twice the images."""
    fvae = {"family": "fvae", "flow_levels": 2, **NETWORKS, "encoder_levels": 1, "encoder_blocks": 0}
    fvae |= {"likelihood": "discretized", "sigma1_bins": 1.0, "sigma2_bins": 1.0}
    flow = {"family": "flow", "flow_levels": 2, "sigma1_init": 0.0}
    models = {
        "small flow": flow | {"flow_depth": 1, "coupling_width": 8},
        "small f-VAE": fvae | {"flow_depth": 1, "coupling_width": 8, "encoder_width": 3},
        "flow": flow | {"flow_depth": 4, "coupling_width": 40},
        "f-VAE": fvae | {"flow_depth": 2, "coupling_width": 21, "encoder_width": 12},
    }
    for name, model in models.items():
        for batch, values in ((64, (0.0055, 0.011, 0.022, 0.033)), (128, (0.011, 0.022, 0.033))):
            if batch == 64 or not name.startswith("small"):
                for rate in values:
                    train = {"batch_size": batch, "learning_rate": rate}
                    yield Entry(images="digits", name=f"{name}, batch {batch}, rate {rate}", model=model, train=train)


def main(settings: Settings) -> int:
    """Train what is missing, then print the tables. Returns the exit status."""
    places = {"digits": "digits", "mnist": settings.mnist, "cifar": settings.cifar}
    tables: dict[str, list[Entry]] = {}
    for images, place in places.items():
        if place is not None and settings.tables == "parts":
            tables[images] = list(parts(images))
        elif settings.tables == "rates":
            tables |= {images: list(rates())} if images == "digits" else {}
        elif place is not None and settings.tables == "starts":
            tables[images] = list(starts(images))
        elif place is not None:
            width = {"mnist": 24, "cifar": 40}.get(images, 0)
            tables[images] = list(digits() if images == "digits" else photographs(images, width))
    if settings.tables != "starts":  # every other training is one of a search
        rate = {"sigma_learning_rate": SIGMA_LEARNING_RATE}
        tables = {
            images: [dataclasses.replace(entry, train=rate | dict(entry.train)) for entry in table]
            for images, table in tables.items()
        }
    settings.work.mkdir(parents=True, exist_ok=True)
    jobs = [(entry, seed) for seed in range(settings.seeds) for table in tables.values() for entry in table]
    missing = [(entry, seed) for entry, seed in jobs if not row_file(settings, entry, seed).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = [
            pool.submit(train_one, entry, seed, str(places[entry.images]), row_file(settings, entry, seed))
            for entry, seed in missing
        ]
        for done, each in enumerate(as_completed(pending), start=1):
            each.result()
            print(f"{done} of {len(pending)} trainings", file=sys.stderr)
    print(f"{settings.seeds} seeds each. {NOTE}")
    for images, table in tables.items():
        header = STARTS_HEADER if settings.tables == "starts" else HEADER
        print(f"\n{images}\n{header}{PAIRED_HEADER if settings.tables == 'parts' else ''}")
        plain: dict[str, list[dict[str, Any]]] = {}  # rows of each model as it is
        for entry in table:
            rows = [json.loads(row_file(settings, entry, seed).read_text()) for seed in range(settings.seeds)]
            if settings.tables == "starts":
                print(start_line(entry, rows))
                continue
            model = entry.name.split(",")[0]
            paired = paired_difference(rows, plain.get(model)) if settings.tables == "parts" else ""
            plain.setdefault(model, rows)
            print(f"{line(entry, rows)}{paired}")
    return 0


HEADER = f"{'':44}{'parameters':>10}{'validation':>18}{'test, k = 1':>18}{'k = 64':>18}{'σ1':>8}{'σ2':>8}"
NOTE = "σ after the last epoch in bins; * in units of the latent. Mean over the seeds ± their standard deviation."


def line(entry: Entry, rows: Sequence[Mapping[str, Any]]) -> str:
    """A row's mean over its seeds ± their standard deviation."""
    if failures := [row["failure"] for row in rows if row["failure"]]:
        return f"{entry.name:44}failed: {failures[0]}"

    def over_seeds(name: str, form: str) -> str:
        values = [row[name] for row in rows]
        if None in values:
            return "–"
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and form == ".3f" else ""
        return f"{statistics.mean(values):{form}}{spread}"

    figures = "".join(f"{over_seeds(name, '.3f'):>18}" for name in ("val", "test", "test_k64"))
    of_latent = entry.model["family"] == "vae"
    sigma1 = f"{statistics.mean(row['sigma1'] for row in rows):.2f}*" if of_latent else over_seeds("sigma1_bins", ".2f")
    scales = f"{sigma1:>8}{over_seeds('sigma2_bins', '.2f'):>8}"
    return f"{entry.name:44}{rows[0]['params']:>10,}{figures}{scales}"


PAIRED_HEADER = f"{'less as it is':>20}"


def paired_difference(rows: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]] | None) -> str:
    """Test bits/dim, k = 1, less those of the same model as it is, seed by seed: mean ± its standard error."""
    if plain is None or any(row["failure"] for row in (*rows, *plain)):
        return ""
    differences = [row["test"] - other["test"] for row, other in zip(rows, plain, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return f"{f'{statistics.mean(differences):+.3f} ± {error:.3f}':>20}"


STARTS = (0, 100, 1000)
"""Optimizer steps after which the start is looked at."""
STARTS_HEADER = f"{'validation, k = 1, after so many steps':44}" + "".join(f"{step:>18,}" for step in STARTS)


def start_line(entry: Entry, rows: Sequence[Mapping[str, Any]]) -> str:
    """Bits/dim of the weights (not averaged) after each of the steps, over the seeds."""
    figures = ""
    for step in map(str, STARTS):
        values = [row["starts"][step] for row in rows]
        figures += f"{statistics.mean(values):>10.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
    return f"{entry.name:44}{figures}"


def row_file(settings: Settings, entry: Entry, seed: int) -> Path:
    """Where a training's figures wait for the table."""
    what = json.dumps([entry.images, dict(entry.model), dict(entry.train), entry.variant, RATE, EPOCHS], sort_keys=True)
    return settings.work / f"{settings.tables}-{hashlib.sha256(what.encode()).hexdigest()[:12]}-{seed}.json"


def train_one(entry: Entry, seed: int, place: str, file: Path) -> None:
    """Train one row with one seed, read the test split, keep the figures; a training that diverges keeps its reason."""
    bins, train, val, test = images_of(entry.images, place)
    channels, height, width = train.shape[1:]
    model = {name: value for name, value in entry.model.items() if not name.endswith("_bins")}
    for name in ("sigma1", "sigma2"):
        if f"{name}_bins" in entry.model:
            model[f"{name}_init"] = entry.model[f"{name}_bins"] / bins
    config = ModelConfig(channels=channels, height=height, width=width, bins=bins, **model)
    settings = {"epochs": EPOCHS[entry.images], "learning_rate": RATE} | entry.train
    with variant(entry.variant):
        trainer = Trainer(config, TrainConfig(seed=seed, **settings), train, val)
    row: dict[str, Any] = {"failure": None, "params": trainer.model.parameter_count()}
    if file.name.startswith("starts-"):
        write_text(file, json.dumps(row | {"starts": first_steps(trainer, train, val, seed)}))
        return
    try:
        while not trainer.finished:
            metrics = trainer.train_epoch()
        best, noise = trainer.best_model(), derived_seed(seed, "test")
        row |= {
            "val": trainer.best_val_bpd,
            "test": float(evaluate(best, test, seed=noise).mean()),
            "test_k64": float(evaluate(best, test, k=64, seed=noise).mean()) if entry.images == "digits" else None,
            "sigma1": metrics.sigma1,
            "sigma1_bins": metrics.sigma1 * bins,
            "sigma2_bins": metrics.sigma2 * bins,
        }
    except NonFiniteError as error:
        row["failure"] = str(error)
    write_text(file, json.dumps(row))


def first_steps(trainer: Trainer, train: torch.Tensor, val: torch.Tensor, seed: int) -> dict[int, float]:
    """Validation bits/dim after each of :data:`STARTS`; at step 0 with ActNorm set and nothing trained."""
    untrained = copy.deepcopy(trainer.model)
    untrained.initialize(train[: trainer.config.batch_size], torch.Generator().manual_seed(seed))
    found = {0: float(evaluate(untrained, val, samples=4, seed=seed).mean())}
    for step in range(1, max(STARTS) + 1):
        trainer.train_step()
        if step in STARTS:
            found[step] = float(evaluate(trainer.model, val, samples=4, seed=seed).mean())
    return found


def images_of(images: str, place: str) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels, and the images of the splits in memory; of MNIST and CIFAR-10 as many as the tables take."""
    dataset = load_dataset(place, streaming="never")
    splits = []
    for name, most in (("train", 32_000), ("val", 1_000), ("test", 10_000)):
        split = dataset.images(name)
        tensor = split.images if isinstance(split, TensorImages) else torch.as_tensor(split)
        tensor = tensor[:, :, 8:24, 8:24] if images == "cifar" else tensor
        splits.append(tensor[:most].contiguous())
    return dataset.bins, splits[0], splits[1], splits[2]


if __name__ == "__main__":
    command_line.run(main, Settings)

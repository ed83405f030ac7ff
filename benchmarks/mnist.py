"""The fewest bits/dim on MNIST (28×28, 256 levels) that each family reaches under a number of parameters.

    python -m benchmarks.mnist DATASET > benchmarks/results/mnist.txt

DATASET is what `python -m pipelines.ingest` wrote: 54,000 training and 6,000 validation images. Models train through
:class:`fvae.Trainer` as in a search; validation chooses their epoch, and the test split is read once for each. Every
epoch is a checkpoint in ``--work``: a stopped run goes on from it.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fvae import ModelConfig, TrainConfig, Trainer
from fvae.data.images import derived_seed, image_source
from fvae.evaluation import evaluate, standard_error
from fvae.files import write_text
from pipelines.cli import command_line
from pipelines.data.datasets import load_dataset
from tune.run.assembly import SIGMA_LEARNING_RATE

TRAIN = {"batch_size": 32, "warmup_steps": 200, "sigma_learning_rate": SIGMA_LEARNING_RATE}
SCALES = {"likelihood": "discretized", "posterior_scale": "network", "decoder_scale": "network"}
FVAE = {
    "family": "fvae",
    "flow_levels": 2,
    "encoder_levels": 2,
    **SCALES,
    "sigma1_init": 8 / 256,
    "sigma2_init": 12 / 256,
}
FLOW = {"family": "flow", "flow_levels": 2, "sigma1_init": 0.0, "dequantization": "variational"}
VAE = {"family": "vae", "encoder_levels": 2, **SCALES, "sigma1_init": 0.17, "sigma2_init": 16 / 256}
MODELS: dict[str, dict[str, Any]] = {
    "f-VAE 50k": FVAE | {"flow_depth": 4, "coupling_width": 30, "encoder_width": 13, "encoder_blocks": 1},
    "f-VAE 200k": FVAE | {"flow_depth": 6, "coupling_width": 64, "encoder_width": 28, "encoder_blocks": 1},
    "f-VAE 500k": FVAE | {"flow_depth": 6, "coupling_width": 64, "encoder_width": 48, "encoder_blocks": 2},
    "flow 50k": FLOW | {"flow_depth": 6, "coupling_width": 34},
    "flow 200k": FLOW | {"flow_depth": 8, "coupling_width": 72},
    "flow 500k": FLOW | {"flow_depth": 8, "coupling_width": 128},
    "VAE 50k": VAE | {"latent_channels": 8, "encoder_width": 22, "encoder_blocks": 1},
    "VAE 200k": VAE | {"latent_channels": 8, "encoder_width": 34, "encoder_blocks": 2},
    "VAE 500k": VAE | {"latent_channels": 12, "encoder_width": 55, "encoder_blocks": 2},
}
"""By family and the number of parameters that they stay under, discretized where there is a choice."""
LONG = "f-VAE 500k"
"""Trained longer, at a lower rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train what is missing, then print the table."""

    dataset: Annotated[str, tyro.conf.Positional]
    """MNIST, as `python -m pipelines.ingest` wrote it."""
    epochs: int = 3
    """Of every training but one."""
    long_epochs: int = 10
    """Of the f-VAE under 500k."""
    k64_images: int = 10_000
    """Test images, from the first, of which k = 64 is measured."""
    processes: int = 2
    """Side by side, a thread each."""
    models: tuple[str, ...] = tuple(MODELS)
    """Rows of the table."""
    work: Path = Path("runs/.mnist")
    """One file for each training, and one for its checkpoint."""


def main(settings: Settings) -> int:
    """Train what is missing, then print the table. Returns the exit status."""
    settings.work.mkdir(parents=True, exist_ok=True)
    missing = [name for name in settings.models if not row_file(settings, name).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(train, name, settings) for name in missing]):
            done.result()
    rows = {name: json.loads(row_file(settings, name).read_text()) for name in settings.models}
    print(HEADER)
    for name, row in rows.items():
        first = f"{row['k1_of_those']:.3f}", f"{row['k64']:.3f} ± {row['k64_error']:.3f}"
        print(
            f"{name:12}{row['params']:>10,}{row['minutes']:>13.0f}{row['val_bpd'][0]:>9.3f}{min(row['val_bpd']):>9.3f}"
            f"{row['k1']:>9.3f} ± {row['k1_error']:.3f}{first[0]:>10}{first[1]:>16}"
        )
    minutes = sum(row["minutes"] for row in rows.values())
    print(f"\n{minutes / 60:.1f} hours in all; the last two columns: {settings.k64_images:,} images.")
    return 0


COLUMNS = {"parameters": 10, "minutes": 13, "epoch 1": 9, "best": 9, "test, k = 1": 17, "k = 1": 10, "k = 64": 16}
HEADER = " " * 12 + "".join(f"{name:>{width}}" for name, width in COLUMNS.items())


def row_file(settings: Settings, name: str) -> Path:
    """Where a training's figures wait for the table."""
    return settings.work / f"{name.replace(' ', '-')}-{epochs(name, settings)}.json"


def epochs(name: str, settings: Settings) -> int:
    """How long a model is trained."""
    return settings.long_epochs if name == LONG else settings.epochs


def train(name: str, settings: Settings) -> None:
    """Train one model, read the test split, keep the figures."""
    torch.set_num_threads(1)
    dataset = load_dataset(settings.dataset, streaming="never")
    test = image_source(dataset.images("test"))
    model = ModelConfig(channels=1, height=28, width=28, bins=dataset.bins, **MODELS[name])
    rate = 5e-3 if name == LONG else 1e-2
    warm_up = 0.3 if name.startswith("VAE") else 0.0
    config = TrainConfig(epochs=epochs(name, settings), learning_rate=rate, kl_warmup=warm_up, **TRAIN)
    trainer = Trainer(model, config, dataset.images("train"), dataset.images("val"))
    checkpoint = row_file(settings, name).with_suffix(".safetensors")
    if checkpoint.exists():
        trainer.restore(checkpoint)
    while not trainer.finished:
        metrics = trainer.train_epoch()
        trainer.save(checkpoint)
        print(f"{name}: epoch {metrics.epoch}: {metrics.val_bpd:.3f} ({trainer.seconds:.0f} s)", file=sys.stderr)
    best, noise = trainer.best_model(), derived_seed(config.seed, "test")
    started = time.process_time()
    k1 = evaluate(best, test, seed=noise)
    k64 = evaluate(best, test.first(settings.k64_images), k=64, seed=noise)
    row = {
        "params": trainer.model.parameter_count(),
        "minutes": (trainer.seconds + time.process_time() - started) / 60,
        "val_bpd": [metrics.val_bpd for metrics in trainer.history],
        "k1": float(k1.mean()),
        "k1_error": standard_error(k1),
        "k1_of_those": float(k1[: settings.k64_images].mean()),
        "k64": float(k64.mean()),
        "k64_error": standard_error(k64),
    }
    write_text(row_file(settings, name), json.dumps(row))


if __name__ == "__main__":
    command_line.run(main, Settings)

"""A small training that several tests run: as a command, and by fvae alone."""

from __future__ import annotations

from fvae import ModelConfig, TrainConfig, Trainer
from pipelines.data.datasets import load_dataset

EPOCHS, BATCH = 4, 128
MODEL = {"family": "flow", "flow_levels": 1, "flow_depth": 2, "coupling_width": 8}
TRAIN = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_steps": 10}
OPTIONS = [
    word
    for table, fields in (("model", MODEL), ("train", TRAIN))
    for name, value in fields.items()
    for word in (f"--{table}.{name.replace('_', '-')}", str(value))
]
"""The same, as options of ``python -m pipelines.train``."""


def configs() -> tuple[ModelConfig, TrainConfig]:
    return (
        ModelConfig(channels=1, height=8, width=8, bins=17, **MODEL),  # type: ignore[arg-type]
        TrainConfig(**TRAIN),  # type: ignore[arg-type]
    )


def uninterrupted() -> Trainer:
    """Trained to its end, on one thread in the tests as on a worker."""
    dataset = load_dataset("digits")
    trainer = Trainer(*configs(), dataset.images("train"), dataset.images("val"))
    while not trainer.finished:
        trainer.train_epoch()
    return trainer

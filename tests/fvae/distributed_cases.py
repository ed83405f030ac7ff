"""Small trainings that one worker and several must do alike."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from fvae import ModelConfig, TrainConfig, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    family: str
    images: int = 50
    batch_size: int = 12  # the last batch has two images: fewer than three workers
    epochs: int = 2
    precision: str = "float32"
    checkpoint_step: int = 3
    execution: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "fvae": Case(family="fvae"),
    "flow": Case(family="flow", execution={"micro_batch_size": 3}),
    "vae": Case(family="vae", precision="bf16"),
    "recomputing": Case(family="fvae", execution={"checkpoint_activations": True, "micro_batch_size": 2}),
}


def model_config(case: Case) -> ModelConfig:
    return ModelConfig(
        family=case.family,  # type: ignore[arg-type]
        channels=1,
        height=4,
        width=4,
        bins=17,
        flow_levels=2,
        flow_depth=2,
        coupling_width=8,
        encoder_width=8,
    )


def train_config(case: Case) -> TrainConfig:
    return TrainConfig(
        epochs=case.epochs,
        batch_size=case.batch_size,
        warmup_steps=5,
        precision=case.precision,  # type: ignore[arg-type]
    )


def images(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images: more of them than an evaluation takes at once."""
    generator = np.random.default_rng(0)
    both = generator.integers(0, 17, (case.images + 300, 1, 4, 4)) * generator.integers(0, 2, (1, 1, 4, 4))
    return both[: case.images].astype(np.uint8), both[case.images :].astype(np.uint8)


def poisoned_step(trainer: Trainer) -> None:
    """A step in which worker 0's images alone have a loss that is not finite."""
    trainer.train_step()
    if trainer.workers.rank == 0:
        bits_per_dim = trainer.model.bits_per_dim
        trainer.model.bits_per_dim = lambda *args, **options: bits_per_dim(*args, **options) * math.inf  # type: ignore[method-assign]
    trainer.train_step()


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of two state dicts with the same names."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)

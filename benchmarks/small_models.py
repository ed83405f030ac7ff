"""A training step of small models on one core: what each part of its arithmetic is worth, measured in one run.

    python -m benchmarks.small_models > benchmarks/results/small_models.txt

A step is :meth:`fvae.Trainer.train_step` on the digits, or for the largest model on 32×32 colour images. Every round
runs each variant in turn, for so many steps; a ratio is the median over rounds of the ratio within a round, in seconds
of the core, so that what else the machine does falls on all alike. ``before`` has every convolution as the library's
and makes each flow step's map on its own. The last column is the largest difference of an image's bits/dim from
``before``, with the same weights and noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch

from fvae import ModelConfig, TrainConfig, Trainer
from fvae.flow import MultiScaleFlow
from pipelines.cli import command_line

FLOW = {"family": "flow", "flow_levels": 2, "sigma1_init": 0.0}
FVAE = {
    "family": "fvae",
    "flow_levels": 2,
    "encoder_levels": 1,
    "encoder_blocks": 0,
    "likelihood": "discretized",
    "posterior_scale": "network",
    "decoder_scale": "network",
    "sigma1_init": 0.06,
    "sigma2_init": 0.06,
}
DIGITS = {"channels": 1, "height": 8, "width": 8, "bins": 17}
COLOUR = {"channels": 3, "height": 32, "width": 32, "bins": 256}
MODELS: dict[str, dict[str, Any]] = {
    "flow": DIGITS | FLOW | {"flow_depth": 1, "coupling_width": 10},
    "f-VAE": DIGITS | FVAE | {"flow_depth": 2, "coupling_width": 18, "encoder_width": 10},
    "larger flow": DIGITS | FLOW | {"flow_depth": 4, "coupling_width": 44},
    "larger f-VAE": DIGITS | FVAE | {"flow_depth": 4, "coupling_width": 42, "encoder_width": 16},
    "flow, 32×32×3": COLOUR | FLOW | {"flow_levels": 3, "flow_depth": 4, "coupling_width": 128},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure and print."""

    rounds: int = 15
    """Of which the median is taken."""
    steps: int = 20
    """Of each variant in a round; of the largest model a tenth of it."""
    batch: int = 64
    """Images a step."""


@contextlib.contextmanager
def library_convolutions() -> Iterator[None]:
    """Inside, no convolution is a product."""
    with patch("fvae.convolution._is_faster_as_product", lambda layer, x: False):
        yield


@contextlib.contextmanager
def maps_apart() -> Iterator[None]:
    """Inside, every flow step makes its own map."""
    with patch.object(MultiScaleFlow, "makes_maps_together", False):
        yield


@contextlib.contextmanager
def before() -> Iterator[None]:
    """Inside, neither."""
    with library_convolutions(), maps_apart():
        yield


VARIANTS = {
    "before": before,
    "convolutions as products": maps_apart,
    "maps together": library_convolutions,
    "both": contextlib.nullcontext,
}


def main(settings: Settings) -> int:
    """Measure and print. Returns the exit status."""
    torch.set_num_threads(1)
    print(f"one thread, {platform.machine()}, torch {torch.__version__}, batch {settings.batch}, float32")
    print(f"\n{'':16}{'parameters':>10}  {'':26}{'ms/step':>8}{'× before':>10}{'difference':>12}")
    for name, model in MODELS.items():
        config = ModelConfig(**model)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(config.bins, (4 * settings.batch, *config.image_shape), generator=generator)
        images = images.to(torch.uint8)
        train = TrainConfig(epochs=10**6, batch_size=settings.batch)
        trainers = {variant: Trainer(config, train, images, images[:1]) for variant in VARIANTS}
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        steps = settings.steps if config.channels == 1 else max(1, settings.steps // 10)
        for number in range(settings.rounds + 1):
            for variant, trainer in trainers.items():
                with VARIANTS[variant]():
                    started = time.process_time()
                    for _ in range(steps):
                        trainer.train_step()
                    if number:  # the first warms up
                        seconds[variant].append((time.process_time() - started) / steps)
        noise = trainers["both"].model.noise(len(images), generator)
        bits = {}
        for variant, around in VARIANTS.items():
            with around(), torch.no_grad():
                bits[variant] = trainers["both"].model.eval().bits_per_dim(images, noise=noise)
        for variant in VARIANTS:
            ratio = statistics.median(a / b for a, b in zip(seconds["before"], seconds[variant], strict=True))
            difference = float((bits[variant] - bits["before"]).abs().max())
            size = f"{trainers[variant].model.parameter_count():,}" if variant == "before" else ""
            print(
                f"{name if size else '':16}{size:>10}  {variant:26}{1000 * statistics.median(seconds[variant]):>8.2f}"
                f"{ratio:>9.2f}×{difference:>12.1e}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    command_line.run(main, Settings)

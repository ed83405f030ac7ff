"""Images/s of training on a CUDA GPU: float32 against bf16, in turn in one run. Needs torch alone.

python benchmarks/gpu.py --output benchmarks/results/gpu.txt
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from fvae import ModelConfig, TrainConfig, Trainer

SHAPES = {"MNIST 28×28×1": (1, 28, 28), "colour 32×32×3": (3, 32, 32)}
ROUNDS, STEPS = 7, 30


def trainer(family: str, shape: tuple[int, int, int], precision: str, batch_size: int, width: int) -> Trainer:
    """A trainer on random images: speed does not depend on what they show."""
    channels, height, image_width = shape
    model = ModelConfig(
        family=family,  # type: ignore[arg-type]
        channels=channels,
        height=height,
        width=image_width,
        flow_levels=2,
        flow_depth=8,
        coupling_width=width,
        encoder_levels=2,
        encoder_blocks=2,
        encoder_width=width,
    )
    images = torch.randint(0, 256, (batch_size * 40, *shape), dtype=torch.uint8)
    config = TrainConfig(epochs=10_000, batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    return Trainer(model, config, images, images[:batch_size], "cuda")


def images_per_second(trained: Trainer) -> float:
    """Over ``STEPS`` steps, the device waited for at both ends."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        trained.train_step()
    torch.cuda.synchronize()
    return STEPS * trained.config.batch_size / (time.perf_counter() - started)


def main() -> None:
    """Measure and print a table; with --output also keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch_size}, "
        f"width {options.width}, median of {ROUNDS} rounds of {STEPS} steps",
        f"{'images':<16}{'family':<8}{'parameters':>12}{'float32/s':>12}{'bf16/s':>12}{'ratio':>8}",
    ]
    for name, shape in SHAPES.items():
        for family in ("vae", "flow", "fvae"):
            pair = [trainer(family, shape, p, options.batch_size, options.width) for p in ("float32", "bf16")]
            for each in pair:
                images_per_second(each)  # warm up
            rounds = [[images_per_second(each) for each in pair] for _ in range(ROUNDS)]
            plain, half = (statistics.median(column) for column in zip(*rounds, strict=True))
            count = pair[0].model.parameter_count()
            lines.append(f"{name:<16}{family:<8}{count:>12,}{plain:>12,.0f}{half:>12,.0f}{half / plain:>8.2f}")
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

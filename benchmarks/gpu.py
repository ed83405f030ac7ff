"""Training on one CUDA GPU: step time, memory, share of the card's peak, and bits/dim, by precision. Needs torch alone.

    python benchmarks/gpu.py --output benchmarks/results/gpu.txt
    python benchmarks/gpu.py --device cpu --models tiny --rounds 2 --steps 2 --epochs 2 --matmul 512

Every variant of a model trains on the same images; every round runs each variant once, in turn, and a figure is the
median over rounds. FLOPs are those of the matrix products and convolutions, three times a forward pass, whatever is
computed again; the peak is what one large matrix product reaches here, in bf16 for bf16 and in TF32 for float32,
whose convolutions cuDNN runs in TF32. Memory is the allocator's peak, beside what fvae.memory computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import model
from torch import Tensor

from fvae import ModelConfig, TrainConfig, Trainer
from fvae.flops import TRAINING_FACTOR, parameters_and_flops
from fvae.memory import training_memory
from fvae.train_config import Precision


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train the same model."""

    precision: Precision
    compiled: bool = False
    checkpointed: bool = False

    def trainer(self, config: ModelConfig, train: TrainConfig, images: Tensor, val: Tensor, device: str) -> Trainer:
        """A new trainer, at its first step."""
        train = dataclasses.replace(train, precision=self.precision)
        return Trainer(
            config, train, images, val, device, compile=self.compiled, checkpoint_activations=self.checkpointed
        )


VARIANTS = {
    "float32": Variant("float32"),
    "float32 compiled": Variant("float32", compiled=True),
    "float32 checkpointed": Variant("float32", checkpointed=True),
    "bf16": Variant("bf16"),
    "bf16 compiled": Variant("bf16", compiled=True),
    "bf16 checkpointed": Variant("bf16", checkpointed=True),
}
PEAKS = {"float32": "TF32", "bf16": "bf16"}
"""The matrix product that each precision's share is of."""


def smooth_images(count: int, config: ModelConfig, seed: int) -> Tensor:
    """Low resolution, enlarged, with a little noise: there is something to learn. uint8 ``[count, C, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, config.channels, config.height // 8, config.width // 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(config.height, config.width), mode="bilinear")
    noise = torch.rand(fine.shape, generator=generator)
    return ((0.9 * fine + 0.1 * noise) * config.bins).clamp(max=config.bins - 1).to(torch.uint8)


def seconds(work: Callable[[], object], times: int, device: str) -> float:
    """Of one run of ``work``, over ``times`` runs, the device waited for at both ends."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - started) / times


def matmul_flops(side: int, device: str, rounds: int) -> dict[str, float]:
    """FLOPs a second of a square matrix product: the best of ``rounds``, by kind."""
    kinds = {
        "float32": (torch.float32, "highest"),
        "TF32": (torch.float32, "high"),
        "bf16": (torch.bfloat16, "highest"),
    }
    measured = {}
    before = torch.get_float32_matmul_precision()
    for kind, (dtype, precision) in kinds.items():
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        seconds(product, 3, device)  # warm up
        measured[kind] = 2 * side**3 / min(seconds(product, 10, device) for _ in range(rounds))
    torch.set_float32_matmul_precision(before)
    return measured


@dataclasses.dataclass
class Measured:
    """A variant under way."""

    name: str
    trainer: Trainer
    warm_up: float
    """Seconds of the first steps: compiling, choosing kernels."""
    peak: int | None
    """Bytes of its own at most, on a GPU."""
    rounds: list[float] = dataclasses.field(default_factory=list)
    """Seconds of a step."""


def start(name: str, config: ModelConfig, train: TrainConfig, images: Tensor, options: argparse.Namespace) -> Measured:
    """Make a variant and warm it up. Variants that wait hold memory too: only what is added is its own."""
    cuda = options.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    started = time.perf_counter()
    trainer = VARIANTS[name].trainer(config, train, images, images[:1], options.device)
    seconds(trainer.train_step, options.warm_up, options.device)
    warm_up = time.perf_counter() - started
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds(trainer.train_step, 2, options.device)
    return Measured(name, trainer, warm_up, torch.cuda.max_memory_allocated() - before if cuda else None)


def speed(name: str, peaks: dict[str, float], options: argparse.Namespace) -> list[str]:
    """The table of a model's step time, memory and share of the peak."""
    config, train = model(name)
    batch = options.batch_size or train.batch_size
    train = dataclasses.replace(train, batch_size=batch, epochs=10**6, learning_rate=1e-5)
    images = smooth_images(2 * batch, config, seed=0)
    parameters, flops = parameters_and_flops(config)
    running = [start(variant, config, train, images, options) for variant in options.variants]
    for _ in range(options.rounds):
        for each in running:
            each.rounds.append(seconds(each.trainer.train_step, options.steps, options.device))
    lines = [
        f"{name}: f-VAE {config.height}×{config.width}×{config.channels}, {parameters:,} parameters, batch {batch}, "
        f"{TRAINING_FACTOR * flops / 1e9:.1f} GFLOP an image",
        f"{'':20} {'ms/step':>9} {'images/s':>9} {'× first':>7} {'TFLOP/s':>8} {'of peak':>8} {'peak MiB':>9} "
        f"{'computed':>9} {'warm-up s':>9}",
    ]
    for each in running:
        variant = VARIANTS[each.name]
        step = statistics.median(each.rounds)
        ratio = statistics.median(a / b for a, b in zip(running[0].rounds, each.rounds, strict=True))
        rate = TRAINING_FACTOR * flops * batch / step
        share = rate / peaks[PEAKS[variant.precision]]
        memory = training_memory(
            config, batch, precision=variant.precision, checkpoint_activations=variant.checkpointed
        )
        computed = memory.total - memory.averaged // 2  # no epoch is done: no best weights yet
        peak = f"{each.peak / 2**20:,.0f}" if each.peak is not None else "–"
        lines.append(
            f"{each.name:20} {1000 * step:>9.2f} {batch / step:>9,.1f} {ratio:>7.2f} {rate / 1e12:>8.2f} {share:>8.1%} "
            f"{peak:>9} {computed / 2**20:>9,.0f} {each.warm_up:>9.1f}"
        )
    return lines


def bits(name: str, options: argparse.Namespace) -> list[str]:
    """Bits/dim of validation images after the same steps on the same images, by precision and seed."""
    config, train = model(name)
    batch = options.batch_size or train.batch_size
    train = dataclasses.replace(train, batch_size=batch, epochs=options.epochs, learning_rate=1e-3, warmup_steps=20)
    images, val = smooth_images(options.steps_per_epoch * batch, config, 0), smooth_images(512, config, 1)
    lines = [f"{name}: bits/dim of 512 other images after {options.epochs * options.steps_per_epoch} steps of {batch}"]
    for seed in range(options.seeds):
        reached = []
        for variant in (VARIANTS["float32"], VARIANTS["bf16"]):
            trainer = variant.trainer(config, dataclasses.replace(train, seed=seed), images, val, options.device)
            while not trainer.finished:
                metrics = trainer.train_epoch()
            reached.append(metrics.val_bpd)
        lines.append(
            f"  seed {seed}: float32 {reached[0]:.4f}, bf16 {reached[1]:.4f}, difference {reached[1] - reached[0]:+.4f}"
        )
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", default=["small", "middle", "paper"], help="of benchmarks/models.py")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--batch-size", type=int, help="default: the model's own")
    parser.add_argument("--warm-up", type=int, default=5, help="steps of each variant before measuring")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="per variant and round")
    parser.add_argument("--epochs", type=int, default=5, help="of training for bits/dim")
    parser.add_argument("--steps-per-epoch", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2, help="trainings for bits/dim of each precision")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matrices whose product is the peak")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print; with --output also keep it, after every part."""
    options = arguments()
    peaks = matmul_flops(options.matmul, options.device, options.rounds)
    card = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    lines = [
        f"$ python {' '.join(sys.argv)}",
        f"{card}, torch {torch.__version__}, {options.rounds} rounds of {options.steps} steps in turn",
        f"matrix product of side {options.matmul}: "
        + ", ".join(f"{kind} {rate / 1e12:.1f} TFLOP/s" for kind, rate in peaks.items()),
    ]
    parts = [lambda name=name: speed(name, peaks, options) for name in options.models]
    parts += [lambda name=name: bits(name, options) for name in options.models]
    print("\n".join(lines), flush=True)
    for part in parts:
        new = ["", *part()]
        lines += new
        print("\n".join(new), flush=True)
        if options.output:
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

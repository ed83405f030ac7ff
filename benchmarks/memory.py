"""Peak memory of one training worker, computed (fvae.memory) and measured, with and without activation checkpointing.

    python -m benchmarks.memory --output benchmarks/results/memory.txt

Measured: a fresh process trains two epochs of one step with fvae.Trainer, each validated on as many images as go
through the model at once; its peak resident memory, less what it had after importing torch. Linux only.
Part of that has nothing to do with the model (libraries load their kernels): the fixed part, measured with a model
of no size. The last column is what is measured, less the fixed part, over what is computed.
The time of a step with checkpointing over one without: both in turn, on the same weights, in one process.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import tyro

from benchmarks.models import model
from fvae import ModelConfig, TrainConfig, Trainer
from fvae.activation_checkpointing import set_activation_checkpointing
from fvae.memory import TrainingMemory, training_memory
from fvae.model import images_at_once
from fvae.train_config import Precision

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    models: tuple[str, ...] = ("middle", "paper")
    """Of benchmarks/models.py."""
    computed: tuple[int, ...] = (1, 8, 32, 128)
    """Images at once (the micro-batch) to compute float32 and bf16 memory for."""
    measured: tuple[int, ...] = (8, 32)
    """Those of them to measure as well."""
    timed: int = 8
    """Images at once when a step is timed."""
    rounds: int = 5
    """Steps timed of each kind."""
    threads: int = 2
    """CPU threads."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One training: which model, how many images at once, and how."""

    config: ModelConfig
    images: int
    precision: Precision
    checkpointed: bool

    def memory(self) -> TrainingMemory:
        """What ``fvae.memory`` computes."""
        return training_memory(
            self.config, self.images, precision=self.precision, checkpoint_activations=self.checkpointed
        )


def random_images(count: int, config: ModelConfig) -> torch.Tensor:
    """Memory and time do not depend on what they show."""
    return torch.randint(config.bins, (count, *config.image_shape), dtype=torch.uint8)


def trainer(case: Case, epochs: int, val_images: int) -> Trainer:
    """One step an epoch, at a rate that random images bear."""
    train = TrainConfig(epochs=epochs, batch_size=case.images, learning_rate=1e-5, precision=case.precision)
    images, val = random_images(case.images, case.config), random_images(val_images, case.config)
    return Trainer(case.config, train, images, val, checkpoint_activations=case.checkpointed)


def status(field: str) -> int:
    """Bytes of a memory field of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def peak(case: Case, threads: int) -> int:
    """Bytes of resident memory that two epochs take at most, in this process."""
    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = status("VmRSS")
    trained = trainer(case, epochs=2, val_images=images_at_once(case.config))
    while not trained.finished:
        trained.train_epoch()
    return status("VmHWM") - before


def step_ratio(case: Case, threads: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a step that keeps its activations, and median ratio of one that does not to it."""
    torch.set_num_threads(threads)
    trained = trainer(case, epochs=2 * rounds + 2, val_images=1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):
        for checkpointed in (False, True):
            set_activation_checkpointing(trained.model, checkpointed)
            started = time.perf_counter()
            trained.train_step()
            seconds[checkpointed].append(time.perf_counter() - started)
    kept, anew = seconds[False][1:], seconds[True][1:]  # the first of each warms up
    return statistics.median(kept), statistics.median(b / a for a, b in zip(kept, anew, strict=True))


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """What it returns there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def mib(size: float) -> str:
    """Bytes as MiB, with thousands."""
    return f"{size / 2**20:,.0f}"


def fixed_part(threads: int) -> int:
    """Bytes that training takes in this process whatever the model."""
    case = Case(model("tiny")[0], 1, "float32", False)
    return in_new_process(peak, case, threads) - case.memory().total


def section(name: str, fixed: int, settings: Settings) -> list[str]:
    """Everything about one model."""
    config = model(name)[0]
    first = Case(config, settings.computed[0], "float32", False).memory()
    parameters = first.gradients // 4
    lines = [
        f"{name}: f-VAE {config.height}×{config.width}×{config.channels}, {parameters:,} parameters; MiB: "
        f"weights {mib(first.weights)}, gradients {mib(first.gradients)}, optimizer {mib(first.optimizer)}, "
        f"averaged {mib(first.averaged)}",
        f"{'images':>6} {'precision':>9} {'checkpointed':>12} {'activations':>11} {'total':>7} {'measured':>8} "
        f"{'less fixed, over total':>22}",
    ]
    for precision in ("float32", "bf16"):
        for images in settings.computed:
            for checkpointed in (False, True):
                case = Case(config, images, precision, checkpointed)
                memory = case.memory()
                held = [f"{images:>6} {precision:>9} {'yes' if checkpointed else 'no':>12}"]
                held.append(f"{mib(memory.activations):>11} {mib(memory.total):>7}")
                if images in settings.measured:
                    found = in_new_process(peak, case, settings.threads)
                    held.append(f"{mib(found):>8} {(found - fixed) / memory.total:>22.2f}")
                lines.append(" ".join(held))
                print(lines[-1], file=sys.stderr)  # minutes: something to look at
    for precision in ("float32", "bf16"):
        case = Case(config, settings.timed, precision, False)
        seconds, ratio = in_new_process(step_ratio, case, settings.threads, settings.rounds)
        timed = f"a step of {settings.timed} images, {precision}: {seconds:.2f} s"
        lines.append(f"{timed}, with checkpointing {ratio:.2f} times that")
    return lines


def main(settings: Settings) -> None:
    """Compute, measure, print."""
    load = os.getloadavg()[0]
    fixed = fixed_part(settings.threads)
    lines = [
        f"$ python {' '.join(sys.argv)}",
        f"{settings.threads} threads, load average {load:.1f} before, {platform.machine()}, torch {torch.__version__}; "
        f"median of {settings.rounds} steps of each kind in turn",
        f"fixed part of what is measured: {mib(fixed)} MiB",
    ]
    print("\n".join(lines))
    for name in settings.models:
        new = ["", *section(name, fixed, settings)]
        lines += new
        print("\n".join(new), flush=True)
        if settings.output:
            settings.output.parent.mkdir(parents=True, exist_ok=True)
            settings.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

"""Images/s of one training step, against normflows' Glow at the same shape, in one run.

    python -m benchmarks.step --output benchmarks/results/step.txt

A step is dequantization, forward, backward, gradient clipping and AdamW. The two models have the same
shape: squeeze, K steps of ActNorm, 1×1 convolution in PLU form and affine coupling (3×3, 1×1, 3×3),
half of the channels leaving at each level. Every round runs each variant once, in turn, so that
whatever else the machine does falls on all of them alike; a ratio is the median over rounds of the
ratio within a round.

F keeps its tensors as [B, H, W, C] throughout, so its convolutions are channels-last by design. What
that is worth shows in two variants: this F with a copy to channels-first memory before each
convolution, and normflows' Glow (channels-first) moved to channels-last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import normflows
import torch
import torch.compiler.config
import tyro
from torch import Tensor, nn

from benchmarks.glow import normflows_glow
from fvae import Model, ModelConfig, bijections, build

Loss = Callable[[Tensor], Tensor]
"""uint8 images [B, C, H, W] → mean bits/dim or nats, a scalar to differentiate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Shape and length of the measurement."""

    side: int = 32
    """Height and width of the colour images."""
    levels: int = 3
    """Scales of both flows."""
    depth: int = 4
    """Flow steps per scale."""
    hidden: int = 128
    """Hidden channels of each coupling's network."""
    batch: int = 32
    """Images per step."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 40
    """Steps measured of each variant."""
    warmup: int = 3
    """Steps of each variant before measuring, at least 1."""
    compile: bool = True
    """Also measure torch.compile (needs a C++ compiler; about a minute)."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


@dataclasses.dataclass
class Variant:
    """One way of computing the loss, with its own weights and optimizer."""

    name: str
    model: nn.Module
    loss: Loss
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    seconds: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)

    def step(self, images: Tensor) -> None:
        """One whole training step."""
        with self.around():
            self.loss(images).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def measure(self, images: Tensor) -> None:
        """One step, timed."""
        started = time.perf_counter()
        self.step(images)
        self.seconds.append(time.perf_counter() - started)


def our_flow(settings: Settings) -> nn.Module:
    """This project's flow, convolution weights in channels-last memory as in training."""
    config = ModelConfig(
        family="flow",
        channels=3,
        height=settings.side,
        width=settings.side,
        flow_levels=settings.levels,
        flow_depth=settings.depth,
        coupling_width=settings.hidden,
        coupling="affine",
        mixing="plu",
    )
    return build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def mean_bits(model: nn.Module) -> Loss:
    """This project's loss."""
    return lambda images: model(images).mean()


def mean_nats(glow: normflows.MultiscaleFlow, memory_format: torch.memory_format) -> Loss:
    """normflows' loss on images dequantized alike."""

    def loss(images: Tensor) -> Tensor:
        x = (images + torch.rand(images.shape)) / 256 - 0.5
        return glow.forward_kld(x.contiguous(memory_format=memory_format))

    return loss


@contextlib.contextmanager
def channels_first() -> Iterator[None]:
    """Inside, every convolution of F reads a contiguous ``[B, C, H, W]`` copy."""
    original = bijections.convolve

    def convolve(layer: nn.Conv2d, x: Tensor, *, relu: bool = False) -> Tensor:
        y = layer(x.permute(0, 3, 1, 2).contiguous())
        return (y.relu_() if relu else y).permute(0, 2, 3, 1)

    bijections.convolve = convolve
    try:
        yield
    finally:
        bijections.convolve = original


def variants(settings: Settings) -> list[Variant]:
    """What is compared: normflows first, this project second."""
    sizes = (3, settings.side, settings.levels, settings.depth, settings.hidden)
    glow, glow_last = normflows_glow(*sizes), normflows_glow(*sizes)
    glow_last = glow_last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain, short, first = our_flow(settings), our_flow(settings), our_flow(settings)
    first = first.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    made = [
        Variant("normflows Glow", glow, mean_nats(glow, torch.contiguous_format)),
        Variant("fvae flow", plain, mean_bits(plain)),
        Variant("normflows Glow, channels-last", glow_last, mean_nats(glow_last, torch.channels_last)),
        Variant("fvae flow, channels-first copies", first, mean_bits(first), channels_first),
        Variant("fvae flow, bf16 autocast", short, mean_bits(short), lambda: torch.autocast("cpu", torch.bfloat16)),
    ]
    if settings.compile:
        compiled = our_flow(settings)
        made.append(Variant("fvae flow, torch.compile", compiled, mean_bits(torch.compile(compiled))))  # type: ignore[arg-type]
    return made


def warm_up(variant: Variant, images: Tensor, steps: int) -> float:
    """Seconds of the first ``steps`` steps."""
    started = time.perf_counter()
    for _ in range(steps):
        variant.step(images)
    return time.perf_counter() - started


def table(measured: list[Variant], batch: int) -> str:
    """Median and quartiles of images/s, and how many times normflows' speed."""
    width = max(len(variant.name) for variant in measured)
    lines = [f"{'':{width}}  {'parameters':>10}  {'images/s':>8}  {'quartiles':>15}  {'× normflows':>11}"]
    for variant in measured:
        rates = [batch / seconds for seconds in variant.seconds]
        low, median, high = statistics.quantiles(rates, n=4)
        ratio = statistics.median(
            theirs / ours for theirs, ours in zip(measured[0].seconds, variant.seconds, strict=True)
        )
        parameters = sum(parameter.numel() for parameter in variant.parameters)
        quartiles = f"{low:.1f} – {high:.1f}"
        lines.append(f"{variant.name:{width}}  {parameters:>10,}  {median:>8.1f}  {quartiles:>15}  {ratio:>10.2f}×")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    """Warm up, measure, print."""
    warnings.filterwarnings("ignore", message="torch.lu is deprecated")  # normflows' own
    torch.compiler.config.force_disable_caches = True  # seconds of a first compilation, every time
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    images = torch.randint(256, (settings.batch, 3, settings.side, settings.side), dtype=torch.uint8)
    load = os.getloadavg()[0]
    compared = variants(settings)
    for variant in compared:
        if isinstance(variant.model, Model):
            variant.model.initialize(images)  # ActNorm; normflows' own does it within the first step
    warmed = {variant.name: warm_up(variant, images, max(1, settings.warmup)) for variant in compared}
    for done in range(settings.rounds):
        for variant in compared:
            variant.measure(images)
        if sys.stderr.isatty():
            print(f"\rround {done + 1} of {settings.rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    report = [
        f"training step, {settings.side}×{settings.side}×3, {settings.levels} levels × {settings.depth} steps, "
        f"hidden {settings.hidden}, batch {settings.batch}, float32 unless said",
        f"{settings.threads} threads, load average {load:.1f} before, {platform.machine()}, "
        f"torch {torch.__version__}, {settings.rounds} rounds in turn",
        "",
        table(compared, settings.batch),
    ]
    if settings.compile:
        last = compared[-1]
        compiling = warmed[last.name] - max(1, settings.warmup) * statistics.median(last.seconds)
        report += ["", f"torch.compile: {compiling:.0f} s to compile, over all warm-up steps"]
    text = "\n".join(report)
    print(text)
    if settings.output:
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        settings.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

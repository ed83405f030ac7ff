"""Training steps by precision and way, beside normflows' Glow: a part of `benchmarks.gpu_report`.

FLOPs are those of the matrix products and convolutions, three times a forward pass, whatever is computed again; the
peak is what one large matrix product reaches here, in bf16 for bf16 and in TF32 for float32. Glow has the flow's
levels, depth and width, and no encoder.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import model
from fvae import ModelConfig, TrainConfig, Trainer
from fvae.flops import TRAINING_FACTOR, parameters_and_flops
from fvae.train_config import Precision

Append = Callable[[dict[str, Any]], None]
"""Keeps a measured row at once."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train the same model."""

    precision: Precision
    compiled: bool = False
    graph: bool = False


VARIANTS = {
    "float32": Variant("float32"),
    "float32, graph": Variant("float32", graph=True),
    "bf16": Variant("bf16"),
    "bf16, graph": Variant("bf16", graph=True),
    "bf16, compiled": Variant("bf16", compiled=True),
    "bf16, compiled, graph": Variant("bf16", compiled=True, graph=True),
}
"""What takes longest to warm up comes last: a part may be cut off."""
PEAKS = {"float32": "TF32", "bf16": "bf16"}
"""The matrix product that each precision's share is of; cuDNN convolves float32 in TF32."""
GLOW = {"normflows Glow, float32": "highest", "normflows Glow, TF32": "high"}
"""torch's float32 matrix-product precision of each."""


def smooth_images(count: int, shape: tuple[int, int, int], bins: int, seed: int) -> Tensor:
    """Low resolution, enlarged, with a little noise: there is something to learn. uint8 ``[count, C, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(count, channels, height // 4, width // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.rand(fine.shape, generator=generator)
    return ((0.9 * fine + 0.1 * noise) * bins).clamp(max=bins - 1).to(torch.uint8)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], times: int, device: str) -> float:
    """Of one run of ``work``, over ``times`` runs, the device waited for at both ends."""
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - started) / times


def matmul_flops(side: int, device: str) -> dict[str, float]:
    """FLOPs a second of a square matrix product: the best of five, by kind."""
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
        measured[kind] = 2 * side**3 / min(seconds(product, 10, device) for _ in range(5))
    torch.set_float32_matmul_precision(before)
    return measured


def measure(step: Callable[[], object], device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a step (the median over rounds), of the first steps, and the allocator's peak."""
    started = time.perf_counter()
    seconds(step, 6, device)  # compiling, choosing kernels, capturing a graph
    warm_up = time.perf_counter() - started
    measured = [seconds(step, steps, device) for _ in range(rounds)]
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else None  # a graph's memory is reserved alone
    return {"seconds": statistics.median(measured), "warm_up": warm_up, "peak_bytes": peak}


def our_step(config: ModelConfig, train: TrainConfig, variant: Variant, images: Tensor, device: str) -> Trainer:
    """A trainer at its first step."""
    train = dataclasses.replace(train, precision=variant.precision)
    return Trainer(config, train, images, images[:1], device, compile=variant.compiled, graph=variant.graph)


def glow_step(config: ModelConfig, batch: int, images: Tensor, device: str) -> tuple[Callable[[], None], int]:
    """A step of normflows' Glow, and its parameter count. Raises ``ImportError`` where normflows is not installed."""
    from benchmarks.glow import normflows_glow

    channels, side, _ = config.image_shape
    glow = normflows_glow(channels, side, config.flow_levels, config.flow_depth, config.coupling_width).to(device)
    parameters = list(glow.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-5, fused=True)
    pixels = images[:batch].to(device)

    def step() -> None:
        x = (pixels + torch.rand(pixels.shape, device=device)) / config.bins - 0.5
        glow.forward_kld(x).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(parameter.numel() for parameter in parameters)


def run(append: Append, device: str, *, quick: bool) -> None:
    """Measure every model and way, each row kept at once."""
    rounds, steps = (2, 1) if quick else (5, 10)
    peaks = matmul_flops(256 if quick else 8192, device)
    append({"kind": "peak", **peaks})
    names = ("tiny",) if quick else ("middle", "small", "paper")
    work = [(name, way) for way in (*GLOW, *VARIANTS) for name in names]
    for name, way in work:
        config, train = model(name)
        train = dataclasses.replace(train, epochs=10**6, learning_rate=1e-5)
        images = smooth_images(2 * train.batch_size, config.image_shape, config.bins, seed=0)
        row: dict[str, Any] = {"kind": "step", "model": name, "way": way, "batch": train.batch_size, "failure": None}
        before = torch.get_float32_matmul_precision()
        step: Any = None
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            if way in GLOW:
                torch.set_float32_matmul_precision(GLOW[way])
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=GLOW[way] == "high"):
                    step, parameters = glow_step(config, train.batch_size, images, device)
                    row |= measure(step, device, rounds, steps) | {"parameters": parameters}
            else:
                parameters, flops = parameters_and_flops(config)
                step = our_step(config, train, VARIANTS[way], images, device).train_step
                row |= measure(step, device, rounds, steps) | {"parameters": parameters}
                rate = TRAINING_FACTOR * flops * train.batch_size / row["seconds"]
                row |= {"flops_per_second": rate, "of_peak": rate / peaks[PEAKS[VARIANTS[way].precision]]}
        except (ImportError, RuntimeError) as error:  # what one way cannot do is a row, too
            row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        finally:
            torch.set_float32_matmul_precision(before)
            del step  # and with it the model: it would count as the next one's
        append(row)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of :func:`run`'s rows."""
    peak = next((row for row in rows if row["kind"] == "peak"), None)
    lines = []
    if peak:
        kinds = ("float32", "TF32", "bf16")
        lines.append("matrix product: " + ", ".join(f"{kind} {peak[kind] / 1e12:.1f} TFLOP/s" for kind in kinds))
    steps = [row for row in rows if row["kind"] == "step"]
    for name in dict.fromkeys(row["model"] for row in steps):
        lines.append(
            f"{name:32}{'parameters':>12}{'ms/step':>9}{'images/s':>10}{'× Glow':>8}{'of peak':>9}{'peak MiB':>10}"
            f"{'warm-up s':>11}"
        )
        of_model = [row for row in steps if row["model"] == name]
        glow = next((row["seconds"] for row in of_model if row["way"] == next(iter(GLOW)) and not row["failure"]), None)
        for row in of_model:
            if row["failure"]:
                lines.append(f"  {row['way']:30}{row['failure']}")
                continue
            ratio = f"{glow / row['seconds']:.2f}" if glow else "–"
            share = f"{row['of_peak']:.1%}" if "of_peak" in row else "–"
            memory = f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] is not None else "–"
            lines.append(
                f"  {row['way']:30}{row['parameters']:>12,}{1000 * row['seconds']:>9.2f}"
                f"{row['batch'] / row['seconds']:>10,.0f}{ratio:>8}{share:>9}{memory:>10}{row['warm_up']:>11.1f}"
            )
    return lines

"""A map of flow and f-VAE, its models trained side by side on one card: a part of `benchmarks.gpu_report`.

Each model has a CUDA stream of its own in one process, and its steps are CUDA graphs: launching one takes Python so
little time that the card works on several. How much that is worth is measured first, against one model after another
and against several processes, between which a card without MPS takes turns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_steps import Append, smooth_images, wait
from fvae import Manifest, ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.data.images import derived_seed
from fvae.data.shards import load_images
from fvae.evaluation import evaluate, standard_error

NETWORKS = {"posterior_scale": "network", "decoder_scale": "network"}
KINDS: dict[str, dict[str, Any]] = {
    "flow": {"family": "flow", "sigma1_init": 0.0, "dequantization": "variational"},
    "f-VAE, Gaussian": {"family": "fvae", "sigma1_init": 0.1 / 256, "sigma2_init": 0.1 / 256, **NETWORKS},
    "f-VAE, discretized": {
        "family": "fvae",
        "likelihood": "discretized",
        "sigma1_init": 8 / 256,
        "sigma2_init": 12 / 256,
        **NETWORKS,
    },
}
SIZES = (
    {"flow_depth": 1, "coupling_width": 10, "encoder_width": 4, "encoder_blocks": 0},
    {"flow_depth": 2, "coupling_width": 20, "encoder_width": 8, "encoder_blocks": 0},
    {"flow_depth": 4, "coupling_width": 30, "encoder_width": 13, "encoder_blocks": 1},
    {"flow_depth": 6, "coupling_width": 64, "encoder_width": 28, "encoder_blocks": 1},
    {"flow_depth": 6, "coupling_width": 64, "encoder_width": 48, "encoder_blocks": 2},
)
"""From 2 to 500 thousand parameters."""
TRIED = 30
"""Steps of each model by which packing is measured, and how many steps there is time for."""
PROCESSES = 4
"""Of the packing by processes."""
PROCESS_SECONDS = 60.0
"""How long they may take to start."""


def images_of(mnist: Path | None, *, quick: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images: MNIST, an ingested data set, or made ones."""
    if mnist is None:
        counts = (512, 64, 64) if quick else (20_000, 1_000, 1_000)
        train, val, test = (smooth_images(count, (1, 28, 28), 256, seed) for seed, count in enumerate(counts))
        return train, val, test
    manifest = Manifest.from_json((mnist / "manifest.json").read_bytes())
    read: Callable[[str], bytes] = lambda key: (mnist / key).read_bytes()  # noqa: E731
    train, val, test = (torch.from_numpy(load_images(manifest, split, read)) for split in ("train", "val", "test"))
    return train, val[:1_000], test


def models(*, quick: bool) -> dict[str, ModelConfig]:
    """What is trained, by a name."""
    shape = {"channels": 1, "height": 28, "width": 28, "bins": 256, "flow_levels": 2, "encoder_levels": 2}
    sizes = SIZES[:1] if quick else SIZES
    return {
        f"{kind} {number}": ModelConfig(**shape, **of, **size)  # type: ignore[arg-type]
        for kind, of in KINDS.items()
        for number, size in enumerate(sizes)
    }


def made(
    configs: dict[str, ModelConfig], train: Tensor, val: Tensor, steps: int, batch: int, device: str
) -> list[Trainer]:
    """A trainer for each model, of so many steps in epochs of the training images."""
    epochs = max(1, steps * batch // len(train))
    few = train[: steps * batch] if epochs == 1 else train
    settings = TrainConfig(epochs=epochs, batch_size=batch, learning_rate=8e-3, sigma_learning_rate=0.03)
    return [Trainer(config, settings, few, val, device, graph=device == "cuda") for config in configs.values()]


def step_in_turn(
    trainers: Sequence[Trainer], steps: int, streams: Sequence[Any], failures: dict[int, str] | None = None
) -> None:
    """So many steps of each, each in its stream. One that diverges is left out from then on, with its reason."""
    failures = {} if failures is None else failures
    for _ in range(steps):
        for number, (trainer, stream) in enumerate(zip(trainers, streams, strict=True)):
            if number not in failures:
                with stream_of(stream):
                    try:
                        trainer.train_step()
                    except NonFiniteError as error:
                        failures[number] = str(error)


def stream_of(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, work goes to a CUDA stream; None: where it always goes."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def seconds_in_processes(device: str, *, quick: bool, mnist: Path | None) -> float | None:
    """Seconds of a step of every model, which are shared out among processes; None where these did not all start."""
    context = multiprocessing.get_context("spawn")
    count, tried = (2, 2) if quick else (PROCESSES, TRIED)
    barrier = context.Barrier(count + 1)
    processes = [
        context.Process(target=_step_a_part, args=(barrier, rank, count, tried, device, quick, mnist))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        barrier.wait(PROCESS_SECONDS)
        begun = time.perf_counter()
        barrier.wait(PROCESS_SECONDS)
        return (time.perf_counter() - begun) / tried
    except threading.BrokenBarrierError:
        return None
    finally:
        for process in processes:
            process.join(PROCESS_SECONDS)
            process.kill()


def _step_a_part(barrier: Any, rank: int, count: int, tried: int, device: str, quick: bool, mnist: Path | None) -> None:
    """What one of the processes does: so many steps of every ``count``-th model, between two barriers."""
    torch.set_num_threads(1)  # of the CPU, on which the processes would be in each other's way
    train, val, _ = images_of(mnist, quick=quick)
    configs = dict(list(models(quick=quick).items())[rank::count])
    trainers = made(configs, train, val, tried + 6, 64, device)
    streams = [torch.cuda.Stream() if device == "cuda" else None for _ in trainers]
    wait(device)
    step_in_turn(trainers, 5, streams)
    wait(device)
    barrier.wait(PROCESS_SECONDS)
    step_in_turn(trainers, tried, streams)
    wait(device)
    barrier.wait(PROCESS_SECONDS)


def run(append: Append, device: str, *, quick: bool, mnist: Path | None, seconds: float) -> None:
    """Measure packing, train every model for what is left of ``seconds``, read the test images; each row at once."""
    started = time.perf_counter()
    train, val, test = images_of(mnist, quick=quick)
    configs, batch = models(quick=quick), 64
    tried = 2 if quick else TRIED
    streams = [torch.cuda.Stream() if device == "cuda" else None for _ in configs]
    trainers = made(configs, train, val, 4 * tried + 8, batch, device)
    wait(device)  # the streams do not
    step_in_turn(trainers, 5, streams)  # libraries load, graphs are captured
    times = {}
    for way, given in (("one after another", [None] * len(trainers)), ("side by side", streams)):
        wait(device)
        begun = time.perf_counter()
        step_in_turn(trainers, tried, given)
        wait(device)
        times[way] = (time.perf_counter() - begun) / tried
    if (together := seconds_in_processes(device, quick=quick, mnist=mnist)) is not None:
        times["in processes"] = together
    append({"kind": "packing", "models": len(trainers), "seconds": times})
    del trainers
    left = seconds - (time.perf_counter() - started)
    steps = max(4, int(0.6 * left / times["side by side"]))
    trainers = made(configs, train, val, steps, batch, device)
    wait(device)
    begun = time.perf_counter()
    failures: dict[int, str] = {}
    step_in_turn(trainers, trainers[0].config.epochs * trainers[0].steps_per_epoch - 1, streams, failures)
    wait(device)
    trained = time.perf_counter() - begun
    for number, ((name, config), trainer) in enumerate(zip(configs.items(), trainers, strict=True)):
        row: dict[str, Any] = {"kind": "model", "name": name, "parameters": trainer.model.parameter_count()}
        row |= {"config": config.to_dict(), "steps": trainer.step + 1, "seconds_of_all": trained}
        row["failure"] = failures.get(number)
        if row["failure"]:
            append(row)
            continue
        try:
            row["val_bpd"] = trainer.train_epoch().val_bpd  # its last step, and the validation
            noise = derived_seed(0, "test")
            one = evaluate(trainer.best_model(), test, seed=noise)
            many = evaluate(trainer.best_model(), test[:1_000], k=64, seed=noise)
            row |= {"k1": float(one.mean()), "k1_error": standard_error(one), "k64": float(many.mean())}
        except NonFiniteError as error:
            row["failure"] = str(error)
        append(row)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of :func:`run`'s rows."""
    lines = []
    for row in rows:
        if row["kind"] == "packing":
            first = row["seconds"]["one after another"]
            ways = (f"{1000 * each:.1f} ms {way} ({first / each:.2f} ×)" for way, each in row["seconds"].items())
            lines.append(f"{row['models']} models, a step of each: {', '.join(ways)}")
            lines.append(f"{'':24}{'parameters':>12}{'steps':>8}{'validation':>12}{'test, k = 1':>17}{'k = 64':>9}")
        elif row["failure"]:
            lines.append(f"  {row['name']:22}{row['parameters']:>12,}  {row['failure']}")
        else:
            test = f"{row['k1']:.3f} ± {row['k1_error']:.3f}"
            lines.append(
                f"  {row['name']:22}{row['parameters']:>12,}{row['steps']:>8,}{row['val_bpd']:>12.3f}{test:>17}"
                f"{row['k64']:>9.3f}"
            )
    return lines

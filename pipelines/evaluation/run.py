"""Runs an evaluation: measures what is missing, draws pictures, writes the report."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError, require
from fvae.data.images import Dataset, image_source
from fvae.flops import parameters_and_flops
from fvae.model import Model
from pipelines.cli.progress import Steps, WarningLines
from pipelines.data.datasets import describe
from pipelines.evaluation.image_scores import BITS, KeptReadings, Measured, Reading, measure
from pipelines.evaluation.pictures import PICTURES, pictures
from pipelines.evaluation.report import REPORT, figures, read_report, software, write_report
from pipelines.evaluation.settings import EvaluateSettings
from pipelines.storage import Storage


def evaluation(
    settings: EvaluateSettings,
    model: Model,
    dataset: Dataset,
    storage: Storage,
    identity: dict[str, Any],
    console: Console,
    notices: WarningLines,
    guard: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The report: the one that is there if it is of this very evaluation, else made now, from what is kept.

    ``guard`` is called before each write; it raises where this process may no longer write there. Raises
    ``NonFiniteError``, ``ConfigError`` where the place holds another evaluation.
    """
    require(
        storage.exists(BITS) or not any(storage.exists(name) for name in PICTURES),
        f"--output={storage.uri}: holds pictures of something else; give another place",
    )
    if settings.again:
        guard()
        storage.delete(*PICTURES, REPORT, BITS)
    kept = KeptReadings(storage, identity, guard)
    asked = {
        "identity": identity,
        "k": list(settings.k),
        "noise_seeds": settings.noise_seeds,
        "pictures": settings.pictures(),
    }
    report = read_report(storage)
    if report is not None and report.get("asked") == asked and all(storage.exists(name) for name in report["files"]):
        return report
    readings = [Reading(k, noise) for k in settings.k for noise in range(settings.noise_seeds)]
    missing = [reading for reading in readings if kept.get(reading) is None]
    if missing:
        measure_missing(settings, model, dataset, kept, missing, console, notices)
    files = [BITS]
    with console.status("Drawing …"):
        source = image_source(dataset.images(settings.split))
        for name, content in pictures(model, source, seed=settings.seed, **settings.pictures()):
            guard()
            storage.write(name, content)
            files.append(name)
    parameters, flops = parameters_and_flops(model.config)
    report = {
        "asked": asked,
        "model": {
            "location": settings.model,
            "weights": identity["weights"],
            "family": model.config.family,
            "parameters": parameters,
            "flops_per_image": flops,
            "config": model.config.to_dict(),
        },
        "dataset": {**describe(dataset), "location": settings.dataset, "split": settings.split},
        "results": results(settings, kept),
        "software": software(),
        "files": files,
    }
    guard()
    write_report(storage, report)
    return report


def results(settings: EvaluateSettings, kept: KeptReadings) -> list[dict[str, Any]]:
    """A result per k, as :func:`figures` makes it from all its readings."""
    found = []
    for k in settings.k:
        readings = [Reading(k, noise) for noise in range(settings.noise_seeds)]
        done = [measured for reading in readings if (measured := kept.get(reading)) is not None]
        found.append(figures(done, [reading.seed(settings.seed, settings.split) for reading in readings]))
    return found


def measure_missing(
    settings: EvaluateSettings,
    model: Model,
    dataset: Dataset,
    kept: KeptReadings,
    missing: Sequence[Reading],
    console: Console,
    notices: WarningLines,
) -> None:
    """Measure, and keep each reading as it is done."""
    images = dataset.images(settings.split)
    total = len(image_source(images)) * sum(reading.k for reading in missing)

    def keep(measured: Measured) -> None:
        kept.add(measured)
        k, noise = measured.reading
        console.print(
            f"k = {k}, noise {noise + 1} of {settings.noise_seeds}: {measured.bits.mean():.4f} bits/dim "
            f"({measured.seconds:.1f} s)",
            highlight=False,
        )

    step = Steps(console).step("Measuring", total, "samples")
    if settings.workers == 1:
        with step as advance:
            for measured in measure(model, images, missing, seed=settings.seed, split=settings.split, advance=advance):
                keep(measured)
        return
    notices.say(f"Starting {settings.workers} workers …")
    from pipelines.evaluation.job import EvaluationJob  # Ray takes seconds to import

    with contextlib.ExitStack() as stack:
        started = functools.cache(lambda: stack.enter_context(step))  # by the first that is done: workers start slowly
        EvaluationJob(
            model,
            dataset,
            missing,
            seed=settings.seed,
            split=settings.split,
            resources=settings.resources(),
            keep=keep,
            advance=lambda samples: started()(samples),
            say=notices.say,
        ).run()


def device_of(settings: EvaluateSettings) -> str:
    """Where the model runs. Raises ``ConfigError`` where there is no GPU and one was asked for."""
    if settings.workers > 1:
        return "cuda" if settings.gpus_per_worker else "cpu"
    there = torch.cuda.is_available()
    require(settings.device != "cuda" or there, "--device cuda: no GPU that torch can use; --device cpu works")
    return "cuda" if there and settings.device != "cpu" else "cpu"


def require_fit(settings: EvaluateSettings, model: Model, dataset: Dataset) -> None:
    """Raise ``ConfigError`` unless the model is for images such as the data set's."""
    config = model.config
    mine, theirs = (config.image_shape, config.bins), (tuple(dataset.shape), dataset.bins)
    if mine != theirs:
        raise ConfigError(
            f"--model {settings.model}: for images of {_images(*mine)}; --dataset {settings.dataset} has images of "
            f"{_images(*theirs)}"
        )


def _images(shape: tuple[int, ...], bins: int) -> str:
    channels, height, width = shape
    return f"{width}×{height}×{channels}, {bins} levels"

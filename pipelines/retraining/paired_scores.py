"""Paired scores: challenger and champion on the same test images, with the same noise; kept until the decision."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from fvae.data.images import Dataset, image_source
from fvae.model import Model
from pipelines.cli.progress import Steps
from pipelines.evaluation.image_scores import KeptReadings, Measured, Reading, measure
from pipelines.evaluation.model_lookup import weights_digest
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import Storage

SPLIT = "test"


class Bits(NamedTuple):
    """Bits/dim of a model, by k: float64 ``[noise seeds, images]``."""

    by_k: dict[int, np.ndarray]

    def mean(self, k: int) -> float:
        """Mean over noise seeds and images."""
        return float(self.by_k[k].mean())


class Scorer:
    """Measures models on the test images of one data set."""

    def __init__(self, settings: RetrainSettings, dataset: Dataset, kept: Storage | None, console: Console) -> None:
        """``kept`` is the storage of readings for the next start of the job; None: they are not kept."""
        self._settings, self._dataset, self._kept, self._console = settings, dataset, kept, console

    def score(self, model: Model, what: str) -> Bits:
        """Measure a model, or return its kept scores. Raises ``NonFiniteError``, and what workers and stores raise."""
        settings = self._settings
        readings = [Reading(k, noise) for k in settings.k for noise in range(settings.noise_seeds)]
        on_workers = settings.workers > 1 or settings.gpus_per_worker > 0
        device = "cuda" if settings.gpus_per_worker or (not on_workers and torch.cuda.is_available()) else "cpu"
        digest = weights_digest(model)
        identity = {"weights": digest, "dataset": self._dataset.content_hash(), "split": SPLIT}
        identity |= {"seed": str(settings.seed), "device": device}
        done: dict[Reading, Measured] = {}
        kept = None
        if self._kept is not None:
            # One folder for each identity: other settings are measured separately, never refused.
            kept = KeptReadings(self._kept.child("-".join(identity.values())), identity)
            done = {reading: found for reading in readings if (found := kept.get(reading)) is not None}
        missing = [reading for reading in readings if reading not in done]

        def keep(measured: Measured) -> None:
            done[measured.reading] = measured
            if kept is not None:
                kept.add(measured)

        if missing:
            model.to(device if not on_workers else "cpu")
            self._measure(model, what, missing, keep, on_workers)
            model.to("cpu")
        return Bits({k: np.stack([done[each].bits for each in readings if each.k == k]) for k in settings.k})

    def _measure(
        self, model: Model, what: str, missing: list[Reading], keep: Callable[[Measured], None], on_workers: bool
    ) -> None:
        settings, images = self._settings, self._dataset.images(SPLIT)
        total = len(image_source(images)) * sum(reading.k for reading in missing)
        step = Steps(self._console).step(f"Measuring the {what}", total, "samples")
        if not on_workers:
            with step as advance:
                for measured in measure(model, images, missing, seed=settings.seed, split=SPLIT, advance=advance):
                    keep(measured)
            return
        from pipelines.evaluation.job import EvaluationJob  # Ray takes seconds to import

        with contextlib.ExitStack() as stack:
            started = functools.cache(lambda: stack.enter_context(step))  # by the first that is done
            EvaluationJob(
                model,
                self._dataset,
                missing,
                seed=settings.seed,
                split=SPLIT,
                resources=settings.measuring(),
                keep=keep,
                advance=lambda samples: started()(samples),
                say=lambda line: self._console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True),
            ).run()

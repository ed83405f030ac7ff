"""Bits/dim of any model on any split, with standard errors, and pictures of what it makes of images.

    python -m pipelines.evaluate --model runs/digits/trials/0007-fvae
    python -m pipelines.evaluate --model models:/fvae-mnist@champion --dataset s3://bucket/mnist --k 1 64 256
    python -m pipelines.evaluate --model training.safetensors --dataset photos --split val --workers 3

Results lie in evaluations/<data set>-<split>/<model>-<weights>/ (or where --output says): evaluation.json, bits.parquet
(a row per image), samples.png, reconstructions.png, interpolations.png and temperatures.png.
"""

from __future__ import annotations

import sys

import torch

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.evaluation import NonFiniteError
from pipelines.cli import command_line
from pipelines.cli.progress import WarningLines
from pipelines.cli.terminal import make_console
from pipelines.data.datasets import load_dataset
from pipelines.evaluation.model_lookup import as_name, open_model, short_name, weights_digest
from pipelines.evaluation.report import table
from pipelines.evaluation.run import device_of, evaluation, require_fit
from pipelines.evaluation.settings import EvaluateSettings
from pipelines.storage import open_storage
from pipelines.storage.lease import exclusive


def main(settings: EvaluateSettings) -> int:
    """Measure, draw, show. Returns the exit status."""
    console = make_console()
    device = device_of(settings)
    if settings.workers == 1 and settings.cpus_per_worker:
        torch.set_num_threads(settings.cpus_per_worker)
    with WarningLines(console) as notices:
        model = open_model(settings.model, settings.runs).float()
        model.to(device if torch.cuda.is_available() else "cpu")  # several workers have their own
        dataset = load_dataset(settings.dataset, settings.streaming, notices.say)
        require_fit(settings, model, dataset)
        digest = weights_digest(model)
        storage = open_storage(
            settings.output
            or f"evaluations/{as_name(dataset.name)}-{settings.split}/{short_name(settings.model)}-{digest[:8]}"
        )
        identity = {
            "weights": digest,
            "dataset": dataset.content_hash(),
            "split": settings.split,
            "seed": settings.seed,
            "device": device,
        }
        try:
            with exclusive(storage) as lease:
                storage.clean_up()  # what a killed evaluation was about to write
                report = evaluation(settings, model, dataset, storage, identity, console, notices, lease.check)
        except NonFiniteError as error:
            sys.stdout.flush()
            print(f"error: {settings.model}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            line = "Interrupted. The same command goes on where it stopped; nothing finished is lost."
            console.print(line, soft_wrap=True, highlight=False)
            return 1
    console.print(table(report), highlight=False)
    console.print(f"Report and pictures in {storage.uri}", soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    command_line.run(main, EvaluateSettings)

"""The report of an evaluation: ``evaluation.json`` and the table on the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import fvae
from fvae.files import parse_json
from pipelines.evaluation.image_scores import Measured
from pipelines.storage import Storage

REPORT = "evaluation.json"
FAMILY_NAMES = {"fvae": "f-VAE", "flow": "flow", "vae": "VAE"}


def figures(measured: Sequence[Measured], seeds: Sequence[int]) -> dict[str, Any]:
    """The result for one k from its readings, whose noise had ``seeds``.

    - ``bits_per_dim``: the mean over images and readings;
    - ``standard_error_images``: of the mean over images, from each image's mean over the readings: how much another
      set of images would change the figure;
    - ``standard_error_noise``: of the mean over readings, from each reading's mean over the images: how much other
      noise would. Both ``None`` where there is one image, or one reading.
    """
    bits = np.stack([each.bits for each in measured])  # [readings, images]
    return {
        "k": measured[0].reading.k,
        "bits_per_dim": float(bits.mean()),
        "standard_error_images": _standard_error(bits.mean(axis=0)),
        "standard_error_noise": _standard_error(bits.mean(axis=1)),
        "images": bits.shape[1],
        "seconds": sum(each.seconds for each in measured),
        "readings": [
            {
                "noise": each.reading.noise,
                "seed": seed,
                "bits_per_dim": float(each.bits.mean()),
                "seconds": each.seconds,
            }
            for each, seed in zip(measured, seeds, strict=True)
        ],
    }


def software() -> dict[str, str]:
    """Versions on which figures may depend."""
    return {
        "fvae": fvae.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_report(storage: Storage) -> dict[str, Any] | None:
    """The report there, if there is a whole one."""
    try:
        return parse_json(storage.read(REPORT), f"{storage.uri}/{REPORT}")
    except (FileNotFoundError, ValueError):
        return None


def write_report(storage: Storage, report: Mapping[str, Any]) -> None:
    """Write ``evaluation.json``, whole or not at all."""
    storage.write(REPORT, (json.dumps(report, indent=1) + "\n").encode())


def table(report: Mapping[str, Any]) -> RenderableType:
    """The report for a terminal."""
    model, data = report["model"], report["dataset"]
    about = (
        f"{FAMILY_NAMES[model['family']]} of {model['parameters']:,} parameters (weights {model['weights']})\n"
        f"on the {data['split']} images of {data['name']} (hash {data['hash']})"
    )
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("k", "bits/dim", "± images", "± noise", "images", "seeds", "seconds"):
        rows.add_column(name, justify="right", no_wrap=True)
    for result in report["results"]:
        rows.add_row(
            str(result["k"]),
            f"{result['bits_per_dim']:.4f}",
            _digits(result["standard_error_images"]),
            _digits(result["standard_error_noise"]),
            f"{result['images']:,}",
            str(len(result["readings"])),
            f"{result['seconds']:.1f}",
        )
    note = "± are standard errors: over images, and over seeds of noise"
    return Group(Text(about), rows, Text(note, style="dim"))


def _standard_error(means: np.ndarray) -> float | None:
    return float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else None


def _digits(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"

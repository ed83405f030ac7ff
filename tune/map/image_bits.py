"""Bits/dim of every test image, of the models that have been read: what a difference owes to the images."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor

from pipelines.storage import Storage
from tune.statistics.pareto import Floats

IMAGE_BITS = "test_bits.safetensors"
"""In a trial's storage: ``bpd``, k = 1, float32 ``[images]``."""


def keep_image_bits(trial: Storage, bits: Tensor) -> None:
    """Write bits/dim ``[images]``. Raises ``OSError`` where it cannot."""
    trial.write(IMAGE_BITS, save({"bpd": bits.numpy().astype(np.float32)}))


def image_bits(trial: Storage) -> Floats | None:
    """What :func:`keep_image_bits` wrote ``[images]``; None where nothing was, as by earlier versions."""
    try:
        return load(trial.read(IMAGE_BITS))["bpd"].astype(np.float64)
    except FileNotFoundError:
        return None

"""Scores on the test split, which is read once: the bits/dim of a model, with standard errors, and of every image."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from pipelines.storage import Storage

IMAGE_BITS = "test_bits.safetensors"
"""A file in a trial's storage: ``bpd``, k = 1, float32 ``[images]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestResult:
    """The one reading of the test split, for a model of a front."""

    __test__ = False  # pytest would take it for a test class by its name

    bpd: float
    """Bits/dim, k = 1."""
    bpd_iwae64: float
    """Bits/dim, k = 64."""
    standard_error: float
    """Standard error of ``bpd`` over the images."""
    standard_error_iwae64: float
    """Standard error of ``bpd_iwae64`` over the images."""
    seed: int
    """Seed of the noise."""


def keep_image_bits(trial: Storage, bits: Tensor) -> None:
    """Write bits/dim ``[images]``. Raises ``OSError`` where it cannot."""
    trial.write(IMAGE_BITS, save({"bpd": bits.numpy().astype(np.float32)}))


def image_bits(trial: Storage) -> NDArray[np.float64] | None:
    """What :func:`keep_image_bits` wrote ``[images]``; None where nothing was, as by earlier versions."""
    try:
        return load(trial.read(IMAGE_BITS))["bpd"].astype(np.float64)
    except FileNotFoundError:
        return None

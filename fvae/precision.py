"""Contexts of full float32 precision, without autocast and TF32, whatever the user's settings are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """No autocast inside, on any device (the meta device, which counts FLOPs, knows none)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def true_float32(device_type: str) -> Iterator[None]:
    """No autocast inside, and no TF32, which cuDNN uses for convolutions by default and cuBLAS where a user lets it."""
    # torch has an older way to say so (set_float32_matmul_precision), which fails where a user took this one.
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        with full_precision(device_type), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for place in places:
                place.fp32_precision = "ieee"
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision

"""Where float32 must be float32, whatever autocast and the user's settings give the rest."""

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
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with full_precision(device_type), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

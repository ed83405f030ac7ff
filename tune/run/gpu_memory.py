"""What of a card's memory a process may take. Without Ray Tune: its import costs a second."""

from __future__ import annotations

import ray
import torch

CONTEXT_BYTES = 2**30
"""What a process takes on a card besides its tensors: CUDA's context, and the libraries' kernels."""


def keep_to_share(device: str) -> float:
    """Let this process take no more of its card's memory than its share, which Ray counts and does not enforce: one
    that wants more fails alone, and not whoever comes after it. Returns the share.
    """
    if device != "cuda":
        return 1.0
    share = assigned_share()
    if share < 1:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total, share / 2))
    return share


def assigned_share() -> float:
    """GPUs of this process's task or actor, as Ray has assigned them; in a placement group they have longer names."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return max((count for name, count in assigned.items() if name == "GPU" or name.startswith("GPU_group_")), default=0)

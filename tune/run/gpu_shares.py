"""``--gpus-per-trial auto``: the share of a card that a trial needs, by the memory of its model.

Counted before it trains (:mod:`fvae.memory`), and corrected by what earlier trials took. A module without Ray Tune,
whose import would cost each process that reads the test split a second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fvae.config import ConfigError, ModelConfig
from fvae.memory import training_memory
from fvae.train_config import Precision

CONTEXT_BYTES = 2**30
"""What a process takes on a card besides its tensors: CUDA's context, and the libraries' kernels."""
SAFETY = 1.25
"""Factor for what the allocator rounds up and cannot use, and for libraries' scratch space."""
FINEST = 10_000
"""Ray counts resources in parts of this size."""
A_LITTLE = 0.01
"""The share of a card that asking for its memory takes: one that trials use still has it to spare."""
CARD_SECONDS = 60.0
"""How long a node may take to report its card's memory."""


class GpuShares:
    """Shares of the cluster's smallest card, each a power of two: 1, 1/2, 1/4, …, so that they fill a card."""

    def __init__(self, card_bytes: int, held_bytes: int) -> None:
        """``held_bytes``: of the images that every trial holds on its card."""
        self.card_bytes, self.held_bytes = card_bytes, held_bytes
        self.uncounted_bytes = 0
        """The most that a trial has taken above what was counted for it."""
        self._least: list[tuple[int, int]] = []  # bytes as counted, and the power of ½ that models of so many get

    def share(self, model: dict[str, Any], train: dict[str, Any]) -> float:
        """The share for a trial, by its ``ModelConfig`` and ``TrainConfig`` as dictionaries; at most a whole card."""
        counted = self.counted(model, train)
        needed = CONTEXT_BYTES + self.uncounted_bytes + SAFETY * counted
        halvings = max(0, math.floor(math.log2(self.card_bytes / needed)))
        halvings = min([halvings, *(most for size, most in self._least if counted >= size)])
        return math.floor(2.0**-halvings * FINEST) / FINEST  # rounded up, 32 trials of 1/32 would not fit

    def measured(self, model: dict[str, Any], train: dict[str, Any], peak_bytes: int) -> None:
        """A trial's tensors took so much: what was not counted of it is added to later trials' shares."""
        self.uncounted_bytes = max(self.uncounted_bytes, peak_bytes - self.counted(model, train))

    def exceeded(self, model: dict[str, Any], train: dict[str, Any], share: float) -> None:
        """A share did not hold a trial: it, and whatever is counted as large, gets twice that from now on."""
        self._least.append((self.counted(model, train), max(0, -round(math.log2(share)) - 1)))

    def counted(self, model: dict[str, Any], train: dict[str, Any]) -> int:
        """Bytes of a trial's tensors, as counted."""
        samples = train.get("validation_samples", 1)
        config = ModelConfig.from_dict(model)
        return self.held_bytes + _tensor_bytes(config, train["batch_size"], train["precision"], samples)


def smallest_card_bytes(nodes: Sequence[dict[str, Any]]) -> int:
    """Memory of the smallest of the nodes' cards; of each node one is asked, and its others taken to be like it.

    ``nodes`` as ``ray.nodes()`` has them. Raises ``ConfigError`` where there is none, or none that answers.
    """
    asked = ray.remote(num_cpus=0, num_gpus=A_LITTLE, max_calls=1)(_card_bytes)  # its process leaves the card again
    answers = [
        asked.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
        if node["Resources"].get("GPU", 0)
    ]
    if not answers:
        raise ConfigError("--gpus-per-trial=auto: there is no GPU; give 0")
    try:
        return min(ray.get(answers, timeout=CARD_SECONDS))
    except (RayError, RuntimeError) as error:
        why = str(error).strip().splitlines()[-1]
        raise ConfigError(f"--gpus-per-trial=auto: a GPU does not report its memory ({why}); give a number") from error


def _card_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


@functools.lru_cache(maxsize=1024)
def _tensor_bytes(model: ModelConfig, batch_size: int, precision: Precision, validation_samples: int) -> int:
    memory = training_memory(model, batch_size, precision=precision, validation_samples=validation_samples)
    return memory.total_with_graph


def limit_to_share(device: str) -> float:
    """Let this process take no more of its card's memory than its share, which Ray counts and does not enforce: one
    that needs more fails alone, and not the processes after it. Returns the share.
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

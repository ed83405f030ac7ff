"""Memory of a training, counted from fake tensors before it starts.

>>> training_memory(config, 32, checkpoint_activations=True).total / 2**30   # GiB
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fvae.activation_checkpointing import set_activation_checkpointing
from fvae.config import ModelConfig, require_choice, require_integer
from fvae.iwae import iwae_bits_per_dim
from fvae.model import Model, build, images_at_once
from fvae.train_config import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of tensors that a :class:`fvae.Trainer` needs at once.

    On top come the process itself, images held in memory, what a library takes as scratch space and, on a GPU,
    the context and what the allocator rounds up.
    """

    weights: int
    """Parameters and buffers."""
    gradients: int
    """One per parameter."""
    optimizer: int
    """Adam's two moments."""
    averaged: int
    """The averaged weights now, and those of the best epoch."""
    activations: int
    """Most at any moment of a forward and backward pass: what autograd keeps and what layers need in passing."""
    evaluation: int
    """Most at any moment of scoring :func:`fvae.model.images_at_once` validation images with all their noise samples,
    without gradients."""

    @property
    def total(self) -> int:
        """Training and evaluation take turns: the larger counts."""
        return self._states + max(self.activations, self.evaluation)

    @property
    def total_with_graph(self) -> int:
        """The memory of a CUDA graph stays its own while the model is evaluated: both count."""
        return self._states + self.activations + self.evaluation

    @property
    def _states(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averaged


def training_memory(
    config: ModelConfig,
    images: int,
    *,
    precision: Precision = "float32",
    checkpoint_activations: bool = False,
    validation_samples: int = 1,
) -> TrainingMemory:
    """What training ``config`` takes with ``images`` images in a forward pass (the micro-batch of one worker).

    Every operation of a training step runs on fake tensors, which have shapes and no data: nothing is allocated, and
    no random state moves. Raises ``ConfigError`` for less than one image or an unknown precision.
    """
    require_integer("images", images, 1)
    require_choice("precision", precision, get_args(Precision))
    with FakeTensorMode(), torch.enable_grad():
        # 256 levels need no look at the pixels, which are not there; an ActNorm that is not set needs none either.
        model = build(dataclasses.replace(config, bins=256)).eval()
        set_activation_checkpointing(model, checkpoint_activations)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)  # counted apart, and whole
        weights = _bytes(model.state_dict().values())
        trained = _bytes(parameters)
        with _LiveBytes(model) as training:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model.bits_per_dim(_pixels(config, images)).mean()
            loss.backward()
        with _LiveBytes(model) as scoring:
            iwae_bits_per_dim(model, _pixels(config, images_at_once(config)), k=1, samples=validation_samples)
    return TrainingMemory(
        weights=weights,
        gradients=trained,
        optimizer=2 * trained,
        averaged=2 * weights,
        activations=training.peak,
        evaluation=scoring.peak,
    )


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside make, from their making until nothing refers to them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        # Storage objects live as long as what they stand for, so that an id is one storage.
        self._counted = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._counted:
            return
        self._counted.add(id(storage))
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _forget(self, identity: int, nbytes: int) -> None:
        self._counted.discard(identity)
        self.live -= nbytes


def _pixels(config: ModelConfig, images: int) -> Tensor:
    return torch.empty(images, *config.image_shape, dtype=torch.uint8)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

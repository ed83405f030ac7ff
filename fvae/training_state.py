"""Training checkpoint: everything that a training needs to go on, as one safetensors file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvae.checkpoint import read_tensors, write_tensors
from fvae.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A copy of a training at one step, which may be written in the background while the training goes on.

    ``tensors`` have prefixes: ``model/``, ``ema/`` and ``best/`` weights, ``optimizer/INDEX/`` moments,
    ``generator``, ``sums``. ``metadata`` is JSON-ready: the configs, the step, what was measured so far.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.metadata["step"])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one prefix, by the rest of their names."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def write(self, path: str | Path) -> None:
        """Write one safetensors file, whole or absent."""
        write_tensors(Path(path), self.tensors, self.metadata)

    @classmethod
    def read(cls, path: str | Path, device: str | torch.device = "cpu") -> TrainingState:
        """Read what :meth:`write` wrote. Raises ``ConfigError`` for a damaged file or one that is no training's."""
        tensors, metadata = read_tensors(Path(path), device)
        if not {"model", "train", "step"} <= set(metadata):
            raise ConfigError(f"{path}: not a training's checkpoint")
        return cls(tensors=tensors, metadata=metadata)

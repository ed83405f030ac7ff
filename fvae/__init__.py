"""f-VAE (arXiv 1809.05861), plain flow and plain VAE as choices of one objective, in true bits/dim.

>>> from fvae import ModelConfig, build
>>> model = build(ModelConfig(family="fvae", channels=1, height=8, width=8, bins=17))
>>> model.bits_per_dim(images)          # uint8 [B, 1, 8, 8] → [B]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fvae.checkpoint import load, save
    from fvae.config import ConfigError, ModelConfig
    from fvae.data.images import ImageDataset
    from fvae.data.manifest import Manifest
    from fvae.data.streaming import ShardedImages, StreamedDataset
    from fvae.evaluation import NonFiniteError, evaluate
    from fvae.iwae import iwae_bits_per_dim
    from fvae.model import Model, build
    from fvae.train import EpochMetrics, Trainer
    from fvae.train_config import TrainConfig

__all__ = [
    "ConfigError",
    "EpochMetrics",
    "ImageDataset",
    "Manifest",
    "Model",
    "ModelConfig",
    "NonFiniteError",
    "ShardedImages",
    "StreamedDataset",
    "TrainConfig",
    "Trainer",
    "build",
    "evaluate",
    "iwae_bits_per_dim",
    "load",
    "save",
]

_MODULES = {
    "checkpoint": ("load", "save"),
    "config": ("ConfigError", "ModelConfig"),
    "data.images": ("ImageDataset",),
    "data.manifest": ("Manifest",),
    "data.streaming": ("ShardedImages", "StreamedDataset"),
    "evaluation": ("NonFiniteError", "evaluate"),
    "iwae": ("iwae_bits_per_dim",),
    "model": ("Model", "build"),
    "train": ("EpochMetrics", "Trainer"),
    "train_config": ("TrainConfig",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds, and commands that need none are quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

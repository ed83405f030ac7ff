"""f-VAE (arXiv 1809.05861), plain flow and plain VAE as choices of one objective, in true bits/dim.

>>> from fvae import ModelConfig, build
>>> model = build(ModelConfig(family="fvae", channels=1, height=8, width=8, bins=17))
>>> model.bits_per_dim(images)          # uint8 [B, 1, 8, 8] → [B]
"""

from fvae.checkpoint import load, save
from fvae.config import ConfigError, ModelConfig
from fvae.data import ImageDataset
from fvae.evaluate import NonFiniteError, evaluate
from fvae.model import Model, build, iwae_bits_per_dim
from fvae.train import EpochMetrics, Trainer
from fvae.train_config import TrainConfig

__all__ = [
    "ConfigError",
    "EpochMetrics",
    "ImageDataset",
    "Model",
    "ModelConfig",
    "NonFiniteError",
    "TrainConfig",
    "Trainer",
    "build",
    "evaluate",
    "iwae_bits_per_dim",
    "load",
    "save",
]

"""Configuration of a training, frozen and validated: epochs, batch size, learning rate, precision, seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from fvae.config import (
    LATER,
    ModelConfig,
    from_fields,
    identity_fields,
    is_number,
    require,
    require_choice,
    require_integer,
    require_positive,
    require_seed,
)

Precision = Literal["float32", "bf16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Raises ``ConfigError`` for a value that cannot work."""

    epochs: int = 60
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step; the last batch of an epoch may be smaller."""
    learning_rate: float = 4e-3
    """Adam's peak rate, after warm-up; it then falls to 0 along a cosine."""
    sigma_learning_rate: float | None = dataclasses.field(default=None, metadata=LATER)
    """The peak rate of log σ1 and log σ2. ``None``: the same as the other parameters'."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    kl_warmup: float = dataclasses.field(default=0.0, metadata=LATER)
    """Share of all steps over which the weight of the gradient of KL(q(w|x)‖p(w)) rises from 0 to 1 (arXiv
    1602.02282), so that a decoder learns to use its latent before the prior empties it. The figures are the whole
    bound's at every step. For ``vae`` and ``fvae``."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of the mean bits/dim."""
    ema_decay: float = 0.995
    """Decay per step of the averaged weights, which are the ones evaluated and kept."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    precision: Precision = "float32"
    """``bf16``: the networks under autocast; likelihood terms stay in float32."""
    validation_samples: int = dataclasses.field(default=1, metadata=LATER)
    """Noise samples of each validation image, whose bounds are averaged."""
    seed: int = 0
    """Seeds initial weights, order and noise."""

    def __post_init__(self) -> None:
        require_integer("epochs", self.epochs, 1)
        require_integer("batch_size", self.batch_size, 1)
        require_integer("warmup_steps", self.warmup_steps, 0)
        require_seed("seed", self.seed)
        require_integer("validation_samples", self.validation_samples, 1)
        require_positive("learning_rate", self.learning_rate)
        if self.sigma_learning_rate is not None:
            require_positive("sigma_learning_rate", self.sigma_learning_rate)
        require_positive("gradient_clip", self.gradient_clip)
        require(
            is_number(self.ema_decay) and 0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay!r}: must be in [0, 1)"
        )
        require(
            is_number(self.kl_warmup) and 0 <= self.kl_warmup <= 1, f"kl_warmup={self.kl_warmup!r}: must be in [0, 1]"
        )
        require(
            is_number(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay={self.weight_decay!r}: must be a number of at least 0",
        )
        require_choice("precision", self.precision, get_args(Precision))

    def require_fits(self, model: ModelConfig) -> None:
        """Raise ``ConfigError`` where ``model`` cannot be trained with these settings."""
        require(
            model.has_encoder or not self.kl_warmup,
            f"kl_warmup={self.kl_warmup}: a flow has no KL divergence to warm up; leave it at 0",
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; ``from_dict`` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build from ``to_dict``'s result. Raises ``ConfigError`` on a field it does not know."""
        return from_fields(cls, values)


def identity_of_any_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a training is, with its configs ``model`` and ``train`` as :func:`fvae.config.identity_fields` gives them.

    Two are the same training where these are equal, whichever versions wrote them; other parts stay as they are.
    """
    configs = {"model": ModelConfig, "train": TrainConfig}
    return {
        name: identity_fields(configs[name], part) if name in configs and isinstance(part, Mapping) else part
        for name, part in values.items()
    }

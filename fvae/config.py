"""What a model is: one frozen, self-validating configuration for all three families."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeVar, get_args

Family = Literal["vae", "flow", "fvae"]
Coupling = Literal["affine", "additive"]
Mixing = Literal["plu", "permutation"]

T = TypeVar("T")

FAMILIES: tuple[Family, ...] = get_args(Family)


class ConfigError(ValueError):
    """A setting that cannot work. The message is one line: the field, its value, what would do."""


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_integer(name: str, value: Any, minimum: int) -> None:
    """Raise ``ConfigError`` unless ``value`` is an integer (no bool) of at least ``minimum``."""
    require(
        isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
        f"{name}={value!r}: must be an integer of at least {minimum}",
    )


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number (no bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_positive(name: str, value: Any) -> None:
    """Raise ``ConfigError`` unless ``value`` is a finite number above zero."""
    require(
        is_number(value) and value > 0,
        f"{name}={value!r}: must be a finite number above 0",
    )


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of ``choices``."""
    require(value in choices, f"{name}={value!r}: must be one of {', '.join(choices)}")


def halvings(size: int) -> int:
    """How many times ``size`` can be halved without a remainder."""
    count = 0
    while size > 1 and size % 2 == 0:
        size //= 2
        count += 1
    return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One point of the map: a VAE, a flow or an f-VAE for images of one shape.

    Fields of a part that a family does not have (a ``flow`` has no encoder, a ``vae`` no flow)
    are kept but have no effect. Raises ``ConfigError`` for a value that cannot work.
    """

    family: Family
    """``vae``, ``flow`` or ``fvae``: which parts the general objective is given."""
    channels: int
    """Image channels, e.g. 1 (grey) or 3 (colour)."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    bins: int = 256
    """Levels L of a pixel: images hold the integers 0 … bins − 1."""
    flow_levels: int = 2
    """Scales of the flow F; each halves height and width once. 0: one scale at full size."""
    flow_depth: int = 4
    """Flow steps (ActNorm, mixing, coupling) per scale."""
    coupling_width: int = 32
    """Hidden channels of each coupling's network."""
    coupling: Coupling = "affine"
    """``affine`` (bounded log-scale) or ``additive`` (no log_det of its own)."""
    mixing: Mixing = "plu"
    """``plu``: a trained 1×1 convolution; ``permutation``: a fixed random one."""
    encoder_levels: int = 1
    """How often the encoder E (and the decoder G) halve height and width."""
    encoder_blocks: int = 1
    """Residual blocks per level of E, and of G."""
    encoder_width: int = 32
    """Channels inside E and G: free of the image's dimension."""
    latent_channels: int | None = None
    """Channels of w at the encoder's last level, for a latent smaller than the image.
    ``None``: w has the image's own shape (d = D, as in the paper)."""
    sigma1_init: float = 0.05
    """Posterior scale σ1 before training, in units where the pixel range is 1.
    ``vae``: where σ(x') starts. ``flow``: σ itself, fixed."""
    sigma2_init: float = 0.05
    """Decoder scale σ2 before training, same units. ``flow``: not used, as σ2 = σ1 there."""

    def __post_init__(self) -> None:
        require_choice("family", self.family, FAMILIES)
        require_choice("coupling", self.coupling, get_args(Coupling))
        require_choice("mixing", self.mixing, get_args(Mixing))
        for name in ("channels", "height", "width", "flow_depth", "coupling_width", "encoder_width"):
            require_integer(name, getattr(self, name), 1)
        for name in ("flow_levels", "encoder_levels", "encoder_blocks"):
            require_integer(name, getattr(self, name), 0)
        require_integer("bins", self.bins, 2)
        require(self.bins <= 256, f"bins={self.bins}: images are uint8, so at most 256")
        require_positive("sigma1_init", self.sigma1_init)
        require_positive("sigma2_init", self.sigma2_init)
        if self.has_encoder:
            self._require_halvings("encoder_levels", self.encoder_levels, (self.height, self.width), "image")
        if self.latent_channels is not None:
            self._validate_latent_channels(self.latent_channels)
        if self.has_flow:
            what = "image" if self.latent_channels is None else "latent"
            self._require_halvings("flow_levels", self.flow_levels, self.latent_shape[1:], what)
            require(
                self.flow_levels > 0 or self.latent_shape[0] > 1,
                "flow_levels=0: a coupling needs at least 2 channels to split; use flow_levels ≥ 1",
            )

    def _validate_latent_channels(self, latent_channels: int) -> None:
        require_integer("latent_channels", latent_channels, 1)
        require(
            self.has_encoder,
            f"latent_channels={latent_channels}: family 'flow' keeps every dimension; leave it None",
        )
        most = self.channels * 4**self.encoder_levels
        require(
            latent_channels <= most,
            f"latent_channels={latent_channels}: more dimensions than the image; at most {most} "
            f"with encoder_levels={self.encoder_levels}",
        )

    def _require_halvings(self, name: str, levels: int, size: tuple[int, ...], what: str) -> None:
        height, width = size
        most = min(halvings(height), halvings(width))
        require(
            levels <= most,
            f"{name}={levels}: a {height}×{width} {what} can be halved {most} times; use {name} ≤ {most}, "
            f"or images whose sides are multiples of {2 ** (levels + self._halved_before(what))}",
        )

    def _halved_before(self, what: str) -> int:
        return self.encoder_levels if what == "latent" else 0

    @property
    def has_encoder(self) -> bool:
        """Whether E and G are trained networks (``vae``, ``fvae``)."""
        return self.family != "flow"

    @property
    def has_flow(self) -> bool:
        """Whether F is a trained flow (``flow``, ``fvae``)."""
        return self.family != "vae"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        return (self.channels, self.height, self.width)

    @property
    def dimensions(self) -> int:
        """D = C·H·W, the dimensions that bits/dim divides by."""
        return math.prod(self.image_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of w."""
        if self.latent_channels is None:
            return self.image_shape
        scale = 2**self.encoder_levels
        return (self.latent_channels, self.height // scale, self.width // scale)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; ``from_dict`` is its inverse."""
        return field_values(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build from ``to_dict``'s result. Raises ``ConfigError`` on a field it does not know."""
        return from_fields(cls, values)


def field_values(instance: Any) -> dict[str, Any]:
    """A dataclass's fields by name, values as they are: a fifth of the time of ``asdict``, which copies them deeply."""
    return {name: getattr(instance, name) for name in instance.__dataclass_fields__}


def from_fields(cls: type[T], values: dict[str, Any]) -> T:
    """A dataclass from a dict, with ``ConfigError`` for an unknown or a missing field."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    unknown = sorted(set(values) - set(names))
    require(not unknown, f"{', '.join(unknown)}: no such field of {cls.__name__}; it has {', '.join(names)}")
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    require(not missing, f"{', '.join(missing)}: missing from {cls.__name__}")
    return cls(**values)

"""Configuration of a model, frozen and validated, and the checks that all configurations share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

Family = Literal["vae", "flow", "fvae"]
Coupling = Literal["affine", "additive"]
Mixing = Literal["plu", "permutation"]
Likelihood = Literal["gaussian", "discretized"]
Scale = Literal["scalar", "network"]
Dequantization = Literal["uniform", "variational"]

T = TypeVar("T")

FAMILIES: tuple[Family, ...] = get_args(Family)


LATER = {"later": True}
"""Metadata of a field that earlier versions did not have: see :func:`identity_fields`."""


class ConfigError(ValueError):
    """A setting that cannot work. The message is one line: the field, its value, what would do."""


def one_line(message: object, limit: int | None = None) -> str:
    """``str(message)`` with each run of blanks and line breaks as one blank, cut off after ``limit`` characters."""
    return " ".join(str(message).split())[:limit]


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


def require_seed(name: str, value: Any) -> None:
    """Raise ``ConfigError`` unless ``value`` is an integer that seeds a generator: from 0 to 2⁶⁴ − 1."""
    require_integer(name, value, 0)
    require(value < 2**64, f"{name}={value}: must be below 2**64 ({2**64})")


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
    are kept but have no effect; but a likelihood that a ``flow`` cannot have, and a dequantization that only a
    ``flow`` can, are refused. Raises ``ConfigError`` for a value that cannot work.
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
    """Posterior scale σ1 before training, in units of the latent: where that is an image (d = D), in units where
    the pixel range is 1 (× ``bins``: in bins). ``vae``: where σ(x') starts. ``flow``: σ itself, fixed; 0 adds no
    noise to the dequantized image."""
    sigma2_init: float = 0.05
    """Decoder scale σ2 before training, same units. ``flow``: not used, as σ2 = σ1 there."""
    likelihood: Likelihood = dataclasses.field(default="gaussian", metadata=LATER)
    """p(x|w): ``gaussian``, a density of dequantized images (the paper's); ``discretized``, the probability that the
    same Gaussian gives to each level's bin, without dequantization. ``flow`` has none: it stays ``gaussian``."""
    posterior_scale: Scale | None = dataclasses.field(default=None, metadata=LATER)
    """σ1: one ``scalar``, or σ1(x') from a second head of E (``network``). ``None``: as in the paper,
    ``network`` for a ``vae`` and ``scalar`` for an ``fvae``."""
    decoder_scale: Scale = dataclasses.field(default="scalar", metadata=LATER)
    """σ2: one ``scalar``, or σ2(w) from a second head of G (``network``)."""
    dequantization: Dequantization = dataclasses.field(default="uniform", metadata=LATER)
    """Noise within a bin: ``uniform``, or for a ``flow`` ``variational``, from a small conditional flow
    (Flow++, arXiv 1902.00275, §3.1)."""
    dequantization_width: int = dataclasses.field(default=8, metadata=LATER)
    """Hidden channels of the networks of variational dequantization."""
    split_mixing: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether a trained 1×1 convolution comes before half the channels leave F, at every scale but the last."""

    def __post_init__(self) -> None:
        require_choice("family", self.family, FAMILIES)
        require_choice("coupling", self.coupling, get_args(Coupling))
        require_choice("mixing", self.mixing, get_args(Mixing))
        for name in ("channels", "height", "width", "flow_depth", "coupling_width", "encoder_width"):
            require_integer(name, getattr(self, name), 1)
        for name in ("flow_levels", "encoder_levels", "encoder_blocks"):
            require_integer(name, getattr(self, name), 0)
        require_integer("bins", self.bins, 2)
        require(isinstance(self.split_mixing, bool), f"split_mixing={self.split_mixing!r}: must be true or false")
        require(self.bins <= 256, f"bins={self.bins}: images are uint8, so at most 256")
        self._validate_scales()
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

    def _validate_scales(self) -> None:
        require_choice("likelihood", self.likelihood, get_args(Likelihood))
        if self.posterior_scale is not None:
            require_choice("posterior_scale", self.posterior_scale, get_args(Scale))
        require_choice("decoder_scale", self.decoder_scale, get_args(Scale))
        require_choice("dequantization", self.dequantization, get_args(Dequantization))
        require_integer("dequantization_width", self.dequantization_width, 1)
        require_positive("sigma2_init", self.sigma2_init)
        if self.has_encoder:
            require_positive("sigma1_init", self.sigma1_init)
            require(
                self.dequantization == "uniform",
                f"dequantization={self.dequantization!r}: leave it 'uniform' for a {self.family}; "
                "likelihood='discretized' uses no dequantization",
            )
        else:
            require(
                is_number(self.sigma1_init) and self.sigma1_init >= 0,
                f"sigma1_init={self.sigma1_init!r}: must be a finite number of at least 0",
            )
            require(
                self.likelihood == "gaussian",
                f"likelihood={self.likelihood!r}: family 'flow' has no decoder; leave it 'gaussian'",
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
    def encoder_heads(self) -> int:
        """Outputs of E: w's mean, and its scale where a network gives it."""
        scale = self.posterior_scale or ("network" if self.family == "vae" else "scalar")
        return 2 if scale == "network" else 1

    @property
    def decoder_heads(self) -> int:
        """Outputs of G: the image's mean, and its scale where a network gives it."""
        return 2 if self.decoder_scale == "network" else 1

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


def identity_fields(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields without those that came later and have their default.

    So a config is the same, and has the same hash, whichever version wrote it.
    """
    later = {field.name: field.default for field in dataclasses.fields(config) if field.metadata.get("later")}
    return {name: value for name, value in values.items() if name not in later or value != later[name]}


_OF_F = ("flow_levels", "flow_depth", "coupling_width", "coupling", "mixing", "split_mixing")
_OF_E_AND_G = (
    *("encoder_levels", "encoder_blocks", "encoder_width", "latent_channels", "sigma2_init"),
    *("likelihood", "posterior_scale", "decoder_scale"),
)
_OF_NOISE = ("dequantization", "dequantization_width")
_UNUSED: dict[str, tuple[str, ...]] = {"vae": (*_OF_F, *_OF_NOISE), "flow": _OF_E_AND_G, "fvae": _OF_NOISE}


def fields_in_use(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :meth:`ModelConfig.to_dict` that have an effect on a model of its family."""
    unused = _UNUSED.get(values.get("family", ""), ())
    if values.get("family") == "flow" and values.get("dequantization") != "variational":
        unused = (*unused, "dequantization_width")
    return {name: value for name, value in values.items() if name not in unused}


def scales_in_bins(values: Mapping[str, Any], sigma1: float | None, sigma2: float | None) -> dict[str, float | None]:
    """σ1 and σ2 of a model of config ``values``, from units of the range of levels to bins; ``None`` stays ``None``.

    σ1 is in bins only where w is an image (d = D, not a ``vae``): elsewhere it is in units of the latent, and None.
    """
    bins, latent = values.get("bins", 256), values.get("latent_channels")
    whole = latent is None or latent == values.get("channels", 1) * 4 ** values.get("encoder_levels", 0)
    in_pixels = values.get("family") != "vae" and whole
    return {
        "sigma1_bins": None if sigma1 is None or not in_pixels else sigma1 * bins,
        "sigma2_bins": None if sigma2 is None else sigma2 * bins,
    }


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

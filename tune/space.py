"""What is searched. Change the ranges here; nothing else needs to know them.

The space is conditional: a plain flow is asked nothing about an encoder, a VAE nothing about a flow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optuna

from fvae.config import ConfigError, ModelConfig, halvings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Ranges ``(lowest, highest)``, both included, and choices."""

    flow_levels: tuple[int, int]
    flow_depth: tuple[int, int]
    coupling_width: tuple[int, int]
    """Log scale."""
    coupling: tuple[str, ...] = ("affine", "additive")
    mixing: tuple[str, ...] = ("plu", "permutation")
    encoder_levels: tuple[int, int]
    encoder_blocks: tuple[int, int]
    encoder_width: tuple[int, int]
    """Log scale."""
    latent_share: tuple[float, ...] = (1.0, 0.5)
    """Choices of an f-VAE's d/D; 1 keeps the image's own shape."""
    latent_share_vae: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Choices of a VAE's d/D."""
    sigma1: tuple[float, float] = (3e-3, 0.1)
    """Initial σ1 of an f-VAE, and σ of a flow; log scale."""
    sigma1_vae: tuple[float, float] = (0.03, 1.0)
    """Initial σ(x') of a VAE, whose prior has scale 1; log scale."""
    sigma2: tuple[float, float] = (1e-2, 0.2)
    """Initial σ2; log scale."""
    learning_rate: tuple[float, float] = (3e-3, 1e-2)
    """Log scale."""

    @classmethod
    def for_images(cls, shape: tuple[int, int, int]) -> SearchSpace:
        """Ranges that suit images ``(C, H, W)``: larger images get wider and deeper models."""
        _, height, width = shape
        levels = min(halvings(height), halvings(width))
        if levels == 0:
            raise ConfigError(
                f"images of {width}×{height}: the flow's levels halve both sides, and these cannot be halved; "
                "make a data set of even sides, best a multiple of 8: python -m pipelines.ingest … --size 32"
            )
        small = max(height, width) <= 16
        return cls(
            flow_levels=(1, min(levels, 2 if small else 3)),
            flow_depth=(1, 6 if small else 12),
            coupling_width=(8, 80) if small else (16, 192),
            encoder_levels=(1, min(levels, 2 if small else 3)),
            encoder_blocks=(0, 3),
            encoder_width=(8, 64) if small else (16, 128),
        )


def suggest(
    trial: optuna.trial.BaseTrial, family: str, space: SearchSpace, images: dict[str, int]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Ask ``trial`` for one point: the model's config, and the training settings that are searched.

    ``images`` holds ``channels``, ``height``, ``width`` and ``bins``. Raises ``ConfigError`` where
    the point is no possible model.
    """
    model: dict[str, Any] = dict(images)
    if family != "vae":
        model["flow_levels"] = trial.suggest_int("flow_levels", *space.flow_levels)
        model["flow_depth"] = trial.suggest_int("flow_depth", *space.flow_depth)
        model["coupling_width"] = trial.suggest_int("coupling_width", *space.coupling_width, log=True)
        model["coupling"] = trial.suggest_categorical("coupling", space.coupling)
        model["mixing"] = trial.suggest_categorical("mixing", space.mixing)
        model["sigma1_init"] = trial.suggest_float("sigma1_init", *space.sigma1, log=True)
    if family != "flow":
        model["encoder_levels"] = trial.suggest_int("encoder_levels", *space.encoder_levels)
        model["encoder_blocks"] = trial.suggest_int("encoder_blocks", *space.encoder_blocks)
        model["encoder_width"] = trial.suggest_int("encoder_width", *space.encoder_width, log=True)
        shares = space.latent_share_vae if family == "vae" else space.latent_share
        share = trial.suggest_categorical("latent_share", shares)
        model["sigma2_init"] = trial.suggest_float("sigma2_init", *space.sigma2, log=True)
        if share < 1:
            model |= _smaller_latent(model, share)
    if family == "vae":
        model["sigma1_init"] = trial.suggest_float("sigma1_init", *space.sigma1_vae, log=True)
    learning_rate = trial.suggest_float("learning_rate", *space.learning_rate, log=True)
    return ModelConfig(family=family, **model), {"learning_rate": learning_rate}  # type: ignore[arg-type]


def suggestion_of(model: ModelConfig, train: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The point at which :func:`suggest` gives ``model``, for one that ``space`` could have given.

    What ``space`` could not have given is left as it is, out of its ranges and choices.
    """
    point: dict[str, Any] = {"sigma1_init": model.sigma1_init, "learning_rate": train["learning_rate"]}
    if model.has_flow:
        point |= {name: getattr(model, name) for name in ("flow_depth", "coupling_width", "coupling", "mixing")}
        point["flow_levels"] = max(model.flow_levels, space.flow_levels[0])  # fewer where a latent left no more
    if model.has_encoder:
        point |= {name: getattr(model, name) for name in ("encoder_levels", "encoder_blocks", "encoder_width")}
        point |= {"sigma2_init": model.sigma2_init, "latent_share": _latent_share(model, space)}
    return point


def _latent_share(model: ModelConfig, space: SearchSpace) -> float:
    """The space's choice that gives the model's latent; its own d/D where there is none."""
    if model.latent_channels is None:
        return 1.0
    most = model.channels * 4**model.encoder_levels
    shares = space.latent_share if model.has_flow else space.latent_share_vae
    giving = (share for share in shares if share < 1 and _latent_channels(share, most) == model.latent_channels)
    return next(giving, model.latent_channels / most)


def _latent_channels(share: float, most: int) -> int:
    return max(1, round(share * most))


def _smaller_latent(model: dict[str, Any], share: float) -> dict[str, int]:
    """``latent_channels`` for d = share·D, and the flow levels that a latent of that size still has."""
    levels = model["encoder_levels"]
    channels = _latent_channels(share, model["channels"] * 4**levels)
    left = min(halvings(model["height"]), halvings(model["width"])) - levels
    changes = {"latent_channels": channels}
    if "flow_levels" in model:
        changes["flow_levels"] = min(model["flow_levels"], left)
    return changes


def initial_designs(family: str, space: SearchSpace, count: int) -> list[dict[str, Any]]:
    """``count`` points from small to large with sound settings, to start a family's search with.

    Keys and values are the ones that :func:`suggest` asks for. Every other f-VAE has a light encoder,
    so that a front shows early whether parameters serve it better in E and G or in F.
    """
    designs = []
    for index in range(count):
        share = (index + 0.5) / count  # position between the smallest and the largest model
        light = family == "fvae" and index % 2 == 0
        design: dict[str, Any] = {"learning_rate": _between(space.learning_rate, 0.5)}
        if family != "vae":
            design |= {
                "flow_levels": space.flow_levels[1],
                "flow_depth": _between_whole(space.flow_depth, share),
                "coupling_width": _between_whole(space.coupling_width, share),
                "coupling": space.coupling[0],
                "mixing": space.mixing[0],
                "sigma1_init": _between(space.sigma1, 0.3 if family == "flow" else 0.5),
            }
        if family != "flow":
            design |= {
                "encoder_levels": space.encoder_levels[0] if family == "fvae" else space.encoder_levels[1],
                "encoder_blocks": space.encoder_blocks[0] if light else round(share * space.encoder_blocks[1]),
                "encoder_width": _between_whole(space.encoder_width, share / 2 if light else share),
                "latent_share": space.latent_share[0] if family == "fvae" else space.latent_share_vae[1],
                "sigma2_init": _between(space.sigma2, 0.5),
            }
        if family == "vae":
            design["sigma1_init"] = _between(space.sigma1_vae, 0.5)
        designs.append(design)
    return designs


def _between(limits: tuple[float, float], share: float) -> float:
    """The point at ``share`` of the way on a log scale."""
    low, high = limits
    return low * (high / low) ** share


def _between_whole(limits: tuple[int, int], share: float) -> int:
    return round(_between(limits, share))

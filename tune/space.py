"""The search space: ranges and choices of every hyperparameter. Change them here; nothing else depends on them.

The space is conditional: a plain flow is asked nothing about an encoder, a VAE nothing about a flow. Scales of pixels
are in bins, so that a range means the same at any number of levels.
"""

from __future__ import annotations

import dataclasses
import math
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
    split_mixing: tuple[bool, ...] = (False,)
    """Whether channels are mixed before half of them leave a flow of several levels."""
    dequantization: tuple[str, ...] = ("uniform", "variational")
    """Dequantization of a flow. The variational one replaces σ, which is 0 then."""
    encoder_levels: tuple[int, int]
    encoder_blocks: tuple[int, int]
    encoder_width: tuple[int, int]
    """Log scale."""
    likelihood: tuple[str, ...] = ("discretized", "gaussian")
    posterior_scale: tuple[str, ...] = ("network", "scalar")
    decoder_scale: tuple[str, ...] = ("network", "scalar")
    latent_share: tuple[float, ...] = (1.0, 0.5)
    """Choices of an f-VAE's d/D; 1 keeps the image's own shape."""
    latent_share_vae: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Choices of a VAE's d/D."""
    sigma_bins: tuple[float, float] = (0.02, 1.0)
    """σ of a flow, and initial σ1 = σ2 of an f-VAE that is to start as the flow inside it; log scale."""
    sigma1_bins: tuple[float, float]
    """Initial σ1 of an f-VAE with a discretized likelihood; log scale."""
    sigma2_bins: tuple[float, float]
    """Initial σ2 where it is not σ1; log scale."""
    sigma1_latent: tuple[float, float] = (3e-3, 0.1)
    """Initial σ1 of an f-VAE with d < D, in units of its latent; log scale."""
    sigma1_vae: tuple[float, float] = (0.03, 1.0)
    """Initial σ1 of a VAE, whose prior has scale 1; log scale."""
    learning_rate: tuple[float, float] = (5e-3, 3e-2)
    """Log scale. On the digits, small models do best near the upper end, large ones in the middle."""
    kl_warmup: tuple[float, ...] = (0.7, 0.3, 0.0)
    """KL warm-up of a VAE, which may leave its latent unused without it (``docs/model.md``)."""

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], bins: int) -> SearchSpace:
        """Ranges that suit images ``(C, H, W)`` of so many levels: larger images get wider and deeper models."""
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
            encoder_width=(2, 64) if small else (2, 128),
            # Worth 0.02 to 0.15 bits/dim at 256 levels, nothing at 17 (benchmarks/results/likelihoods.txt).
            split_mixing=(True, False) if bins >= 128 else (False,),
            # Where no noise within a bin sets the scale, it goes with the whole range.
            sigma1_bins=(0.1, max(1.0, bins / 8)),
            sigma2_bins=(0.1, max(1.0, bins / 8)),
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
        if len(space.split_mixing) > 1:
            model["split_mixing"] = trial.suggest_categorical("split_mixing", space.split_mixing)
    if family == "flow":
        model["dequantization"] = trial.suggest_categorical("dequantization", space.dequantization)
        uniform = model["dequantization"] == "uniform"
        model["sigma1_init"] = _in_bins(trial, "sigma_bins", space.sigma_bins, images) if uniform else 0.0
    else:
        model |= _encoder_and_decoder(trial, family, space, model)
    train = {"learning_rate": trial.suggest_float("learning_rate", *space.learning_rate, log=True)}
    if family == "vae":
        train["kl_warmup"] = trial.suggest_categorical("kl_warmup", space.kl_warmup)
    if model.get("split_mixing"):
        model["split_mixing"] = model["flow_levels"] > 1  # one level, which a small latent may leave, has no split
    return ModelConfig(family=family, **model), train  # type: ignore[arg-type]


def _encoder_and_decoder(
    trial: optuna.trial.BaseTrial, family: str, space: SearchSpace, images: dict[str, Any]
) -> dict[str, Any]:
    """What a VAE and an f-VAE have and a flow has not. ``images`` holds what :func:`suggest` has asked before, too."""
    model = dict(images)
    model["encoder_levels"] = trial.suggest_int("encoder_levels", *space.encoder_levels)
    model["encoder_blocks"] = trial.suggest_int("encoder_blocks", *space.encoder_blocks)
    model["encoder_width"] = trial.suggest_int("encoder_width", *space.encoder_width, log=True)
    model["likelihood"] = trial.suggest_categorical("likelihood", space.likelihood)
    model["posterior_scale"] = trial.suggest_categorical("posterior_scale", space.posterior_scale)
    model["decoder_scale"] = trial.suggest_categorical("decoder_scale", space.decoder_scale)
    share = trial.suggest_categorical("latent_share", space.latent_share_vae if family == "vae" else space.latent_share)
    if family == "fvae" and share == 1 and model["likelihood"] == "gaussian":
        model["sigma1_init"] = model["sigma2_init"] = _in_bins(trial, "sigma_bins", space.sigma_bins, images)
    else:
        if family == "fvae" and share == 1:
            model["sigma1_init"] = _in_bins(trial, "sigma1_bins", space.sigma1_bins, images)
        else:
            latent = space.sigma1_vae if family == "vae" else space.sigma1_latent
            model["sigma1_init"] = trial.suggest_float("sigma1_latent", *latent, log=True)
        model["sigma2_init"] = _in_bins(trial, "sigma2_bins", space.sigma2_bins, images)
    if share < 1:
        model |= _smaller_latent(model, share)
    return model


def _in_bins(trial: optuna.trial.BaseTrial, name: str, limits: tuple[float, float], images: Mapping[str, Any]) -> float:
    """A scale that is searched in bins, in the units of the config."""
    return trial.suggest_float(name, *limits, log=True) / images["bins"]


def suggestion_of(model: ModelConfig, train: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The point at which :func:`suggest` gives ``model``, for one that ``space`` could have given.

    What ``space`` could not have given is left as it is, out of its ranges and choices; where it asks for one scale,
    it is σ2.
    """
    point: dict[str, Any] = {"learning_rate": train["learning_rate"]}
    if model.has_flow:
        point |= {name: getattr(model, name) for name in ("flow_depth", "coupling_width", "coupling", "mixing")}
        point["flow_levels"] = max(model.flow_levels, space.flow_levels[0])  # fewer where a latent left no more
        if len(space.split_mixing) > 1:
            point["split_mixing"] = model.split_mixing
    if model.family == "flow":
        point["dequantization"] = model.dequantization
        if model.dequantization == "uniform":
            point["sigma_bins"] = _bins_of(model.sigma1_init, model.bins)
        return point
    for name in ("encoder_levels", "encoder_blocks", "encoder_width", "likelihood", "decoder_scale"):
        point[name] = getattr(model, name)
    point["posterior_scale"] = "network" if model.encoder_heads > 1 else "scalar"
    if model.family == "vae":
        point["kl_warmup"] = train.get("kl_warmup", 0.0)
    point["latent_share"] = _latent_share(model, space)
    sigma1, sigma2 = _bins_of(model.sigma1_init, model.bins), _bins_of(model.sigma2_init, model.bins)
    if model.family == "fvae" and model.latent_channels is None:
        if model.likelihood == "gaussian":
            return point | {"sigma_bins": sigma2}
        return point | {"sigma1_bins": sigma1, "sigma2_bins": sigma2}
    return point | {"sigma1_latent": model.sigma1_init, "sigma2_bins": sigma2}


def _bins_of(sigma: float, bins: int) -> float:
    """The number of bins that gives ``sigma`` when divided by ``bins``, to the bit where there is one."""
    around = sigma * bins
    exact = (each for each in (around, math.nextafter(around, 0), math.nextafter(around, math.inf)))
    return next((each for each in exact if each / bins == sigma), around)


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

    Keys and values are the ones that :func:`suggest` asks for. Every third one has the space's second likelihood, every
    other one its second dequantization or, of a VAE, the second kind of σ2. Of f-VAEs every other pair has a light
    encoder, so that a front shows early whether parameters serve it better in E and G or in F.
    """
    designs = []
    for index in range(count):
        share = (index + 0.5) / count  # position between the smallest and the largest model
        turn = index % 2
        design: dict[str, Any] = {"learning_rate": _between(space.learning_rate, 0.5)}
        if family != "vae":
            design |= {
                "flow_levels": space.flow_levels[1],
                "flow_depth": _between_whole(space.flow_depth, share),
                "coupling_width": _between_whole(space.coupling_width, share),
                "coupling": space.coupling[0],
                "mixing": space.mixing[0],
            }
            if len(space.split_mixing) > 1:
                design["split_mixing"] = space.split_mixing[0]
        if family == "flow":
            # Without E and G only depth carries information across the image: narrow deep flows beat wide shallow ones.
            least, most = space.flow_depth
            design["flow_depth"] = round(least + (most - least) * math.sqrt(share))
            design["coupling_width"] = _between_whole(space.coupling_width, share**1.5)
            design["dequantization"] = _take(space.dequantization, turn)
            if design["dequantization"] == "uniform":
                design["sigma_bins"] = _between(space.sigma_bins, 0)
        else:
            light = family == "fvae" and index % 4 < 2
            design |= {
                "encoder_levels": space.encoder_levels[0] if family == "fvae" else space.encoder_levels[1],
                "encoder_blocks": space.encoder_blocks[0] if light else round(share * space.encoder_blocks[1]),
                "encoder_width": _between_whole(space.encoder_width, share / 2 if light else share),
                "likelihood": _take(space.likelihood, int(index % 3 == 2)),
                "posterior_scale": space.posterior_scale[0],
                "decoder_scale": _take(space.decoder_scale, 1 - turn if family == "vae" else 0),
                "latent_share": space.latent_share[0] if family == "fvae" else space.latent_share_vae[1],
            }
            if family == "vae":
                design["kl_warmup"] = space.kl_warmup[0]
            design |= _scales(family, space, design)
        designs.append(design)
    return designs


def _scales(family: str, space: SearchSpace, design: Mapping[str, Any]) -> dict[str, float]:
    if family == "vae":
        return {"sigma1_latent": _between(space.sigma1_vae, 0.5), "sigma2_bins": _between(space.sigma2_bins, 0.75)}
    if design["likelihood"] == "gaussian":
        return {"sigma_bins": _between(space.sigma_bins, 0.3)}
    # Below a bin: on photographs it matters, and where the scales end far above they get there.
    return {"sigma1_bins": _between(space.sigma1_bins, 0.3), "sigma2_bins": _between(space.sigma2_bins, 0.3)}


def _take(choices: tuple[str, ...], turn: int) -> str:
    return choices[turn % len(choices)]


def _between(limits: tuple[float, float], share: float) -> float:
    """The point at ``share`` of the way on a log scale."""
    low, high = limits
    return low * (high / low) ** share


def _between_whole(limits: tuple[int, int], share: float) -> int:
    return round(_between(limits, share))

"""The paper's claim: at which sizes the f-VAE needs fewer parameters than the flow for the same bits/dim.

Every trial of every family informs one model of what is best at each size (:mod:`tune.stats.stochastic_frontier`);
families are then compared in samples of it (:mod:`tune.stats.comparison`). Its intervals cover the luck of the
search (which hyperparameters happened to be tried), of the trainings' seeds and, where the test split has been read, of
the images: two models are compared on the same ones, so what is easy about an image helps both. They do not cover other
data sets, other budgets, or what the search space does not hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fvae.likelihood import uniform_bits_per_dim
from tune.map import claim_text
from tune.map.image_noise import BitsOfImages, ImageNoise
from tune.map.share import best_shares
from tune.map.training_compute import training_flops
from tune.records.ledger import TrialRecord
from tune.stats.comparison import LEVEL_SHARES, Band, Comparison, shared_levels
from tune.stats.forecasts import Forecasts
from tune.stats.frontiers import MIN_TRIALS, Paths, frontiers, parameters, seed_spread
from tune.stats.pareto import Floats, Front, complete_trials, front_of, front_trials, size_and_bits
from tune.stopping import StoppingRule

MAJORITY = 0.5
"""Share of the sizes, on their log scale, over which one answer decides the verdict if none contradicts it."""


def flops_of_training(record: TrialRecord) -> float:
    """FLOPs of the whole training, had it not been stopped."""
    images = record.history[-1].images / record.epochs * int(record.train["epochs"])
    return training_flops(record.flops_per_image, round(images))


def build_claim(
    records: Sequence[TrialRecord],
    seed: int,
    *,
    epochs: int | None = None,
    bins: int = 256,
    competed: bool = False,
    bits_of_images: BitsOfImages = lambda record: None,
) -> dict[str, Any]:
    """Ratio, difference, their intervals and verdict, JSON-ready.

    Args:
        records: of trials that have ended.
        seed: of the samples.
        epochs: of a complete trial; without it part-trained trials are ignored.
        bins: levels of a pixel.
        competed: whether families competed for one front. Then there is no verdict: trials of one were stopped because
            the other's were better, so its front is not what it could have reached.
        bits_of_images: of the models whose test split has been read.

    ``params_ratio_fvae_over_flow`` holds ``at_bpd`` (level → ratio), ``at_bpd_ci95``, their median ``headline``, its
    ``ci95``, and the ``fvae_params`` and ``flow_params`` compared at each level. ``bpd_difference_fvae_minus_flow`` is
    the converse, bits/dim at equal size. ``curves`` has the whole comparison for the f-VAE (``all``) and for each of
    its likelihoods by size, ``by_compute`` by the FLOPs of a training, ``at_k64`` that of the f-VAE by k = 64. Their
    ``ranges`` say for which sizes the f-VAE needs ``fewer`` parameters, ``more``, the ``same`` within a tenth, or where
    that is ``undecided``. ``shares`` is how parameters are best split (:func:`tune.map.share.best_shares`). An end
    that is open is null (0 for a ratio's lower end), explained in ``open_ends``. ``bound`` is the one-sided ratio that
    is left where no bits/dim level is reached by both families.
    """
    counts = {family: len(complete_trials(records, family)) for family in ("fvae", "flow")}
    claim: dict[str, Any] = {
        "params_ratio_fvae_over_flow": {"headline": None, "at_bpd": {}, "ci95": None, "open_ends": {}},
        "bpd_difference_fvae_minus_flow": {"headline": None, "at_params": {}, "ci95": None, "open_ends": {}},
        "curves": {},
        "by_compute": {},
        "at_k64": None,
        "shares": {},
        "bound": None,
        "verdict": "undecided",
        "covers": [],
        "trials": counts,
        "min_trials": MIN_TRIALS,
        "seed": seed,
    }
    if min(counts.values()) == 0:
        return claim | claim_text.no_trials(claim)
    forecasts = Forecasts(StoppingRule().rungs(epochs) if epochs else (), epochs or 1, uniform_bits_per_dim(bins))
    paths = frontiers(records, forecasts, parameters, seed)
    noise = ImageNoise(records, bits_of_images, seed)
    claim["covers"] = ["search", "seeds", *(["images"] if noise.known else [])]
    names = {"all": "fvae"} | {name.split("/")[1]: name for name in paths if name.startswith("fvae/")}
    compared = {label: compare(paths, name, noise) for label, name in names.items()}
    claim["curves"] = {label: as_json(each) for label, each in compared.items() if each}
    whole = compared["all"]
    if whole and (at_k64 := with_64_samples(whole, records)):
        claim["at_k64"] = as_json(at_k64, ratio=False)
    by_compute = frontiers(records, forecasts, flops_of_training, seed)
    for label, name in names.items():
        if each := Comparison.of(by_compute[name], by_compute["flow"]):
            claim["by_compute"][label] = as_json(each)
    claim["shares"] = best_shares(records, forecasts, seed, seed_spread=seed_spread(records))
    fvae, flow = (_front(records, family) for family in ("fvae", "flow"))
    if whole:
        claim["bpd_difference_fvae_minus_flow"] = _difference(whole)
    ratio = _ratio(noise.on(paths["fvae"]), paths["flow"])
    if ratio is None:
        claim["bound"] = _bound(fvae, flow)
    else:
        claim["params_ratio_fvae_over_flow"] = ratio
    if min(counts.values()) < MIN_TRIALS:
        return claim | claim_text.too_few_trials(claim)
    if whole is None:
        return claim | claim_text.no_shared_size(claim, fvae, flow)
    if competed:
        return claim | claim_text.families_competed(claim)
    claim["verdict"] = verdict(claim["curves"]["all"]["ranges"])
    return claim | claim_text.decided(claim)


def compare(paths: Mapping[str, Paths], name: str, noise: ImageNoise) -> Comparison | None:
    """A frontier against the flow's; None where they share no sizes."""
    comparison = Comparison.of(paths[name], paths["flow"])
    if comparison is None:
        return None
    samples = len(comparison.difference)
    ratios = Comparison.of(noise.on(paths[name]), paths["flow"])
    assert ratios is not None  # of the same sizes
    # Not its difference: a frontier that is held from rising is lower where it wiggles.
    return dataclasses.replace(ratios, difference=comparison.difference + noise.at(comparison.log_size, samples))


def with_64_samples(comparison: Comparison, records: Sequence[TrialRecord]) -> Comparison | None:
    """A comparison by the importance-weighted bound of k = 64 samples, which is nearer to the likelihood.

    Only a front's models are measured with k = 64, on the test split. By how much that is below their k = 1 depends on
    the family (a flow with uniform noise and a discretized f-VAE have bounds of different tightness) and slowly on the
    size, so it is interpolated between a front's models and subtracted from the whole frontier. Returns None where a
    front has not been measured. Sizes at equal bits/dim are not compared, so no size is the ``same``.
    """
    changes = []
    for family in ("fvae", "flow"):
        front = [(record.params, record.test) for record in front_trials(records, family) if record.test is not None]
        if not front:
            return None
        sizes, gaps = np.log10([size for size, _ in front]), [test.bpd_iwae64 - test.bpd for _, test in front]
        changes.append(np.interp(comparison.log_size, sizes, gaps))
    difference = comparison.difference + changes[0] - changes[1]
    return dataclasses.replace(comparison, difference=difference, outside=np.ones_like(comparison.outside))


def as_json(comparison: Comparison, *, ratio: bool = True) -> dict[str, Any]:
    """A comparison by size: ``size`` ``[M]``, the ``difference`` with its band, the ``ratio`` with its own unless it is
    left out, and the ``ranges`` of sizes with one answer."""
    result: dict[str, Any] = {
        "size": (10**comparison.log_size).tolist(),
        "difference": Band.of(comparison.difference).json(),
    }
    if ratio:
        median, low, high, open_low, open_high = comparison.ratio_band()
        ends = [[None if is_open else float(end) for end, is_open in zip(*each, strict=True)]
                for each in ((low, open_low), (high, open_high))]  # fmt: skip
        result["ratio"] = {"median": median.tolist(), "low": ends[0], "high": ends[1]}
    return result | {"ranges": comparison.ranges()}


def verdict(ranges: Sequence[Mapping[str, Any]]) -> str:
    """``supported``, ``refuted`` or ``undecided``: what holds for most sizes and is contradicted at none."""
    widths = dict.fromkeys(("fewer", "more", "same", "undecided"), 0.0)
    for each in ranges:
        widths[each["answer"]] += float(np.log(each["to"] / each["from"]))
    total = sum(widths.values())
    if widths["fewer"] >= MAJORITY * total and widths["more"] == 0:
        return "supported"
    if widths["more"] + widths["same"] >= MAJORITY * total and widths["fewer"] == 0:
        return "refuted"
    return "undecided"


def _front(records: Sequence[TrialRecord], family: str) -> Front:
    return front_of(*np.array(size_and_bits(front_trials(records, family))).T)


def _difference(comparison: Comparison) -> dict[str, Any]:
    """bpd_fvae(N) − bpd_flow(N) at five sizes, their median, and the intervals."""
    places = [round(share * (len(comparison.log_size) - 1)) for share in LEVEL_SHARES]
    band = Band.of(comparison.difference[:, places])
    middle = Band.of(np.median(comparison.difference[:, places], axis=1, keepdims=True))
    keys = [f"{10 ** comparison.log_size[place]:.0f}" for place in places]
    intervals = np.stack([band.low, band.high], axis=1).tolist()
    return {
        "headline": float(middle.median[0]),
        "ci95": [float(middle.low[0]), float(middle.high[0])],
        "open_ends": {},
        "at_params": dict(zip(keys, band.median.tolist(), strict=True)),
        "at_params_ci95": dict(zip(keys, intervals, strict=True)),
    }


def _ratio(fvae: Paths, flow: Paths) -> dict[str, Any] | None:
    """N_fvae(b) / N_flow(b) at five levels that both reach, their median, and the intervals; None without levels."""
    fronts = [front_of(10**each.log_size, np.median(each.bits, axis=0)) for each in (fvae, flow)]
    levels, decimals = shared_levels(fronts[0], fronts[1])
    if not len(levels):
        return None
    wanted = np.broadcast_to(levels, (len(fvae.bits), len(levels)))
    (one, one_outside), (other, other_outside) = fvae.size_for(wanted), flow.size_for(wanted)
    outside = np.clip(one_outside - other_outside, -1, 1)  # −1: the ratio is at most so much
    log_ratio = one - other
    low, high = log_ratio.copy(), log_ratio.copy()
    low[outside == -1], high[outside == 1] = -np.inf, np.inf
    ends = [_ends(low[:, place], high[:, place]) for place in range(len(levels))]
    median = _ends(np.median(low, axis=1), np.median(high, axis=1))
    keys = [f"{level:.{decimals}f}" for level in levels]
    middle = len(levels) // 2
    missed = {
        family: {
            "not_reached": float((flags[:, middle] == 1).mean()),
            "surpassed_by_all": float((flags[:, middle] == -1).mean()),
        }
        for family, flags in (("fvae", one_outside), ("flow", other_outside))
    }
    ratios = 10 ** np.median(log_ratio, axis=0)
    return {
        "headline": float(np.median(ratios)),
        "ci95": median,
        "open_ends": claim_text.open_ratio_ends(median, missed),
        "at_bpd": dict(zip(keys, ratios.tolist(), strict=True)),
        "at_bpd_ci95": dict(zip(keys, ends, strict=True)),
        "fvae_params": dict(zip(keys, (10 ** np.median(one, axis=0)).round().tolist(), strict=True)),
        "flow_params": dict(zip(keys, (10 ** np.median(other, axis=0)).round().tolist(), strict=True)),
        "missed": missed,
    }


def _ends(low: Floats, high: Floats) -> list[float | None]:
    """95% interval of ratios whose log10 lie between ``low`` and ``high`` ``[S]``; None for infinity, for JSON."""
    lower = float(10 ** np.quantile(low, 0.025, method="lower"))
    upper = float(10 ** np.quantile(high, 0.975, method="higher"))
    return [lower, upper if np.isfinite(upper) else None]


def _bound(fvae: Front, flow: Front) -> dict[str, Any]:
    """What is left of the ratio where one front lies below the other: a limit at the worse front's best level."""
    fvae_is_lower = fvae.bpd[0] < flow.bpd[-1]
    numerator, denominator = (fvae.params[0], flow.params[-1]) if fvae_is_lower else (fvae.params[-1], flow.params[0])
    return {
        "lower_front": "fvae" if fvae_is_lower else "flow",
        "at_bpd": float(flow.bpd[-1] if fvae_is_lower else fvae.bpd[-1]),
        "relation": "at most" if fvae_is_lower else "at least",
        "ratio": float(numerator / denominator),
    }

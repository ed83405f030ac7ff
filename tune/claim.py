"""The paper's claim as one number: at equal bits/dim, the f-VAE's parameters over the flow's.

How it is measured, and why so:

- The parameters that a family needs for b bits/dim are read off its front of complete trials (log
  size linear in bits/dim between neighbours, as Bjøntegaard's delta rate compares video codecs), at
  levels that both fronts cross. Nothing is extrapolated.
- The headline is the median ratio over the levels: it has a value also where a level is missed,
  where a mean would be infinite in most resamples.
- The intervals come from resampling each family's complete trials. A resample whose front misses a
  level is kept: it says that the family needs more than its largest front model there, so the ratio
  lies between a bound and ∞ (or 0, for the flow). The lower end of an interval is the 2.5% quantile
  of the lower bounds, the upper end the 97.5% quantile of the upper bounds.

An interval speaks of which configurations happened to be tried. It does not cover the noise of the
validation images and of a trial's seed, other data sets, other budgets, or a family whose best
configurations the search space does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tune import claim_text
from tune.bootstrap import Floats, Front, front_of, interval95, resampled_fronts
from tune.interpolation import Bounds, bits_at, log_size_at, shared_levels, shared_sizes
from tune.ledger import TrialRecord
from tune.pareto import complete_trials, size_and_bits

MIN_TRIALS = 6
"""Complete trials that a family needs for a verdict: resamples of fewer say little about its front."""
REPLICATES = 1000


def build_claim(records: Sequence[TrialRecord], seed: int, *, competed: bool = False) -> dict[str, Any]:
    """Ratio, interval and verdict, JSON-ready. Where families ``competed`` for one front there is no verdict: trials
    of one were stopped because the other's were better, so its front is not what it could have reached.

    ``params_ratio_fvae_over_flow`` holds ``at_bpd`` (level → ratio), ``at_bpd_ci95``, their median
    ``headline``, its ``ci95``, the ``fvae_params`` and ``flow_params`` compared at each level, and
    ``missed``: the shares of resamples in which a family does not reach the middle level, or reaches
    it with every model. ``bpd_difference_fvae_minus_flow`` is the converse, bits/dim at equal size.
    An end that the trials leave open is null (0 for a ratio's lower end), explained in ``open_ends``.
    ``bound`` is the one-sided ratio that is left where one front lies wholly below the other.
    """
    points = {
        family: np.array(size_and_bits(complete_trials(records, family))).reshape(-1, 2) for family in ("fvae", "flow")
    }
    counts = {family: len(trials) for family, trials in points.items()}
    claim: dict[str, Any] = {
        "params_ratio_fvae_over_flow": {"headline": None, "at_bpd": {}, "ci95": None, "open_ends": {}},
        "bpd_difference_fvae_minus_flow": {"headline": None, "at_params": {}, "ci95": None, "open_ends": {}},
        "bound": None,
        "verdict": "undecided",
        "trials": counts,
        "min_trials": MIN_TRIALS,
        "replicates": REPLICATES,
        "seed": seed,
    }
    if min(counts.values()) == 0:
        return claim | claim_text.no_trials(claim)

    fvae, flow = (front_of(*trials.T) for trials in points.values())
    rng = np.random.default_rng(seed)
    resampled = [resampled_fronts(trials[:, 0], trials[:, 1], REPLICATES, rng) for trials in points.values()]
    sizes = shared_sizes(points["fvae"][:, 0], points["flow"][:, 0])
    if len(sizes):
        claim["bpd_difference_fvae_minus_flow"] = _difference(fvae, flow, resampled, sizes)
    levels, decimals = shared_levels(fvae, flow)
    if not len(levels):
        claim["bound"] = _bound(fvae, flow)
        return claim | claim_text.no_shared_level(claim, fvae, flow)

    ratio = _ratio(fvae, flow, resampled, levels, decimals)
    claim["params_ratio_fvae_over_flow"] = ratio
    if min(counts.values()) < MIN_TRIALS:
        return claim | claim_text.too_few_trials(claim)
    if competed:
        return claim | claim_text.families_competed(claim)
    low, high = ratio["ci95"]
    if high is not None and high < 1:
        claim["verdict"] = "supported"
    elif low > 1:
        claim["verdict"] = "refuted"
    return claim | claim_text.with_interval(claim, points, fvae, flow)


def _ratio(fvae: Front, flow: Front, resampled: list[list[Front]], levels: Floats, decimals: int) -> dict[str, Any]:
    """N_fvae(b) / N_flow(b) at each level, their median, and the intervals."""
    fvae_params, flow_params = (np.exp(log_size_at(front, levels).low) for front in (fvae, flow))
    ratios = fvae_params / flow_params
    needed = [_stacked(fronts, log_size_at, levels) for fronts in resampled]
    log_ratios = needed[0].minus(needed[1])
    keys = [f"{level:.{decimals}f}" for level in levels]
    middle = len(levels) // 2
    missed = {
        family: {
            "not_reached": float(np.isinf(bounds.high[:, middle]).mean()),
            "surpassed_by_all": float(np.isinf(bounds.low[:, middle]).mean()),
        }
        for family, bounds in zip(("fvae", "flow"), needed, strict=True)
    }
    ci95 = _json_interval(_exponentials(log_ratios.median()))
    return {
        "headline": float(np.median(ratios)),
        "ci95": ci95,
        "open_ends": claim_text.open_ratio_ends(ci95, missed),
        "at_bpd": dict(zip(keys, ratios.tolist(), strict=True)),
        "at_bpd_ci95": dict(zip(keys, _json_intervals(_exponentials(log_ratios)), strict=True)),
        "fvae_params": dict(zip(keys, fvae_params.round().tolist(), strict=True)),
        "flow_params": dict(zip(keys, flow_params.round().tolist(), strict=True)),
        "missed": missed,
    }


def _difference(fvae: Front, flow: Front, resampled: list[list[Front]], sizes: Floats) -> dict[str, Any]:
    """bpd_fvae(N) − bpd_flow(N) at each size, their median, and the intervals."""
    differences = bits_at(fvae, sizes).low - bits_at(flow, sizes).low
    reached = [_stacked(fronts, bits_at, sizes) for fronts in resampled]
    bounds = reached[0].minus(reached[1])
    keys = [f"{size:.0f}" for size in sizes]
    ci95 = _json_interval(bounds.median())
    return {
        "headline": float(np.median(differences)),
        "ci95": ci95,
        "open_ends": claim_text.open_difference_ends(ci95),
        "at_params": dict(zip(keys, differences.tolist(), strict=True)),
        "at_params_ci95": dict(zip(keys, _json_intervals(bounds), strict=True)),
    }


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


def _stacked(fronts: list[Front], read: Callable[[Front, Floats], Bounds], where: Floats) -> Bounds:
    """``read(front, where)`` of every resample, ``[R, K]``."""
    bounds = [read(front, where) for front in fronts]
    return Bounds(np.stack([each.low for each in bounds]), np.stack([each.high for each in bounds]))


def _exponentials(bounds: Bounds) -> Bounds:
    return Bounds(np.exp(bounds.low), np.exp(bounds.high))


def _json_interval(bounds: Bounds) -> list[float | None]:
    """95% interval of resampled values ``[R]``; JSON knows no infinity, so an open end is null."""
    return [end if np.isfinite(end) else None for end in interval95(bounds.low, bounds.high)]


def _json_intervals(bounds: Bounds) -> list[list[float | None]]:
    """One interval for each column of ``[R, K]``."""
    return [_json_interval(Bounds(low, high)) for low, high in zip(bounds.low.T, bounds.high.T, strict=True)]

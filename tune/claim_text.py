"""The claim's numbers in plain sentences: why this verdict, and what would decide it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tune.bootstrap import Floats, Front
from tune.style import LABELS, format_count

REGIONS = 3
"""Size regions (small, medium, large) in which trials are counted, to say where they lack."""
HOPELESS_FACTOR = 20
"""Beyond so many times the trials, more of the same is no advice."""


def no_trials(claim: dict[str, Any]) -> dict[str, str]:
    """A family has no complete trial."""
    return {"why": f"There is nothing to compare yet: {_counts(claim)}.", "would_decide": _missing_trials(claim)}


def too_few_trials(claim: dict[str, Any]) -> dict[str, str]:
    """Both fronts share levels, but rest on too few trials."""
    why = (
        f"{_ratio_sentence(claim)}. That is too few for a verdict, which needs at least {claim['min_trials']} of each."
    )
    return {"why": why, "would_decide": _missing_trials(claim)}


def families_competed(claim: dict[str, Any]) -> dict[str, str]:
    """One front was searched, so neither family's own front is what it could have reached."""
    why = f"{_ratio_sentence(claim)}. That is no verdict, as the families competed for one front (--goal front)."
    return {"why": why, "would_decide": "A search with --goal map, in which each family has a front of its own."}


def no_shared_level(claim: dict[str, Any], fvae: Front, flow: Front) -> dict[str, str]:
    """One family's front lies below the other's, so no bits/dim level can be compared."""
    bound = claim["bound"]
    fronts = {"fvae": fvae, "flow": flow}
    lower = bound["lower_front"]
    higher = "flow" if lower == "fvae" else "fvae"
    smallest, best = fronts[lower], fronts[higher]
    why = (
        f"No bits/dim level is crossed by both fronts: the smallest {LABELS[lower]} on its front "
        f"({format_count(smallest.params[0])} parameters, {smallest.bpd[0]:.3f} bits/dim) already does better than the "
        f"best {LABELS[higher]} ({format_count(best.params[-1])} parameters, {best.bpd[-1]:.3f}), so at that level the "
        f"f-VAE needs {bound['relation']} {bound['ratio']:.3g} times the flow's parameters."
    )
    difference = claim["bpd_difference_fvae_minus_flow"]
    if difference["headline"] is not None:
        why += (
            f" At equal parameters the f-VAE has {_signed_bits(difference['headline'])} than the flow "
            f"(95% interval of the difference {_interval(difference['ci95'], '+.3f')})."
        )
    would_decide = (
        f"Trials of the {LABELS[lower]} under {format_count(smallest.params[0])} parameters, down to where they only "
        f"reach {best.bpd[-1]:.3f} bits/dim, or trials of the {LABELS[higher]} over {format_count(best.params[-1])} "
        f"parameters that reach {smallest.bpd[0]:.3f}."
    )
    if min(claim["trials"].values()) < claim["min_trials"]:
        would_decide += f" {_missing_trials(claim)}"
    return {"why": why, "would_decide": would_decide}


def with_interval(claim: dict[str, Any], points: dict[str, Floats], fvae: Front, flow: Front) -> dict[str, str]:
    """Enough trials and shared levels: the interval has the word."""
    ratio = claim["params_ratio_fvae_over_flow"]
    sentence = _ratio_sentence(claim)
    if claim["verdict"] != "undecided":
        side = "below" if claim["verdict"] == "supported" else "above"
        return {
            "why": f"{sentence}. The whole interval lies {side} 1.",
            "would_decide": "Decided for this data set, search space and training budget. Another seed, a longer "
            "budget or other images would show whether it holds there too.",
        }
    low, high = ratio["ci95"]
    arm = high if ratio["headline"] < 1 else low
    sides = "1 lies inside the interval, so the f-VAE may need fewer parameters than the flow or more."
    return {"why": f"{sentence}. {sides}", "would_decide": _narrowing(claim, arm, points, {"fvae": fvae, "flow": flow})}


def open_ratio_ends(ci95: list[float | None], missed: dict[str, dict[str, float]]) -> dict[str, str]:
    """Why an end of the ratio's interval is 0 or null."""
    ends = {}
    fvae, flow = missed["fvae"], missed["flow"]
    if ci95[0] == 0:
        ends["low"] = (
            f"0 = no lower limit: at the middle level {flow['not_reached']:.0%} of the resamples have no flow that "
            f"reaches it, and in {fvae['surpassed_by_all']:.0%} even the smallest f-VAE does better"
        )
    if ci95[1] is None:
        ends["high"] = (
            f"null = no upper limit: at the middle level {fvae['not_reached']:.0%} of the resamples have no f-VAE that "
            f"reaches it, and in {flow['surpassed_by_all']:.0%} even the smallest flow does better"
        )
    return ends


def open_difference_ends(ci95: list[float | None]) -> dict[str, str]:
    """Why an end of the difference's interval is null."""
    family = {"low": "flow", "high": "fvae"}
    return {
        name: f"null = no limit: too many resamples hold no {LABELS[family[name]]} as small as the sizes compared"
        for name, end in zip(("low", "high"), ci95, strict=True)
        if end is None
    }


def _ratio_sentence(claim: dict[str, Any]) -> str:
    ratio = claim["params_ratio_fvae_over_flow"]
    levels = list(ratio["at_bpd"])
    where = f"at {levels[0]} bits/dim" if len(levels) == 1 else f"median over {levels[-1]} to {levels[0]} bits/dim"
    return (
        f"At equal bits/dim the f-VAE needs {ratio['headline']:.3g} times the flow's parameters "
        f"(95% interval {_interval(ratio['ci95'], '.3g')}; {where}; {_counts(claim)})"
    )


def _interval(ci95: list[float | None], spec: str) -> str:
    low, high = ("no limit" if end is None else format(end, spec) for end in ci95)
    return f"{low} to {high}"


def _signed_bits(difference: float) -> str:
    return f"{abs(difference):.3f} bits/dim {'fewer' if difference < 0 else 'more'}"


def _counts(claim: dict[str, Any]) -> str:
    return " and ".join(f"{count} complete {_trials(family, count)}" for family, count in claim["trials"].items())


def _missing_trials(claim: dict[str, Any]) -> str:
    lacking = {family: claim["min_trials"] - count for family, count in claim["trials"].items()}
    parts = [f"{count} more complete {_trials(family, count)}" for family, count in lacking.items() if count > 0]
    return f"At least {' and '.join(parts)}."


def _trials(family: str, count: int) -> str:
    return f"{LABELS[family]} {'trial' if count == 1 else 'trials'}"


def _narrowing(claim: dict[str, Any], arm: float | None, points: dict[str, Floats], fronts: dict[str, Front]) -> str:
    """What would move the interval's near end past 1."""
    ratio = claim["params_ratio_fvae_over_flow"]
    if arm is None or arm == 0:
        return _closing(ratio, fronts)
    distance = abs(math.log(ratio["headline"]))
    thinnest = _thinnest_region(points)
    needed = abs(math.log(arm) - math.log(ratio["headline"]))
    # An interval narrows about as the square root of the number of trials.
    factor = (needed / distance) ** 2 if distance > 0 else math.inf
    if factor > HOPELESS_FACTOR:
        return (
            f"The sizes needed differ by {math.expm1(distance):.0%} only, too little for more trials of this kind to "
            f"tell: a longer budget, or images that are harder to model, may part the families. {thinnest}"
        )
    return (
        f"Towards 1 the interval extends by a factor of {math.exp(needed):.3g}; less than {math.exp(distance):.3g} "
        f"would exclude 1. If the ratio stays, that takes about {factor:.2g} times as many trials. {thinnest}"
    )


def _closing(ratio: dict[str, Any], fronts: dict[str, Front]) -> str:
    """The interval's near end is open: which family's trials would close it."""
    upper = ratio["headline"] < 1
    missing, surpassing = ("fvae", "flow") if upper else ("flow", "fvae")
    not_reached = ratio["missed"][missing]["not_reached"]
    surpassed = ratio["missed"][surpassing]["surpassed_by_all"]
    level = list(ratio["at_bpd"])[len(ratio["at_bpd"]) // 2]
    end = "upper" if upper else "lower"
    if not_reached >= surpassed:
        front = fronts[missing]
        return (
            f"The interval has no {end} limit, as too few {LABELS[missing]} trials reach {level} bits/dim: more of "
            f"them from about {format_count(float(np.median(front.params)))} parameters up."
        )
    return (
        f"The interval has no {end} limit, as too few {LABELS[surpassing]} trials are small enough to cross {level} "
        f"bits/dim: more of them around {format_count(fronts[surpassing].params[0])} parameters and below."
    )


def _thinnest_region(points: dict[str, Floats]) -> str:
    """Where the fewest trials lie: a family and a third of the (log) range of sizes."""
    sizes = {family: trials[:, 0] for family, trials in points.items()}
    every = np.concatenate(list(sizes.values()))
    edges = np.geomspace(every.min(), every.max() * (1 + 1e-9), REGIONS + 1)
    counts = {family: np.histogram(values, edges)[0] for family, values in sizes.items()}
    family = min(counts, key=lambda name: counts[name].min())
    region = int(counts[family].argmin())
    low, high, count = edges[region], edges[region + 1], int(counts[family][region])
    return (
        f"Fewest now: {count} complete {_trials(family, count)} between {format_count(low)} and {format_count(high)} "
        "parameters."
    )

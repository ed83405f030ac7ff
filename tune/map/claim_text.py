"""The claim in plain sentences: what holds for which sizes, by how much, and what would decide the rest."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.cli.quantities import duration
from tune.map.style import LABELS, format_count
from tune.stats.pareto import Front

HOPELESS_FACTOR = 8
"""Where it takes more times the trials than this, more trials are not recommended."""
MORE_FACTOR = 1.5
"""Times the trials that advice asks for at least."""
WORDS = {"fewer": "needs fewer parameters than the flow", "more": "needs more parameters than the flow",
         "same": "needs the flow's parameters, within a tenth"}  # fmt: skip


def no_trials(claim: dict[str, Any]) -> dict[str, str]:
    """A family has no complete trial."""
    return {"why": f"There is nothing to compare yet: {_counts(claim)}.", "would_decide": _missing_trials(claim)}


def too_few_trials(claim: dict[str, Any]) -> dict[str, str]:
    """Both families have trials, but too few."""
    why = f"{_counts(claim)} are too few for a verdict, which needs at least {claim['min_trials']} of each."
    return {"why": why, "would_decide": _missing_trials(claim)}


def families_competed(claim: dict[str, Any]) -> dict[str, str]:
    """One front was searched, so neither family's own front is what it could have reached."""
    why = f"{_by_size(claim)} That is no verdict, as the families competed for one front (--goal front)."
    return {"why": why, "would_decide": "A search with --goal map, in which each family has a front of its own."}


def no_shared_size(claim: dict[str, Any], fvae: Front, flow: Front) -> dict[str, str]:
    """The families' sizes do not overlap, so nothing can be compared at equal size."""
    ends = {"f-VAEs": fvae.params, "flows": flow.params}
    sizes = " and ".join(
        f"{name} from {format_count(each[0])} to {format_count(each[-1])}" for name, each in ends.items()
    )
    smaller, larger = sorted(ends, key=lambda name: float(ends[name][0]))
    return {
        "why": f"No size is shared by both families: the fronts hold {sizes} parameters.",
        "would_decide": f"{larger} as small as the {smaller}, or {smaller} as large as the {larger}.".capitalize(),
    }


def decided(claim: dict[str, Any]) -> dict[str, str]:
    """Both families have enough trials, and share sizes."""
    return {"why": _by_size(claim), "would_decide": _would_decide(claim)}


def by_share(shares: Mapping[str, Any]) -> list[str]:
    """A sentence for each likelihood: how the parameters of a model of middle size are best split."""
    lines = []
    for likelihood, table in shares.items():
        middle = len(table["size"]) // 2
        best = {name: f"{value:.0%}" for name, value in table["best"][middle].items()}
        lines.append(
            f"With the {likelihood} likelihood and {format_count(table['size'][middle])} parameters, the fewest "
            f"bits/dim are reached with {best['share']} of them in E and G (95%: {best['low']} to {best['high']}; "
            "0% is a flow, 100% a VAE)."
        )
    return lines


def open_ratio_ends(ci95: Sequence[float | None], missed: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Why an end of the ratio's interval is 0 or null."""
    fvae, flow = missed["fvae"], missed["flow"]
    ends = {}
    if ci95[0] == 0:
        ends["low"] = f"0 = no lower limit: {_reasons(fvae['surpassed_by_all'], 'f-VAE', flow['not_reached'], 'flow')}"
    if ci95[1] is None:
        ends["high"] = (
            f"null = no upper limit: {_reasons(flow['surpassed_by_all'], 'flow', fvae['not_reached'], 'f-VAE')}"
        )
    return ends


def _reasons(surpassed: float, better: str, not_reached: float, worse: str) -> str:
    """Why a ratio is only bounded at the middle level, from shares of the samples."""
    reasons = []
    if surpassed:
        reasons.append(f"in {surpassed:.0%} the smallest {better} that was trained does better already")
    if not_reached:
        reasons.append(f"in {not_reached:.0%} no {worse} reaches it")
    return f"of the samples at the middle level, {' and '.join(reasons)}"


def _by_size(claim: Mapping[str, Any]) -> str:
    """A sentence for each range of sizes."""
    curve = claim["curves"]["all"]
    sentences = [_range_sentence(curve, each) for each in curve["ranges"]]
    if claim["at_k64"]:
        sentences.append(_at_k64(claim["at_k64"]))
    return " ".join(sentences) + f" From {_counts(claim)}."


def _at_k64(curve: Mapping[str, Any]) -> str:
    """A sentence on the importance-weighted bound of 64 samples, with the difference at the middle size."""
    words = {"fewer": "fewer parameters", "more": "more parameters", "undecided": "undecided"}
    ranges = (
        f"{words[each['answer']]} from {format_count(each['from'])} to {format_count(each['to'])}"
        for each in curve["ranges"]
    )
    place = len(curve["size"]) // 2
    median, low, high = (_signed(curve["difference"][name][place]) for name in ("median", "low", "high"))
    at = f"{format_count(curve['size'][place])} {median} bits/dim ({low} to {high})"
    return f"By the tighter bound of k = 64 samples: {', '.join(ranges)}; at {at}."


def _range_sentence(curve: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    sizes = np.array(curve["size"])
    inside = np.flatnonzero((sizes >= found["from"] * 0.999) & (sizes <= found["to"] * 1.001))
    place = int(inside[len(inside) // 2]) if len(inside) else int(np.argmin(np.abs(np.log(sizes / found["from"]))))
    where = f"From {format_count(found['from'])} to {format_count(found['to'])} parameters"
    difference = {name: curve["difference"][name][place] for name in ("median", "low", "high")}
    at = f"at {format_count(sizes[place])}"
    interval = f"95% interval {_signed(difference['low'])} to {_signed(difference['high'])}"
    if found["answer"] == "undecided":
        return f"{where} it is undecided: {at} the f-VAE has {_signed(difference['median'])} bits/dim ({interval})."
    better = "fewer" if difference["median"] < 0 else "more"
    reach = f"{abs(difference['median']):.3f} bits/dim {better} ({interval})"
    return f"{where} the f-VAE {WORDS[found['answer']]}: {at} it has {reach}{_ratio_text(curve, place)}."


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _ratio_text(curve: Mapping[str, Any], place: int) -> str:
    """The ratio of sizes, or the limit that is left of it."""
    median, low, high = (curve["ratio"][name][place] for name in ("median", "low", "high"))
    if low is not None and high is not None:
        return f", and needs {median:.2g} times the parameters ({low:.2g} to {high:.2g})"
    if low is None and high is not None:
        return f", and needs at most {high:.2g} times the parameters (smaller ones that would do were not trained)"
    if low is not None:
        return f", and needs at least {low:.2g} times the parameters (larger ones that would do were not trained)"
    return ""


def command(words: Sequence[str], trials: int, seconds: float | None) -> str:
    """The command that would settle what is open, and what it should cost.

    ``words``: options of the search, without ``--trials``; ``trials``: how many in all; ``seconds``: of wall time.
    """
    options = shlex.join([*words, "--trials", str(trials)])
    cost = "" if seconds is None else f", in about {duration(seconds)}"
    return f"This extends the search to {trials} trials{cost}: make search ARGS={shlex.quote(options)}"


def trials_needed(claim: Mapping[str, Any]) -> float | None:
    """Times the trials that would settle what is open; None where nothing is open, or more of them would not."""
    if claim["verdict"] == "undecided" and not claim["curves"]:
        return MORE_FACTOR
    curve = claim["curves"].get("all")
    factors = [_factor(curve, each) for each in curve["ranges"] if each["answer"] == "undecided"] if curve else []
    within = [max(MORE_FACTOR, factor) for factor in factors if factor <= HOPELESS_FACTOR]
    return max(within, default=None)


def _factor(curve: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Times the trials that a range's interval would have to have: it narrows about as the root of their number."""
    sizes = np.array(curve["size"])
    inside = (sizes >= found["from"] * 0.999) & (sizes <= found["to"] * 1.001)
    difference = {name: np.array(values)[inside] for name, values in curve["difference"].items()}
    half = np.maximum(difference["high"] - difference["median"], difference["median"] - difference["low"])
    factors = (half / np.maximum(np.abs(difference["median"]), 1e-9)) ** 2
    return float(np.median(factors)) if len(factors) else math.inf


def _would_decide(claim: Mapping[str, Any]) -> str:
    """What would settle the ranges that are open."""
    curve = claim["curves"]["all"]
    sizes = np.array(curve["size"])
    open_ranges = [each for each in curve["ranges"] if each["answer"] == "undecided"]
    if not open_ranges:
        return (
            "Decided at every size, for this data set, search space and training budget. A longer budget or other "
            "images would show whether it holds there too."
        )
    sentences = []
    for each in open_ranges:
        where = f"between {format_count(each['from'])} and {format_count(each['to'])} parameters"
        factor = _factor(curve, each)
        if factor > HOPELESS_FACTOR:
            inside = (sizes >= each["from"] * 0.999) & (sizes <= each["to"] * 1.001)
            gap = float(np.median(np.abs(np.array(curve["difference"]["median"])[inside]))) if inside.any() else 0.0
            sentences.append(
                f"{where.capitalize()} the families differ by some {gap:.3f} bits/dim only, too little for more trials "
                "of this kind to show: a longer budget may separate them."
            )
        else:
            sentences.append(
                f"{where.capitalize()} it takes about {max(MORE_FACTOR, factor):.2g} times as many trials."
            )
    return " ".join(sentences)


def _counts(claim: Mapping[str, Any]) -> str:
    return " and ".join(f"{count} complete {_trials(family, count)}" for family, count in claim["trials"].items())


def _missing_trials(claim: Mapping[str, Any]) -> str:
    lacking = {family: claim["min_trials"] - count for family, count in claim["trials"].items()}
    parts = [f"{count} more complete {_trials(family, count)}" for family, count in lacking.items() if count > 0]
    return f"At least {' and '.join(parts)}."


def _trials(family: str, count: int) -> str:
    return f"{LABELS[family]} {'trial' if count == 1 else 'trials'}"

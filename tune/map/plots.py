"""The map as one static picture, ``tradeoff.png``: for a README, a paper, MLflow."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from fvae.config import FAMILIES
from pipelines.storage import Storage
from tune.map.style import COLORS, GREY, INK, LABELS, focus_range, format_count
from tune.map.training_compute import best_so_far, trial_curve
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials

MARKERS = {"fvae": "o", "flow": "s", "vae": "D"}
DPI = 160
CAPTION_CHARACTERS = 124
"""Characters of a line of the caption, so that it ends with the panels."""
MOST_LABELLED = 2000
"""Ratio of an axis's ends beyond which its powers of ten are labels enough."""
TEXT: dict[str, Any] = {"color": INK, "fontsize": 10}


def write_plot(run: Storage, tradeoff: Mapping[str, Any], records: Sequence[TrialRecord]) -> None:
    """Write ``tradeoff.png`` (1600 × 864 pixels): size and compute against bits/dim.

    ``records`` are the trials that ``tradeoff`` was built from. Raises ``OSError`` where it cannot write.
    """
    figure = Figure(figsize=(10, 5.4), dpi=DPI, facecolor="white")
    size_axes, compute_axes = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.subplots_adjust(left=0.065, right=0.985, top=0.795, bottom=0.27, wspace=0.15)
    dataset = tradeoff["dataset"]
    name = textwrap.shorten(dataset["name"], 48, placeholder="…")
    shape = "×".join(str(side) for side in dataset["shape"])
    figure.suptitle(
        f"Size against bits/dim: {name} ({shape}, {dataset['bins']} levels)",
        x=0.065, y=0.975, ha="left", fontsize=14, fontweight="bold", color=INK, parse_math=False,
    )  # fmt: skip
    _draw_sizes(size_axes, tradeoff)
    _draw_compute(compute_axes, records)
    _draw_legend(figure, tradeoff)
    claim = tradeoff["claim"]
    verdict = f"Claim (the f-VAE needs fewer parameters): {claim['verdict']}. {claim['why']}"
    caption = textwrap.wrap(verdict, CAPTION_CHARACTERS)
    figure.text(0.065, 0.15, "\n".join(caption), va="top", linespacing=1.45, parse_math=False, **TEXT)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    run.write("tradeoff.png", content.getvalue())


def _draw_sizes(axes: Axes, tradeoff: Mapping[str, Any]) -> None:
    """Parameters against validation bits/dim: trials, fronts, fitted curves with their bands."""
    _style(axes, "Parameters", "Validation bits/dim (lower is better)", "Quality by size")
    trials = [trial for trial in tradeoff["trials"] if trial["val_bpd"] is not None and not trial["replicate_of"]]
    complete = [trial for trial in trials if trial["status"] == "complete"]
    part_trained = [trial for trial in trials if trial["status"] == "stopped"]
    if not complete:
        _show_message(axes, "No complete trial yet")
        return
    bars = [spread["val_bpd_mean"] - spread["val_bpd_std"] for spread in tradeoff["seeds"].values()]
    limits = focus_range([*(trial["val_bpd"] for trial in complete), *bars])
    for family in FAMILIES:
        color = COLORS[family]
        mine = [trial for trial in complete if trial["family"] == family]
        on_front = [trial for trial in mine if trial["id"] in tradeoff["fronts"][family]]
        band = tradeoff["fits"][family]["band"]
        if band:
            if band["low"]:
                axes.fill_between(band["params"], band["low"], band["high"], color=color, alpha=0.13, linewidth=0)
            axes.plot(band["params"], band["bpd"], color=color, linewidth=1.3, linestyle=(0, (4, 2)))
        beyond = tradeoff["fits"][family]["beyond"]
        if beyond:
            axes.fill_between(beyond["params"], beyond["low"], beyond["high"], color=color, alpha=0.06, linewidth=0)
            axes.plot(beyond["params"], beyond["bpd"], color=color, linewidth=1.3, linestyle=(0, (1, 2)))
        on_front.sort(key=lambda trial: trial["params"])
        axes.step(*_columns(on_front), where="post", color=color, linewidth=1.4, alpha=0.85)
        axes.scatter(*_columns(mine), s=26, marker=MARKERS[family], color=color, alpha=0.45, linewidth=0)
        axes.scatter(
            *_columns(on_front), s=44, marker=MARKERS[family], color=color, edgecolor="white", linewidth=0.8, zorder=3
        )
        _draw_seeds(axes, on_front, tradeoff["seeds"], color)
    for trial in part_trained:
        axes.scatter(
            trial["params"], trial["val_bpd"], s=26, marker=MARKERS[trial["family"]], facecolor="none",
            edgecolor=GREY, linewidth=1,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: _minor_label(value, axes.get_xlim())))
    axes.set_ylim(limits)
    above = sum(trial["val_bpd"] > axes.get_ylim()[1] for trial in trials)
    if above:
        axes.text(
            0.985, 0.975, f"{above} {'trial' if above == 1 else 'trials'} above the panel", transform=axes.transAxes,
            ha="right", va="top", fontsize=9, color=GREY,
        )  # fmt: skip


def _draw_seeds(
    axes: Axes, trials: Sequence[Mapping[str, Any]], seeds: Mapping[str, Mapping[str, float]], color: str
) -> None:
    """Mean ± standard deviation of the models that were trained with several seeds."""
    repeated = [trial for trial in trials if trial["id"] in seeds]
    spreads = [seeds[trial["id"]] for trial in repeated]
    axes.errorbar(
        [trial["params"] for trial in repeated],
        [spread["val_bpd_mean"] for spread in spreads],
        yerr=[spread["val_bpd_std"] for spread in spreads],
        fmt="_", color=color, markersize=7, elinewidth=1.2, capsize=3, capthick=1.2, zorder=4,
    )  # fmt: skip


def _draw_compute(axes: Axes, records: Sequence[TrialRecord]) -> None:
    """Training FLOPs against the best validation bits/dim of any single run so far, by family."""
    _style(axes, "Training FLOPs of one run", "", "Quality by training compute")
    complete = complete_trials(records)
    if not complete:
        _show_message(axes, "No complete trial yet")
        return
    low, high = focus_range(trial.val_bpd for trial in complete if trial.val_bpd is not None) or (0, 1)
    high += 0.5 * (high - low)
    first = []
    for family in FAMILIES:
        trials = [trial for trial in complete if trial.family == family]
        for trial in trials:
            axes.plot(*trial_curve(trial, "flops"), color=COLORS[family], alpha=0.16, linewidth=0.8)
        best = best_so_far(trials, "flops")
        axes.step(*best, where="post", color=COLORS[family], linewidth=2)
        first += [compute for compute, bpd in zip(*best, strict=True) if bpd < high][:1]
    axes.set_xscale("log")
    # The first epochs are far above what any panel of the final quality can hold.
    if first:
        axes.set_xlim(left=0.7 * min(first))
    axes.set_ylim(low, high)


def _draw_legend(figure: Figure, tradeoff: Mapping[str, Any]) -> None:
    tried = {trial["family"] for trial in tradeoff["trials"]}
    handles = [
        Line2D([], [], color=COLORS[family], marker=MARKERS[family], markeredgecolor="white", markersize=8, linewidth=2,
               label=LABELS[family])
        for family in FAMILIES if family in tried
    ]  # fmt: skip
    handles += [
        Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (4, 2)), label="a + b·N$^{-α}$ (95% band)"),
        Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (1, 2)), label="forecast (95% band)"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="none", linestyle="none", label="part-trained"),
    ]
    if tradeoff["seeds"]:
        handles.append(Line2D([], [], color=INK, marker="|", markersize=11, linestyle="none", label="± s.d. of seeds"))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.057, 0.935), ncols=len(handles), frameon=False,
        fontsize=10, handlelength=1.8, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip


def _style(axes: Axes, x_label: str, y_label: str, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, pad=7)
    axes.set_xlabel(x_label, **TEXT)
    axes.set_ylabel(y_label, **TEXT)
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.tick_params(which="minor", labelsize=9.5, labelcolor=INK, pad=5)
    axes.grid(alpha=0.18, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _show_message(axes: Axes, message: str) -> None:
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])


def _columns(trials: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    return [trial["params"] for trial in trials], [trial["val_bpd"] for trial in trials]


def _minor_label(value: float, limits: tuple[float, float]) -> str:
    """Labels 2 and 5 of each decade on a short axis, on which the powers of ten alone may leave one number."""
    if limits[1] > MOST_LABELLED * limits[0]:
        return ""
    digit = round(value / 10.0 ** math.floor(math.log10(value) + 1e-9))
    return format_count(value) if digit in (2, 5) else ""

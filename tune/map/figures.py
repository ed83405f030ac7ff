"""The page's interactive panels (Plotly). Text that comes from users is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fvae.config import FAMILIES
from tune.map.style import COLORS, GREY, INK, LABELS, focus_range, format_count, format_seconds, rgba
from tune.map.training_compute import Axis, best_so_far, trial_curve
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials

SYMBOLS = {"fvae": "circle", "flow": "square", "vae": "diamond"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
COMPUTE_AXES: tuple[tuple[Axis, str], ...] = (
    ("flops", "Training FLOPs of one run"),
    ("seconds", "Seconds of one run"),
)

SIZE_COLORS = ("#56b4e9", "#0072b2", "#332288")
"""Colours of three sizes, from small to large."""
COMPARED_COLORS = {"all": COLORS["fvae"], "discretized": "#cc79a7", "gaussian": "#e69f00"}

Trial = Mapping[str, Any]


def size_figure(tradeoff: Mapping[str, Any]) -> go.Figure:
    """Parameters (log) against validation bits/dim: fronts, fitted curves with bands, every trial with a figure."""
    figure = _figure(560)
    trials = [trial for trial in tradeoff["trials"] if trial["val_bpd"] is not None and not trial["replicate_of"]]
    complete = [trial for trial in trials if trial["status"] == "complete"]
    for family in FAMILIES:
        mine = [trial for trial in complete if trial["family"] == family]
        if mine:
            _add_curve(figure, family, tradeoff["fits"][family]["band"], what="fit", dash="dash", opacity=0.13)
            _add_curve(figure, family, tradeoff["fits"][family]["beyond"], what="forecast", dash="dot", opacity=0.06)
            _add_family(figure, family, mine, tradeoff["fronts"][family])
            _add_seeds(figure, family, mine, tradeoff["seeds"])
    _add_part_trained(figure, [trial for trial in trials if trial["status"] == "stopped"])
    bars = [spread["val_bpd_mean"] - spread["val_bpd_std"] for spread in tradeoff["seeds"].values()]
    limits = focus_range([*(trial["val_bpd"] for trial in complete), *bars])
    figure.update_xaxes(type="log", title="Trained parameters (log scale)", tickformat="~s", dtick="D2")
    figure.update_yaxes(title="Validation bits/dim (lower is better)", range=limits)
    above = sum(trial["val_bpd"] > limits[1] for trial in trials) if limits else 0
    if above:
        figure.add_annotation(
            text=f"{above} {'trial' if above == 1 else 'trials'} above: double-click to see all", showarrow=False,
            x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="top", font={"color": GREY, "size": 12},
        )  # fmt: skip
    return figure


def comparison_figure(claim: Mapping[str, Any], what: Literal["difference", "ratio"]) -> go.Figure:
    """Size (log) against the f-VAE's bits/dim less the flow's (``difference``), or against the ratio of their sizes
    (log) at equal bits/dim: medians with 95% bands, for all f-VAEs and for each likelihood where there are several."""
    figure = _figure(400)
    curves = claim["curves"]
    shown = list(curves) if len(curves) > 2 else ["all"]
    unit, even = ("bits/dim", 0) if what == "difference" else ("times the parameters", 1)
    for label in shown:
        curve, color = curves[label], COMPARED_COLORS.get(label, GREY)
        name = "f-VAE, best likelihood" if label == "all" else f"f-VAE, {label}"
        values = curve[what]
        low, high = (
            [median if end is None else end for end, median in zip(values[side], values["median"], strict=True)]
            for side in ("low", "high")
        )
        figure.add_scatter(
            x=[*curve["size"], *reversed(curve["size"])], y=[*high, *reversed(low)], fill="toself", mode="lines",
            fillcolor=rgba(color, 0.15), line={"width": 0}, hoverinfo="skip", legendgroup=label, showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=curve["size"], y=values["median"], mode="lines", line={"color": color, "width": 2.5}, name=name,
            legendgroup=label, hovertemplate=f"{name}: %{{y:.3g}} {unit} at %{{x:.3s}}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=even, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(type="log", title="Parameters (log scale)", tickformat="~s", dtick="D2")
    figure.update_yaxes(title="bits/dim less the flow's" if what == "difference" else "parameters over the flow's")
    if what == "ratio":
        figure.update_yaxes(type="log", tickformat="~g", dtick="D2")
    return figure


def share_figure(shares: Mapping[str, Any], likelihood: str) -> go.Figure:
    """Share of the parameters in E and G against the fewest bits/dim that models of a likelihood would reach with it,
    at three sizes: medians with 95% bands, the best share as a point with its interval. Flow and VAE are the ends."""
    figure = _figure(400)
    table = shares[likelihood]
    for place, size in enumerate(table["size"]):
        color, name = SIZE_COLORS[place], f"{format_count(size)} parameters"
        rows = [table[side][place] for side in ("low", "median", "high")]
        known = [each for each in zip(table["share"], *rows, strict=True) if each[1] is not None]
        inner = [each for each in known if 0 < each[0] < 1]
        x, low, median, high = zip(*inner, strict=True)
        figure.add_scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", mode="lines", hoverinfo="skip",
            fillcolor=rgba(color, 0.12), line={"width": 0}, legendgroup=name, showlegend=False,
        )  # fmt: skip
        hover = f"{name}: %{{y:.3f}} bits/dim with %{{x:.0%}} in E and G<extra></extra>"
        figure.add_scatter(
            x=x, y=median, mode="lines", line={"color": color, "width": 2.5}, name=name, legendgroup=name,
            hovertemplate=hover,
        )  # fmt: skip
        ends = [each for each in known if each[0] in (0, 1)]
        figure.add_scatter(
            x=[each[0] for each in ends], y=[each[2] for each in ends], mode="markers", showlegend=False,
            marker={"color": color, "size": 9, "symbol": [SYMBOLS["vae" if each[0] else "flow"] for each in ends]},
            error_y={"type": "data", "symmetric": False, "color": color, "array": [each[3] - each[2] for each in ends],
                     "arrayminus": [each[2] - each[1] for each in ends]},
            legendgroup=name, hovertemplate=hover,
        )  # fmt: skip
    figure.update_xaxes(
        title="share of the parameters in E and G", range=(-0.05, 1.05), tickvals=[0, 0.25, 0.5, 0.75, 1],
        ticktext=["flow", "25%", "50%", "75%", "VAE"],
    )  # fmt: skip
    figure.update_yaxes(title="Validation bits/dim")
    return figure


def compute_figure(records: Sequence[TrialRecord]) -> go.Figure:
    """Training compute (log) against the best bits/dim of any single complete run so far: FLOPs, and seconds."""
    figure = _figure(460, make_subplots(1, 2, horizontal_spacing=0.09))
    complete = complete_trials(records)
    low, high = focus_range(trial.val_bpd for trial in complete if trial.val_bpd is not None) or (0.0, 1.0)
    high += 0.5 * (high - low)
    for column, (axis, title) in enumerate(COMPUTE_AXES, start=1):
        first = []
        for family in FAMILIES:
            trials = [trial for trial in complete if trial.family == family]
            for trial in trials:
                curve = trial_curve(trial, axis)
                hover = [f"{trial.id}<br>epoch {epoch.epoch}: {epoch.val_bpd:.3f} bits/dim" for epoch in trial.history]
                figure.add_scatter(
                    x=curve.compute, y=curve.bpd, mode="lines", line={"color": rgba(COLORS[family], 0.18), "width": 1},
                    legendgroup=family, showlegend=False, text=hover, hovertemplate="%{text}<extra></extra>",
                    row=1, col=column,
                )  # fmt: skip
            best = best_so_far(trials, axis)
            if best.compute:
                figure.add_scatter(
                    x=best.compute, y=best.bpd, mode="lines", line={"color": COLORS[family], "width": 3, "shape": "hv"},
                    name=LABELS[family], legendgroup=family, showlegend=column == 1, row=1, col=column,
                    hovertemplate=f"best {LABELS[family]} so far: %{{y:.3f}} bits/dim<br>at %{{x:.3s}}<extra></extra>",
                )  # fmt: skip
            first += [compute for compute, bpd in zip(*best, strict=True) if bpd < high][:1]
        figure.update_xaxes(type="log", title=title, dtick=1, exponentformat="power", row=1, col=column)
        if axis == "seconds":
            figure.update_xaxes(dtick="D2", tickformat="~g", row=1, col=column)
        if first:
            last = max(trial_curve(trial, axis).compute[-1] for trial in complete if trial.history)
            figure.update_xaxes(range=_log_range(0.7 * min(first), 1.2 * last), row=1, col=column)
    figure.update_yaxes(range=(low, high))
    figure.update_yaxes(title="Validation bits/dim", row=1, col=1)
    return figure


def importance_figure(importance: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Share of the variance of validation bits/dim that each hyperparameter explains, one panel a family."""
    families = [family for family in FAMILIES if importance.get(family)]
    rows = max(len(importance[family]) for family in families)
    panels = make_subplots(
        1, len(families), subplot_titles=[LABELS[name] for name in families], horizontal_spacing=0.16
    )
    figure = _figure(130 + 26 * rows, panels)
    for column, family in enumerate(families, start=1):
        shares = importance[family]
        figure.add_bar(
            x=list(shares.values()), y=[escape(name) for name in shares], orientation="h", marker_color=COLORS[family],
            showlegend=False, hovertemplate="%{y}: %{x:.0%}<extra></extra>", row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(range=(0, 1), tickformat=".0%", dtick=0.5)
    figure.update_layout(margin_t=76)
    return figure


def _figure(height: int, figure: go.Figure | None = None) -> go.Figure:
    figure = figure or go.Figure()
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 64, "r": 16, "t": 76, "b": 56}, hovermode="closest",
        showlegend=True,
        font={"family": FONT, "size": 14, "color": INK}, hoverlabel={"align": "left", "font_size": 12},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": ""},
    )  # fmt: skip
    return figure


def _add_curve(
    figure: go.Figure, family: str, band: Mapping[str, Any] | None, *, what: str, dash: str, opacity: float
) -> None:
    """A curve of the family, and its band where there is one."""
    if not band:
        return
    group = f"{family} {what}"
    if band["low"]:
        figure.add_scatter(
            x=[*band["params"], *reversed(band["params"])], y=[*band["high"], *reversed(band["low"])], fill="toself",
            fillcolor=rgba(COLORS[family], opacity), line={"width": 0}, mode="lines", hoverinfo="skip",
            legendgroup=group, showlegend=False,
        )  # fmt: skip
    figure.add_scatter(
        x=band["params"], y=band["bpd"], mode="lines", line={"color": COLORS[family], "width": 1.6, "dash": dash},
        name=f"{LABELS[family]} {what}", legendgroup=group,
        hovertemplate=f"{LABELS[family]} {what}: %{{y:.3f}} bits/dim at %{{x:.3s}}<extra></extra>",
    )  # fmt: skip


def _add_family(figure: go.Figure, family: str, trials: Sequence[Trial], front_ids: Sequence[str]) -> None:
    """The family's complete trials, those on its front larger and joined by a staircase."""
    color = COLORS[family]
    front = sorted((trial for trial in trials if trial["id"] in front_ids), key=lambda trial: trial["params"])
    others = [trial for trial in trials if trial["id"] not in front_ids]
    figure.add_scatter(
        **_positions(others), mode="markers", legendgroup=family, showlegend=False,
        marker={"color": color, "opacity": 0.45, "size": 8, "symbol": SYMBOLS[family]},
    )  # fmt: skip
    figure.add_scatter(
        **_positions(front), mode="lines+markers", name=f"{LABELS[family]} front", legendgroup=family,
        line={"color": color, "width": 1.6, "shape": "hv"},
        marker={"size": 11, "symbol": SYMBOLS[family], "line": {"color": "white", "width": 1}},
    )  # fmt: skip


def _add_seeds(
    figure: go.Figure, family: str, trials: Sequence[Trial], seeds: Mapping[str, Mapping[str, float]]
) -> None:
    """Mean ± standard deviation of the models that were trained with several seeds."""
    repeated = [(trial, seeds[trial["id"]]) for trial in trials if trial["id"] in seeds]
    if not repeated:
        return
    figure.add_scatter(
        x=[trial["params"] for trial, _ in repeated], y=[spread["val_bpd_mean"] for _, spread in repeated],
        error_y={"type": "data", "array": [spread["val_bpd_std"] for _, spread in repeated], "color": COLORS[family],
                 "thickness": 1.5, "width": 5},
        mode="markers", marker={"color": COLORS[family], "symbol": "line-ew-open", "size": 9},
        name=f"{LABELS[family]} seeds (mean ± s.d.)", legendgroup=f"{family} seeds",
        hovertext=[f"{escape(trial['id'])}: {spread['seeds']} seeds" for trial, spread in repeated],
        hovertemplate="%{hovertext}<br>mean %{y:.4f} ± %{error_y.array:.4f} bits/dim<extra></extra>",
    )  # fmt: skip


def _add_part_trained(figure: go.Figure, trials: Sequence[Trial]) -> None:
    if trials:
        figure.add_scatter(
            **_positions(trials), mode="markers+text", name="part-trained, stopped at epoch (ep)",
            textposition="top center", textfont={"size": 10, "color": GREY}, texttemplate="%{customdata}",
            customdata=[f"ep {trial['epochs']}" for trial in trials],
            marker={
                "color": GREY, "size": 9, "symbol": [f"{SYMBOLS[trial['family']]}-open" for trial in trials],
                "line_width": 1.5,
            },
        )  # fmt: skip


def _positions(trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "x": [trial["params"] for trial in trials],
        "y": [trial["val_bpd"] for trial in trials],
        "hovertext": [_hover(trial) for trial in trials],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _hover(trial: Trial) -> str:
    """Everything about a trial that a reader may ask of a point."""
    trained = "complete" if trial["status"] == "complete" else f"{trial['status']} after epoch {trial['epochs']}"
    lines = [
        f"<b>{escape(trial['id'])}</b> · {LABELS[trial['family']]} · {trained}",
        f"{trial['params']:,} parameters · {format_count(trial['flops_per_image'])}FLOPs an image",
        f"validation {trial['val_bpd']:.4f} bits/dim",
    ]
    if trial["test_bpd"] is not None:
        lines.append(f"test {trial['test_bpd']:.4f} (k = 1), {trial['test_bpd_iwae64']:.4f} (k = 64) bits/dim")
    if trial["sigma1"] is not None and trial["sigma2"] is not None:
        lines.append(" · ".join(scale_texts(trial)))
    lines.append(f"{trial['epochs']} epochs · {format_seconds(trial['seconds'])}")
    if trial["reason"]:
        lines.append(escape(trial["reason"]))
    settings = [f"{name} = {value}" for name, value in (trial["config"] | trial["train"]).items()]
    # Three to a line: one to a line would be taller than the panel.
    rows = [", ".join(settings[start : start + 3]) for start in range(0, len(settings), 3)]
    return "<br>".join(lines + [""] + [escape(row) for row in rows])


def scale_texts(trial: Trial) -> tuple[str, str]:
    """A trained σ1 and σ2 as text: in bins, but for σ1 of a latent whose shape is not the image's."""
    sigma1 = trial["sigma1_bins"]
    first = f"σ1 {trial['sigma1']:.3g} of the latent" if sigma1 is None else f"σ1 {sigma1:.3g} bins"
    return first, f"σ2 {trial['sigma2_bins']:.3g} bins"


def _log_range(low: float, high: float) -> tuple[float, float]:
    """Plotly wants the ends of a log axis as powers of ten."""
    return math.log10(low), math.log10(high)

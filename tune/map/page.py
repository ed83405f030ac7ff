"""The map as one self-contained page, ``tradeoff.html``: it loads nothing, so it works with no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from fvae.config import FAMILIES
from pipelines.storage import Storage
from pipelines.storage.json_objects import read_present
from tune.map.claim_text import by_share
from tune.map.figures import FONT, comparison_figure, compute_figure, importance_figure, share_figure, size_figure
from tune.map.style import COLORS, LABELS, format_count, format_seconds
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials

TEMPLATE = Path(__file__).with_name("page.html")
PLOTLY = Path(__file__).with_name("plotly-basic.min.js")
"""Plotly's own bundle of scatter, bar and pie charts (npm's ``plotly.js-basic-dist-min``), a quarter of the whole."""
VERDICT_COLORS = {"supported": "#1a7f5a", "refuted": "#b3261e", "undecided": "#4a5160"}
PICTURES = (
    ("samples", "samples.png"),
    ("reconstructions (original, then rebuilt)", "reconstructions.png"),
    ("interpolations between two images", "interpolations.png"),
)
PICTURED = 4
"""Models of each family whose pictures are shown, from its smallest to its largest: all of them take megabytes."""

COMPARED: tuple[Literal["difference", "ratio"], ...] = ("difference", "ratio")

Trial = Mapping[str, Any]


def write_page(run: Storage, tradeoff: Mapping[str, Any], records: Sequence[TrialRecord]) -> None:
    """Write ``tradeoff.html``.

    ``records`` are the trials that ``tradeoff`` was built from: their histories draw the second panel.
    Pictures are taken from ``trials/<id>/`` where they exist. Raises ``OSError`` where it cannot write.
    """
    # Every value is escaped but those that this module marks as safe: Plotly's code and its panels.
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    trials = tradeoff["trials"]
    claim = tradeoff["claim"]
    measured = any(trial["val_bpd"] is not None for trial in trials)
    importance = tradeoff["importance"]
    models = _front_trials(tradeoff)
    statuses = ("complete", "stopped", "failed")
    page = template.render(
        font=Markup(FONT),
        plotly_js=Markup(PLOTLY.read_text(encoding="utf-8")),
        dataset=tradeoff["dataset"],
        seed=tradeoff["seed"],
        budget=tradeoff["budget"],
        counts={status: sum(trial["status"] == status for trial in trials) for status in statuses},
        unfinished=len(tradeoff["unfinished"]),
        claim=claim,
        verdict_color=VERDICT_COLORS[claim["verdict"]],
        open_ends=_open_ends(claim),
        levels=_levels(claim["params_ratio_fvae_over_flow"]),
        comparison_panels=[_panel(comparison_figure(claim, what)) for what in COMPARED] if claim["curves"] else None,
        covers=_covers(claim),
        share_panels={name: _panel(share_figure(claim["shares"], name)) for name in claim["shares"]},
        by_share=by_share(claim["shares"]),
        size_panel=_panel(size_figure(tradeoff)) if measured else None,
        compute_panel=_panel(compute_figure(records)) if complete_trials(records) else None,
        importance_panel=_panel(importance_figure(importance)) if any(importance.values()) else None,
        fits=[_fit_row(tradeoff, family) for family in FAMILIES],
        reference=_reference(tradeoff["hypervolume"]["reference"]),
        models=[_model_row(trial, tradeoff) for trial in models],
        pictures=_evenly_chosen(_pictures(run, models)),
        incomplete=[_incomplete_row(trial) for trial in trials if trial["status"] != "complete"],
    )
    run.write("tradeoff.html", page.encode())


def _panel(figure: go.Figure) -> Markup:
    """A panel's markup, for a page that already holds Plotly's code."""
    config = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _front_trials(tradeoff: Mapping[str, Any]) -> list[Trial]:
    """Trials on any front, family by family, by ascending parameters."""
    by_id = {trial["id"]: trial for trial in tradeoff["trials"]}
    return [by_id[trial_id] for family in FAMILIES for trial_id in tradeoff["fronts"][family]]


def _model_row(trial: Trial, tradeoff: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": trial["id"],
        "on_all": trial["id"] in tradeoff["fronts"]["all"],
        "label": LABELS[trial["family"]],
        "color": COLORS[trial["family"]],
        "params": f"{trial['params']:,}",
        "val": f"{trial['val_bpd']:.3f}",
        "test": _with_error(trial["test_bpd"], trial["test_bpd_standard_error"]),
        "iwae": _with_error(trial["test_bpd_iwae64"], trial["test_bpd_iwae64_standard_error"]),
        "likelihood": "–" if trial["family"] == "flow" else trial["config"].get("likelihood", "gaussian"),
        "sigma1": _before_and_after(trial, "sigma1"),
        "sigma2": _before_and_after(trial, "sigma2"),
        "epochs": f"{trial['best_epoch']} of {trial['epochs']}",
        "seconds": format_seconds(trial["seconds"]),
    }


def _before_and_after(trial: Trial, name: str) -> str:
    """A scale in bins; σ1 of another latent than an image in units of the latent, marked *."""
    if trial[f"{name}_init_bins"] is not None:
        return f"{_number(trial[f'{name}_init_bins'])} → {_number(trial[f'{name}_bins'])}"
    return f"{_number(trial[f'{name}_init'])} → {_number(trial[name])}*"


def _incomplete_row(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial["id"],
        "label": LABELS[trial["family"]],
        "params": f"{trial['params']:,}",
        "status": "part-trained" if trial["status"] == "stopped" else trial["status"],
        "epochs": trial["epochs"],
        "val": _number(trial["val_bpd"]),
        "reason": trial["reason"],
    }


def _fit_row(tradeoff: Mapping[str, Any], family: str) -> dict[str, Any]:
    fit, area = tradeoff["fits"][family], tradeoff["hypervolume"][family]
    intervals = fit["ci95"] or {}
    notes = [fit["why"]] if fit["why"] else []
    if fit.get("at_bounds"):
        names = ", ".join("α" if name == "alpha" else name for name in fit["at_bounds"])
        notes.append(f"{names} at its limit: the front does not determine it")
    if fit["saturation"]:
        notes.append(_saturation(fit["saturation"]))
    return {
        "label": LABELS[family],
        "color": COLORS[family],
        **{name: _with_interval(fit[name], intervals.get(name)) for name in ("a", "b", "alpha")},
        "trials": f"{fit['front_points']} / {fit['trials']}",
        "hypervolume": _number(area),
        "note": "; ".join(notes),
    }


def _saturation(found: Mapping[str, Any]) -> str:
    """Size beyond which more parameters do not help, and why."""
    count = found["larger"]
    trials = "the complete trial" if count == 1 else f"the {count} complete trials"
    no_better = f"{trials} of up to {format_count(found['largest'])} parameters reached no fewer bits/dim than "
    no_better += format_count(found["params"])
    if not found["overfit"]:
        return f"{no_better}, without overfitting: other hyperparameters or a longer training may"
    of_them = "overfits" if count == 1 else f"{found['overfit']} of them overfit"
    return f"{no_better}: {of_them}, the best epoch was {found['best_epoch']} of {found['epochs']}"


def _levels(ratio: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "bpd": level,
            "fvae": format_count(ratio["fvae_params"][level]),
            "flow": format_count(ratio["flow_params"][level]),
            "ratio": f"{value:.3g}",
            "interval": _interval(ratio["at_bpd_ci95"][level]),
        }
        for level, value in ratio["at_bpd"].items()
    ]


def _open_ends(claim: Mapping[str, Any]) -> list[str]:
    """Why the ends of the claim's intervals are open. JSON's ``null`` is a word for programs only."""
    comparisons = (claim["params_ratio_fvae_over_flow"], claim["bpd_difference_fvae_minus_flow"])
    texts = [text for comparison in comparisons for text in comparison["open_ends"].values()]
    reasons = [text.partition(" = ")[2] for text in texts]
    return [reason[0].upper() + reason[1:] for reason in reasons]


def _covers(claim: Mapping[str, Any]) -> str:
    """What the intervals are made of, as a list in words."""
    luck = {
        "search": "which hyperparameters happened to be tried",
        "seeds": "the luck of a training's seed",
        "images": "which images happened to be measured",
    }
    parts = [luck[name] for name in claim["covers"]]
    return " and ".join(", ".join(parts).rsplit(", ", 1))


def _reference(reference: Mapping[str, Any] | None) -> dict[str, str] | None:
    if reference is None:
        return None
    return {"params": f"{reference['params']:,}", "val_bpd": f"{reference['val_bpd']:.3f}"}


def _evenly_chosen(pictured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``PICTURED`` models of each family, its smallest and its largest among them; they are by size."""
    chosen = []
    for family in FAMILIES:
        own = [model for model in pictured if model["family"] == family]
        places = np.linspace(0, len(own) - 1, min(PICTURED, len(own))).round().astype(int)
        chosen += [own[place] for place in places]
    return chosen


def _pictures(run: Storage, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The pictures that each trial left, as base64; trials that left none are not listed."""
    keys = [f"trials/{trial['id']}/{file}" for trial in trials for _, file in PICTURES]
    contents = iter(read_present(run, keys))
    shown = []
    for trial in trials:
        found = [(name, content) for name, _ in PICTURES if (content := next(contents)) is not None]
        if found:
            shown.append(
                {
                    "id": trial["id"],
                    "family": trial["family"],
                    "color": COLORS[trial["family"]],
                    "params": format_count(trial["params"]),
                    "val": f"{trial['val_bpd']:.3f}",
                    "images": [(name, base64.b64encode(content).decode()) for name, content in found],
                }
            )
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _with_interval(value: float | None, ci95: Sequence[float | None] | None) -> str:
    return _number(value) if ci95 is None else f"{_number(value)} ({_interval(ci95)})"


def _interval(ci95: Sequence[float | None]) -> str:
    return " to ".join("no limit" if end is None else f"{end:.3g}" for end in ci95)

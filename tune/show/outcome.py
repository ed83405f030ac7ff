"""What a search prints at its end: the fronts, the verdict, and why it has ended."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tune.records.ledger import Ledger
from tune.settings import SearchSettings

SHOWN_REASONS = 3
"""Reasons that are given where every trial has failed."""


def summary(tradeoff: dict[str, Any]) -> RenderableType:
    """The finished map in a terminal: each family's front, and the verdict."""
    trials = {trial["id"]: trial for trial in tradeoff["trials"]}
    table = Table(box=None, pad_edge=False, header_style="bold", title="Pareto fronts", title_justify="left")
    table.add_column("family")
    table.add_column("trial")
    for name in ("parameters", "val", "test", "test IWAE-64", "σ1 (bins)", "σ2 (bins)"):
        table.add_column(name, justify="right")
    for family, ids in tradeoff["fronts"].items():
        if family == "all":
            continue
        for trial in (trials[trial_id] for trial_id in ids):
            figures = (trial["val_bpd"], trial["test_bpd"], trial["test_bpd_iwae64"])
            table.add_row(
                family,
                trial["id"],
                f"{trial['params']:,}",
                *("—" if figure is None else f"{figure:.3f}" for figure in figures),
                f"{trial['sigma1']:.3g}*" if trial["sigma1_bins"] is None else f"{trial['sigma1_bins']:.3g}",
                f"{trial['sigma2_bins']:.3g}",
            )
    claim = tradeoff["claim"]
    verdict = Text(f"Verdict on the paper's claim: {claim['verdict']}. ", style="bold")
    note = "bits/dim; lower is better; *: in units of the latent"
    return Group(table, Text(note, style="dim"), Text(), verdict.append(claim["why"], style="default"))


def how_it_ended(why: str, ledger: Ledger, settings: SearchSettings, *, trained: bool) -> str:
    """Why no more is trained, what would train more, and how many trials are paused."""
    nothing = ""
    if not trained and why.startswith("--time-budget") and not any(record.epochs for record in ledger.records.values()):
        nothing = " No trial has trained an epoch in it: to start one takes some seconds, and an epoch its time."
    elif not trained:
        nothing = " This command had nothing to train."
    larger = "a larger budget"
    if settings.max_trials is not None and why.startswith("--trials"):
        larger = f"a larger budget (--trials {max(settings.max_trials + 1, 3 * settings.max_trials // 2)})"
    count = len(ledger.with_status("running"))
    paused = f" {count} unfinished {'trial' if count == 1 else 'trials'} would then go on." if count else ""
    return f"Ended: {why}.{nothing} The same command with {larger} extends the search.{paused}"


def why_all_failed(ledger: Ledger) -> str | None:
    """The reasons of all trials, the commonest first, where every one has failed; None where any has not."""
    reasons = [record.reason or "for no known reason" for record in ledger.with_status("failed")]
    if not reasons or len(reasons) < len(ledger.records):
        return None
    counted = Counter(reasons).most_common(SHOWN_REASONS)
    lines = [f"{reason} ({count} of {len(reasons)})" for reason, count in counted]
    others = len(reasons) - sum(count for _, count in counted)
    return "; ".join(lines) + (f"; and {others} for other reasons" if others else "")


def say_interrupted(console: Console) -> int:
    """Print that the search was interrupted. Returns the exit status."""
    console.print("Interrupted. The same command goes on where it stopped; nothing finished is lost.", soft_wrap=True)
    return 1


def trained_epochs(ledger: Ledger) -> int:
    """Finished epochs of all trials together."""
    return sum(record.epochs for record in ledger.records.values())

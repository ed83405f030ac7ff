"""How a search has ended, in a line: its budget, Ctrl-C, or that every trial has failed."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from tune.records.ledger import Ledger
from tune.settings import SearchSettings

SHOWN_REASONS = 3
"""Reasons that are given where every trial has failed."""


def how_it_ended(why: str, ledger: Ledger, settings: SearchSettings, *, trained: bool) -> str:
    """Why no more is trained, what was put aside, and what would train more."""
    nothing = ""
    if not trained and why.startswith("--time-budget") and not any(record.epochs for record in ledger.records.values()):
        nothing = " No trial has trained an epoch in it: to start one takes some seconds, and an epoch its time."
    elif not trained:
        nothing = " This command had nothing to train."
    larger = "a larger budget"
    if settings.max_trials is not None and why.startswith("--trials"):
        larger = f"a larger budget (--trials {max(settings.max_trials + 1, 3 * settings.max_trials // 2)})"
    count = len(ledger.with_status("running"))
    put_aside = f" {count} unfinished {'trial' if count == 1 else 'trials'} would then go on." if count else ""
    return f"Ended: {why}.{nothing} The same command with {larger} extends the search.{put_aside}"


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
    """One line. Returns the exit status."""
    console.print("Interrupted. The same command goes on where it stopped; nothing finished is lost.", soft_wrap=True)
    return 1


def trained_epochs(ledger: Ledger) -> int:
    """Of all trials together."""
    return sum(record.epochs for record in ledger.records.values())

"""Tables of schedules and runs for the terminal."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipelines.scheduling.cron import slot_time
from pipelines.scheduling.runs import MANUAL, Run
from pipelines.scheduling.store import Entry, Store

PLAIN_WIDTH = 400
"""Columns where there is no terminal: nothing is truncated for a program that reads it."""


def show_schedules(console: Console, entries: Sequence[Entry], open_runs: Sequence[Run]) -> None:
    """A row for each schedule."""
    if not entries:
        console.print("No schedules.")
        return
    table = _table("schedule", "cron", "zone", "next run", "now", "command")
    for entry in entries:
        schedule = entry.schedule
        slot = entry.next_slot()
        if entry.paused:
            coming = "paused"
        else:
            coming = "never" if slot is None else schedule.local(max(slot.timestamp(), time.time() - 60))
        state = ", ".join(run.state for run in open_runs if run.job.name == schedule.name)
        command = shlex.join((*(schedule.entrypoint or ("pipelines.retrain",)), *schedule.arguments))
        table.add_row(schedule.name, schedule.cron, schedule.zone, coming, state, command)
    _print(console, table)


def show_history(console: Console, runs: Sequence[Run], store: Store, *, steps: bool) -> None:
    """A row for each run, and with ``steps`` one for each of its steps."""
    if not runs:
        console.print("No runs yet.")
        return
    table = _table("schedule", "slot", "state", "attempts", "seconds", "reason", "submission id", right=(3, 4))
    for run in runs:
        seconds = "" if run.seconds is None else f"{run.seconds:,.0f}"
        table.add_row(
            run.job.name, slot(run), run.state, str(run.attempt or ""), seconds, run.reason, run.submission_id
        )
        for step in store.steps(run) if steps else ():
            at = run.job.local(step.at)
            table.add_row("", f"  {at}", f"  {step.state}", str(step.attempt or ""), "", step.reason, "", style="dim")
    _print(console, table)


def slot(run: Run) -> str:
    """A run's slot on its schedule's own clock."""
    if run.slot.startswith(MANUAL):
        return f"{run.job.local(run.claimed_at)} (by hand)"
    return run.job.local(slot_time(run.slot).timestamp())


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(
            column, justify="right" if place in right else "left", no_wrap=column not in ("reason", "command")
        )
    return table


def _print(console: Console, table: Table) -> None:
    if not console.is_terminal:
        console = Console(file=console.file, width=PLAIN_WIDTH)
    console.print(table, highlight=False, markup=False)

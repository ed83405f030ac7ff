"""The display of a running search: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipelines.cli.quantities import duration
from tune.records.ledger import Ledger, TrialRecord
from tune.show.plan import Forecaster

STYLES = {"running": "cyan", "complete": "green", "stopped": "yellow", "failed": "red"}
RECENT = 10
"""Finished trials that the live table shows."""


class SearchDisplay:
    """Shows records as they change. Use as a context manager around the search."""

    def __init__(self, console: Console, ledger: Ledger, forecaster: Forecaster, *, trials: int | None) -> None:
        """``trials``: to start at most; None where another budget ends the search."""
        self.console, self.ledger, self.forecaster, self.trials = console, ledger, forecaster, trials
        self.epochs = forecaster.epochs
        self._announced = {record.id for record in ledger.records.values() if record.status != "running"}
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._table, transient=True)

    def __enter__(self) -> SearchDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def watch(self, record: TrialRecord) -> None:
        """A record has changed."""
        if record.status == "running":
            self._announced.discard(record.id)  # a stopped one may go on
        if record.status == "running" or record.id in self._announced:
            return
        self._announced.add(record.id)
        if not self.console.is_terminal:
            self.console.print(self._line(record), soft_wrap=True, highlight=False)
            if news := self.forecaster.news():
                self.console.print(news, soft_wrap=True, highlight=False)

    def _line(self, record: TrialRecord) -> str:
        done = len(self.ledger.ended())
        left = self.forecaster.seconds_left
        bits = "         —" if record.val_bpd is None else f"{record.val_bpd:10.3f}"
        line = (
            f"[{done:3d}{self._of()}] {record.id:<12}{record.params:>11,} parameters {bits} bits/dim  "
            f"epoch {record.epochs:>3}/{self.epochs}  {duration(record.seconds):>6}  {record.status:<9}"
        )
        line += f" {duration(left)} left" if left else ""
        return f"{line}  ({record.reason})" if record.status == "failed" else line.rstrip()

    def _of(self, between: str = "/") -> str:
        """The number of trials, where it is known: other seeds of the fronts' models come on top."""
        seeds = sum(record.replicate_of is not None for record in list(self.ledger.records.values()))
        return "" if self.trials is None else f"{between}{self.trials + seeds}"

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("trial")
        table.add_column("family")
        for name in ("parameters", "epoch", "bits/dim now", "best so far", "seconds"):
            table.add_column(name, justify="right")
        table.add_column("status")
        running = self.ledger.with_status("running")
        ended = self.ledger.ended()
        for record in (*ended[-RECENT:], *running):
            best = min((point.val_bpd for point in record.history), default=None)
            last = record.history[-1].val_bpd if record.history else None
            table.add_row(
                record.id,
                record.family,
                f"{record.params:,}",
                f"{record.epochs}/{self.epochs}",
                "" if last is None else f"{last:.3f}",
                "" if best is None else f"{best:.3f}",
                f"{record.seconds:.0f}",
                Text(record.status, style=STYLES[record.status]),
            )
        return Group(table, Text(), self._summary(len(ended)))

    def _summary(self, ended: int) -> Text:
        text = Text(f"{ended}{self._of(' of ')} trials done", style="bold")
        made, left = self.forecaster.now(), self.forecaster.seconds_left
        if made is None or left is None:
            text.append("   time left …", style="default")
        else:
            text.append(f"   time left {duration(left)} (80%: {duration(made.low)} to {duration(made.high)})")
            text.append(f", then {made.complete} complete and {made.stopped} stopped", style="default")
        complete = self.ledger.with_status("complete")
        for family in dict.fromkeys(record.family for record in self.ledger.records.values()):
            best = min(
                ((record.val_bpd, record.params) for record in complete if record.family == family and record.val_bpd),
                default=None,
            )
            if best is not None:
                text.append(f"   {family} {best[0]:.3f} bits/dim with {best[1]:,}", style="default")
        return text


def reading_progress(console: Console, records: Iterable[TrialRecord], total: int) -> Iterator[TrialRecord]:
    """Pass records on as their test reading arrives, with a bar on a terminal and plain lines elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Reading the test split for the fronts' models", total=total)
        for count, record in enumerate(records, start=1):
            progress.advance(task)
            if not console.is_terminal:
                console.print(f"Test split read for {count} of {total} front models: {record.id}", highlight=False)
            yield record

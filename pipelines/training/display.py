"""What a training job looks like while it runs: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fvae.epoch_metrics import EpochMetrics
from pipelines.cli.quantities import duration


class TrainDisplay:
    """Shows a training of ``epochs`` epochs. Use as a context manager around it."""

    def __init__(self, console: Console, *, epochs: int, steps_per_epoch: int) -> None:
        self.console, self.epochs, self.steps_per_epoch = console, epochs, steps_per_epoch
        self._started: tuple[float, int] | None = None  # when, and at which epoch
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("starting the workers", total=epochs * steps_per_epoch)

    def __enter__(self) -> TrainDisplay:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def started(self, workers: int, step: int, again: bool) -> None:
        """Workers begin, or begin again, at a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        self._started = (time.monotonic(), epoch)
        who = "1 worker" if workers == 1 else f"{workers} workers"
        how = "go" if workers > 1 else "goes"
        where = f" from step {position} of epoch {epoch + 1}" if step else ""
        if again or step:
            self.say(f"{who} {how} on{where or ' from the beginning'}")
        self.step(step)

    def step(self, step: int) -> None:
        """So many steps are done."""
        epoch = min(step // self.steps_per_epoch + 1, self.epochs)
        self._bar.update(self._task, completed=step, description=f"epoch {epoch}/{self.epochs}")

    def epoch(self, measured: EpochMetrics) -> None:
        """An epoch is done."""
        assert self._started is not None
        began, first = self._started
        left = (time.monotonic() - began) / max(1, measured.epoch - first) * (self.epochs - measured.epoch)
        self.say(
            f"epoch {measured.epoch:>{len(str(self.epochs))}}/{self.epochs}  "
            f"train {measured.train_bpd:7.4f}  val {measured.val_bpd:7.4f} bits/dim  "
            f"{measured.images_per_second:>9,.0f} images/s  {duration(left)} left"
        )
        self.step(measured.epoch * self.steps_per_epoch)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

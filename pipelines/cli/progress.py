"""Progress of a command's steps: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines."""
_STORAGE = logging.getLogger("pipelines.storage")

Advance = Callable[[int], None]


class Steps:
    """Shows one step after another on ``console``."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A step over ``total`` units (None: not known before it ends); yields the function that counts them."""
        started = printed = time.monotonic()
        done = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(what, total=total)

            def advance(count: int) -> None:
                nonlocal done, printed
                done += count
                bar.advance(task, count)
                now = time.monotonic()
                if not self._console.is_terminal and now - printed >= PLAIN_SECONDS:
                    printed = now
                    left = f", {(now - started) / done * (total - done):.0f} s left" if total and done else ""
                    of = f" of {total:,}" if total else ""
                    self._console.print(f"{what}: {done:,}{of} {unit}{left}", highlight=False)

            yield advance
        seconds = time.monotonic() - started
        rate = f", {done / seconds:,.0f} {unit}/s" if seconds >= 0.1 else ""
        self._console.print(f"{what}: {done:,} {unit} in {seconds:.1f} s{rate}", highlight=False)


class WarningLines(logging.Handler):
    """Dim lines on a console, above its live table or bar: within the block, the warnings of :mod:`pipelines.storage`
    (each retry), and lines given to :meth:`say`."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def __enter__(self) -> Self:
        _STORAGE.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _STORAGE.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, style="dim", soft_wrap=True, highlight=False, markup=False)

"""Progress of a command's steps: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Between two plain lines."""

Advance = Callable[[int], None]


class Steps:
    """Shows one step after another on ``console``."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A step over ``total`` units (None: not known before it ends); yields the function that counts them."""
        started = said = time.monotonic()
        done = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(what, total=total)

            def advance(count: int) -> None:
                nonlocal done, said
                done += count
                bar.advance(task, count)
                now = time.monotonic()
                if not self._console.is_terminal and now - said >= PLAIN_SECONDS:
                    said = now
                    left = f", {(now - started) / done * (total - done):.0f} s left" if total and done else ""
                    of = f" of {total:,}" if total else ""
                    self._console.print(f"{what}: {done:,}{of} {unit}{left}", highlight=False)

            yield advance
        seconds = time.monotonic() - started
        rate = f", {done / seconds:,.0f} {unit}/s" if seconds >= 0.1 else ""
        self._console.print(f"{what}: {done:,} {unit} in {seconds:.1f} s{rate}", highlight=False)


class _Shown(logging.Handler):
    """Prints lines on a console, above its live table or bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), style="dim", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def storage_warnings_shown(console: Console) -> Iterator[None]:
    """Within the block, what :mod:`pipelines.storage` warns of (each retry) is printed."""
    handler, logger = _Shown(console), logging.getLogger("pipelines.storage")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)

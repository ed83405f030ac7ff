"""Searches replayed on the table of learning curves, in simulated time, with workers side by side.

A free worker asks the method for a row and trains it, an epoch after the other, each as long as it took when
the table was made. After each epoch the method says whether the training goes on, ends, or pauses: a paused row
keeps its epochs, and goes on from there when the method returns it again. Only rows that reached their last epoch
count: a search is as good as the fronts of what it has fully trained.

What a method decides takes no simulated time. The epoch in which a training diverges counts as any other; the table
has no time for it, so it takes as long as the epochs before it did on average.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from benchmarks.search.curves import TARGETS, Curves, Found, Row


class Decision(enum.Enum):
    """What happens to a training after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    """For good."""
    PAUSE = "pause"
    """Until the method returns the row again, if it does."""


class Method(Protocol):
    """A way to search. It is made as ``method(curves.blind(), seed)``: it knows no value before it is reported."""

    def start(self) -> int | None:
        """Index of the row that a free worker is to train, new or paused; None: nothing now.

        Asked again after every epoch of any worker. The search is over once no worker has anything to do.
        """

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """What to do after an epoch (from 1) with the validation bits/dim that it has reached in it.

        The last epoch is reported too; what is answered to it changes nothing.
        """

    def ended(self, row: int, complete: bool) -> None:
        """The row is trained no more: after its last epoch, after STOP, or because it diverged."""


MakeMethod = Callable[[Curves, int], Method]
"""Of the table (blind) and a seed."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """How a search came along: one step for each complete row, arrays ``[steps]``."""

    epochs: np.ndarray
    """Trained by all workers until then."""
    seconds: np.ndarray
    """Simulated, since the search began."""
    shares: dict[str, np.ndarray]
    """Of each target's true hypervolume."""
    total_epochs: int
    """Trained until the search was over."""
    rows: tuple[int, ...]
    """The complete rows, in their order."""

    def epochs_to(self, target: str, share: float) -> float:
        """Epochs trained until ``share`` of the target's true hypervolume; infinite where it was never reached."""
        step = self._step(target, share)
        return math.inf if step is None else float(self.epochs[step])

    def hours_to(self, target: str, share: float) -> float:
        """Simulated hours until then; infinite where it was never reached."""
        step = self._step(target, share)
        return math.inf if step is None else float(self.seconds[step]) / 3600

    def _step(self, target: str, share: float) -> int | None:
        reached = np.flatnonzero(self.shares[target] >= share - 1e-12)
        return int(reached[0]) if len(reached) else None


def replay(
    curves: Curves, method: Method, *, workers: int = 8, max_epochs: float = math.inf, enough: float = math.inf
) -> Trace:
    """Run one search until it has nothing more to train, or ``max_epochs`` epochs are trained, or every target has
    reached the share ``enough`` of its true hypervolume.

    Raises ``ValueError`` where the method returns a row that is being trained or has ended.
    """
    clock = _Clock(curves, method, workers)
    steps: list[tuple[int, float, dict[str, float]]] = []
    complete: list[int] = []
    found = Found(curves.reference)
    clock.employ()
    while clock.running and clock.epochs < max_epochs:
        if steps and min(steps[-1][2].values()) >= enough:
            break
        row = clock.advance()
        if row is not None:
            complete.append(row)
            found.add(curves.rows[row].family, curves.rows[row].point)
            areas = found.areas()
            steps.append((clock.epochs, clock.now, {name: areas[name] / curves.truth[name] for name in TARGETS}))
        clock.employ()
    return Trace(
        epochs=np.array([step[0] for step in steps], dtype=np.int64),
        seconds=np.array([step[1] for step in steps], dtype=np.float64),
        shares={name: np.array([step[2][name] for step in steps], dtype=np.float64) for name in TARGETS},
        total_epochs=clock.epochs,
        rows=tuple(complete),
    )


class _Clock:
    """Workers and what they train, from the end of an epoch to the end of the next one anywhere."""

    def __init__(self, curves: Curves, method: Method, workers: int) -> None:
        self._rows, self._method, self._free = curves.rows, method, workers
        self._durations = [_durations(row) for row in curves.rows]
        self._trained = [0] * len(curves.rows)
        self._startable = [True] * len(curves.rows)
        self._order = 0  # of events at the same moment: first begun, first done
        self.running: list[tuple[float, int, int]] = []  # heap of (time of the epoch's end, order, row)
        self.now = 0.0
        self.epochs = 0

    def employ(self) -> None:
        """Free workers ask for rows until there is none to be had."""
        while self._free and (row := self._method.start()) is not None:
            if not self._startable[row]:
                raise ValueError(f"{self._rows[row].id} is being trained or has ended: it cannot start again")
            self._startable[row] = False
            self._free -= 1
            self._train_epoch(row)

    def advance(self) -> int | None:
        """To the end of the next epoch, and what comes of it. The row's index if it is complete by that."""
        self.now, _, row = heapq.heappop(self.running)
        self.epochs += 1
        self._trained[row] += 1
        curve = self._rows[row].val_bpd
        if self._trained[row] > len(curve):  # diverged
            return self._end(row, complete=False)
        decision = self._method.report(row, self._trained[row], float(curve[self._trained[row] - 1]))
        if self._trained[row] == len(self._durations[row]):
            return self._end(row, complete=True)
        if decision is Decision.STOP:
            return self._end(row, complete=False)
        if decision is Decision.PAUSE:
            self._startable[row] = True
            self._free += 1
        else:
            self._train_epoch(row)
        return None

    def _end(self, row: int, *, complete: bool) -> int | None:
        self._free += 1
        self._method.ended(row, complete)
        return row if complete else None

    def _train_epoch(self, row: int) -> None:
        self._order += 1
        heapq.heappush(self.running, (self.now + self._durations[row][self._trained[row]], self._order, row))


def _durations(row: Row) -> list[float]:
    """Seconds of each epoch, the one included in which a diverged training ended."""
    seconds = row.seconds.astype(np.float64).tolist()
    if row.failure is not None:
        seconds.append(float(np.mean(seconds)) if seconds else 0.0)
    return seconds

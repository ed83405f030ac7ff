"""Two thousand trials through the search's own scheduler, searcher and ledger: what a decision and the memory come to.

    python -m benchmarks.search.scale --trials 2000 --output benchmarks/results/search_scale.txt

Nothing is trained and no process is started: made-up learning curves take the place of the trials, eight side by side
in simulated time, and every decision is asked for in the order in which Tune asks. All else is a search's own:
proposals from the space of the digits, rungs, forecasts, budget, and every record written to the ledger in a folder.
"""

from __future__ import annotations

import dataclasses
import gc
import heapq
import itertools
import math
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from tune.records.ledger import Ledger
from tune.records.training_time import SearchClock
from tune.run.assembly import assemble
from tune.run.budget import Budget
from tune.run.callbacks import LedgerCallback
from tune.run.tune_scheduler import FrontScheduler
from tune.settings import Sampler, SearchSettings

TARGET_MS = 50.0
"""Of any one decision."""
DECISIONS = ("suggest", "result", "complete")
"""The next trial; go on or stop, after an epoch; a trial has ended."""
PLANE = {"fvae": (2.0, 12.0, 0.30), "flow": (2.1, 14.0, 0.30), "vae": (2.6, 9.0, 0.28)}
"""a, b, α of the made-up families: the best model of N parameters reaches a + b·N^−α bits/dim."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Simulate a large search, and time what its driver does."""

    trials: int = 2000
    """In all."""
    epochs: int = 60
    """Of a full training."""
    workers: int = 8
    """Trials side by side."""
    sampler: Sampler = "front"
    """As ``--sampler`` of the search."""
    rows: int = 100
    """Trials to a row of the table."""
    seed: int = 0
    """Of the search."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


@dataclasses.dataclass(kw_only=True)
class SimulatedTrial:
    """What scheduler and callbacks are shown of a trial, and its learning curve."""

    trial_id: str
    config: dict[str, Any]
    placement_group_factory: Any
    family: str
    params: int
    epoch: int = 0
    begun_at: int = 0
    """The epoch that it was taken up after."""

    def __post_init__(self) -> None:
        # Of the model and its training alone, so a trial that is taken up again goes on along the same curve.
        chance = np.random.default_rng(zlib.crc32(repr((self.config["model"], self.config["train"])).encode()))
        a, b, alpha = PLANE[self.family]
        self.final = a + b * self.params**-alpha + chance.exponential(0.15)
        self.pace = chance.uniform(0.05, 0.25)
        self.noise = chance.normal(0, 0.01, 1000)
        self.seconds = 1e-5 * self.params * chance.uniform(0.7, 1.4)

    def bits(self, epoch: int) -> float:
        """Validation bits/dim after an epoch."""
        return float(self.final + 1.5 * math.exp(-self.pace * epoch) + self.noise[epoch])

    def result(self, epochs: int) -> dict[str, Any]:
        """Of its next epoch, as a trial's process tells it; every one is written to the ledger at once."""
        self.epoch += 1
        done = self.epoch - self.begun_at
        result: dict[str, Any] = {
            "epoch": self.epoch, "train_bpd": self.bits(self.epoch), "val_bpd": self.bits(self.epoch), "grad_norm": 1.0,
            "images_per_second": 1257 / self.seconds, "images": 1257 * self.epoch, "seconds": self.seconds * self.epoch,
            "sigma1": 0.1, "sigma2": 0.1, "time_ms": time.time_ns() // 1_000_000, "checkpoint_follows": True,
            "attempt_first_epoch": self.begun_at + 1, "attempt_epochs": done, "attempt_images": 1257 * done,
            "attempt_seconds": self.seconds * done,
        }  # fmt: skip
        if self.epoch == epochs:
            best = min(range(1, epochs + 1), key=self.bits)
            result |= {"best_epoch": best, "best_val_bpd": self.bits(best), "done": True}
        return result


class Times:
    """Milliseconds of each decision, by what was asked and how many trials there were."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.row = 0
        self.taken: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.memory: dict[int, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        yield
        self.taken[what, self.row].append(1000 * (time.perf_counter() - started))

    def count(self, trials: int) -> None:
        """So many trials have been started."""
        if (row := (trials - 1) // self.rows) > self.row:
            self.memory[self.row] = memory_mib()
            self.row = row
            print(f"{trials:,} trials", file=sys.stderr)

    def all(self, what: str, rows: range) -> np.ndarray:
        """Milliseconds ``[N]`` of one kind of decision in these rows."""
        return np.concatenate([[], *(self.taken[what, row] for row in rows)])


def memory_mib() -> float:
    """This process's share of the machine's memory (PSS), in MiB."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def simulate(settings: Settings, folder: str) -> Times:
    """The search, until all its trials have ended."""
    from ray import tune
    from ray.tune.schedulers import TrialScheduler

    dataset = load_dataset("digits")
    search = SearchSettings(
        trials=settings.trials, epochs=settings.epochs, seed=settings.seed, sampler=settings.sampler, storage=folder
    )
    ledger = Ledger(open_storage(folder))
    parts = assemble(search, dataset, ledger, Budget(search, SearchClock(ledger.root), dataset.bins))
    searcher, scheduler = parts.searcher, FrontScheduler(parts.expected)
    callback = LedgerCallback(ledger, (), print)
    place = tune.PlacementGroupFactory([{"CPU": 1}])
    times = Times(settings.rows)
    order = itertools.count()
    running: list[tuple[float, int, SimulatedTrial]] = []
    now, left = 0.0, True
    while left or running:
        while left and len(running) < settings.workers:
            trial_id = f"{next(order):08d}"
            with times.of("suggest"):
                config = searcher.suggest(trial_id)
            left = isinstance(config, dict)
            if isinstance(config, dict):
                record = ledger.records[config["id"]]
                trial = SimulatedTrial(
                    trial_id=trial_id, config=config, placement_group_factory=place, family=record.family,
                    params=record.params, epoch=record.epochs, begun_at=record.epochs,
                )  # fmt: skip
                scheduler.on_trial_add(None, trial)
                callback.on_trial_start(0, [], trial)
                heapq.heappush(running, (now + trial.seconds, next(order), trial))
                times.count(len(ledger.records))
        if not running:
            break
        now, _, trial = heapq.heappop(running)
        result = trial.result(settings.epochs)
        decision = TrialScheduler.STOP
        with times.of("result"):
            if "done" not in result:  # as Tune does: it asks nobody of a trial that is over
                decision = scheduler.on_trial_result(None, trial, result)
            if decision != TrialScheduler.STOP:
                searcher.on_trial_result(trial.trial_id, result)
        with times.of("ledger"):
            callback.on_trial_result(0, [], trial, result)
        if decision != TrialScheduler.STOP:
            heapq.heappush(running, (now + trial.seconds, next(order), trial))
            continue
        with times.of("complete"):
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(trial.trial_id, result)
    times.memory[times.row] = memory_mib()
    states = {status: len(ledger.with_status(status)) for status in ("complete", "stopped", "running")}  # type: ignore
    assert len(ledger.records) == settings.trials and states["running"] == 0, states
    print(states, file=sys.stderr)
    return times


def report(settings: Settings, times: Times) -> str:
    """The table."""
    head = "".join(f"{what + ', ms':>24}" for what in DECISIONS)
    columns = "".join(f"{'median':>8}{'99 %':>8}{'max':>8}" for _ in DECISIONS)
    lines = [
        f"python -m benchmarks.search.scale --sampler {settings.sampler}",
        f"{settings.trials:,} trials of {settings.epochs} epochs, {settings.workers} side by side; ledger: median ms "
        "of a written epoch; memory: of the whole process (PSS)",
        "",
        f"{'':>8}{head}{'ledger':>10}{'memory':>10}",
        f"{'trials':>8}{columns}{'ms':>10}{'MiB':>10}",
    ]
    for row in sorted(times.memory):
        figures = "".join(three(times.all(what, range(row, row + 1))) for what in DECISIONS)
        ledger = np.median(times.all("ledger", range(row, row + 1)))
        until = min((row + 1) * settings.rows, settings.trials)
        lines.append(f"{until:>8,}{figures}{ledger:>10.2f}{times.memory[row]:>10.0f}")
    rows = range(times.row + 1)
    every = {what: times.all(what, rows) for what in DECISIONS}
    lines += [f"{'all':>8}" + "".join(three(values) for values in every.values()), ""]
    slowest = max(float(values.max()) for values in every.values())
    late = {what: float((values > TARGET_MS).mean()) for what, values in every.items()}
    verdict = "met" if slowest <= TARGET_MS else "MISSED"
    lines.append(f"slowest decision {slowest:.0f} ms (target {TARGET_MS:.0f}: {verdict})")
    lines.append("beyond the target: " + ", ".join(f"{what} {100 * share:.2f} %" for what, share in late.items()))
    first, last = min(times.memory), max(times.memory)
    grown = times.memory[last] - times.memory[first]
    per_trial = 1024 * grown / max(1, settings.trials - (first + 1) * settings.rows)
    lines.append(f"memory grew by {grown:.0f} MiB, {per_trial:.0f} KiB a trial")
    return "\n".join(lines)


def three(values: np.ndarray) -> str:
    """Median, 99% quantile and maximum."""
    if not len(values):
        return f"{'':>24}"
    return f"{np.median(values):>8.2f}{np.quantile(values, 0.99):>8.2f}{values.max():>8.1f}"


def main(settings: Settings) -> None:
    """Simulate, and print."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        text = report(settings, simulate(settings, folder))
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))

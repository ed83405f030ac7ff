"""Whether the verdict's intervals hold what they say, on searches that are replayed on a table of real learning curves.

    python -m benchmarks.search.calibration --curves benchmarks/search/digits.parquet

Every search sees two thirds of the table's rows, drawn anew. Three questions are asked of it:

- Do its 95% bands of bits/dim at equal size hold the truth: what the same model says of the whole table, all of whose
  rows are trained to the end? It is given the best third of them at each size: the others say nothing of the best.
- One family split at random into two: how often are these called different at any size? Its search has two thirds of
  the trials, and each is given to one of the two at random.
- The same, where one of the two is given 1.5 times the parameters: how often is that found?
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import multiprocessing
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.search.curves import CURVES, Curves
from benchmarks.search.ours import Ours, TableImages, epoch_result
from benchmarks.search.replay import replay
from fvae.epoch_metrics import EpochMetrics
from fvae.likelihood import uniform_bits_per_dim
from pipelines.cli import command_line
from tune.records.ledger import Ledger, TrialRecord
from tune.settings import Goal
from tune.stats.comparison import Band, Comparison
from tune.stats.forecasts import Forecasts
from tune.stats.frontiers import Paths, curve_of, frontiers, parameters
from tune.stopping import StoppingRule

SEEN = 2 / 3
"""Share of the rows of each family that one search may train."""
BEST, NEAR = 1 / 3, 0.25
"""Share of the rows that the truth is made from, and the decades of parameters within which they are compared."""
PLANTED = 1.5
COLUMNS = {"bands that hold": 17, "mean width": 12, "mean |error|": 14, "decided": 9, "wrong": 7}
FAMILY = "flow"
"""That is split into two."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Replay searches; print how often their intervals hold."""

    curves: Path = CURVES
    """The table."""
    trials: tuple[int, ...] = (48, 96)
    """Of a search over all families."""
    seeds: int = 50
    """Searches of each kind."""
    goal: Goal = "map"
    """Of the searches over all families."""
    processes: int = 2
    """Side by side."""


class Limited:
    """A budget of so many trials."""

    def __init__(self, trials: int) -> None:
        self.trials = trials

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        """Until so many have begun."""
        return None if len(ledger.records) < self.trials else "all started"

    def over(self, ledger: Ledger) -> str | None:
        """Never: what was begun is trained."""
        return None


def main(settings: Settings) -> int:
    """Replay and print. Returns the exit status."""
    curves = Curves.load(settings.curves)
    truth = compared(paths_of(best_of(whole_table(curves)), curves))
    context = multiprocessing.get_context("spawn")
    print(f"{len(curves.rows)} learning curves of {curves.epochs} epochs, {settings.seeds} searches of each kind.")
    with ProcessPoolExecutor(settings.processes, mp_context=context) as pool:
        for trials in settings.trials:
            jobs = [
                pool.submit(measured, settings.curves, trials, seed, truth, settings.goal)
                for seed in range(settings.seeds)
            ]
            results = [job.result() for job in jobs]
            print(f"\n{trials} trials over all families, or {2 * trials // 3} of one")
            print(f"{'f-VAE less flow':24}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
            for name in truth:
                found = [result[0][name] for result in results if name in result[0]]
                if not found:
                    continue  # of no search
                means = [np.mean([getattr(each, field) for each in found]) for field in FIELDS]
                cells = (f"{mean:>{width}.3f}" for mean, width in zip(means, COLUMNS.values(), strict=True))
                print(f"{f'{name} ({len(found)})':24}{''.join(cells)}")
            different, planted = (np.mean([result[place] for result in results]) for place in (1, 2))
            print(f"one family as two: {different:.2f} called different; {PLANTED} times the size: {planted:.2f} found")
    return 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one search's comparison stands against the truth, over the sizes that both have."""

    held: float
    """Share of the sizes whose band holds it."""
    width: float
    error: float
    """Both in bits/dim, means over the sizes."""
    decided: float
    """Share of the sizes with an answer."""
    wrong: float
    """Share of the sizes with ``fewer`` or ``more`` where the truth says otherwise."""


FIELDS = tuple(field.name for field in dataclasses.fields(Verdict))


def measured(
    path: Path, trials: int, seed: int, truth: Mapping[str, Comparison], goal: Goal
) -> tuple[dict[str, Verdict], bool, bool]:
    """One search of each kind: the verdicts, whether the split family is called different, the planted ratio found."""
    curves = part_of(Curves.load(path), seed)
    found = compared(paths_of(searched(curves, trials, seed, goal), curves))
    verdicts = {name: against(found[name], truth[name]) for name in truth if name in found}
    alone = dataclasses.replace(curves, rows=tuple(row for row in curves.rows if row.family == FAMILY))
    records = searched(alone, 2 * trials // 3, seed)
    answers = [answers_of(split(records, factor, seed), curves) for factor in (1.0, PLANTED)]
    return verdicts, bool(answers[0] & {"fewer", "more"}), "more" in answers[1]


def part_of(curves: Curves, seed: int) -> Curves:
    """The rows that one search may train."""
    chance = random.Random(seed)
    rows = tuple(row for row in curves.rows if row.source == "design" or chance.random() < SEEN)
    return dataclasses.replace(curves, rows=rows)


def searched(curves: Curves, trials: int, seed: int, goal: Goal = "map") -> list[TrialRecord]:
    """The trials of one search."""
    method = Ours(curves.blind(), seed, goal=goal)
    method.searcher.budget = Limited(trials)
    replay(curves, method, workers=2)
    return list(method.ledger.records.values())


def whole_table(curves: Curves) -> list[TrialRecord]:
    """Every row as a complete trial."""
    return [
        TrialRecord(
            id=row.id,
            family=row.family,
            config=dict(row.model),
            train=dict(row.train),
            params=row.params,
            flops_per_image=row.flops_per_image,
            suggestion=dict(row.suggestion),
            status="complete",
            history=tuple(
                EpochMetrics(**epoch_result(epoch, float(bits))) for epoch, bits in enumerate(row.val_bpd, start=1)
            ),
            best_epoch=curves.epochs,
            val_bpd=row.final,
        )
        for row in curves.rows
        if row.failure is None
    ]


def best_of(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Of each curve's trials those that are among the best of nearly their size."""
    best = []
    for record in records:
        near = [
            other.val_bpd
            for other in records
            if curve_of(other) == curve_of(record) and abs(math.log10(other.params / record.params)) <= NEAR
        ]
        if record.val_bpd in heapq.nsmallest(math.ceil(BEST * len(near)), near):
            best.append(record)
    return best


def paths_of(records: Sequence[TrialRecord], curves: Curves) -> dict[str, Paths]:
    """The frontiers of these trials."""
    bins = TableImages.of(curves).bins
    forecasts = Forecasts(StoppingRule().rungs(curves.epochs), curves.epochs, uniform_bits_per_dim(bins))
    return frontiers(records, forecasts, parameters, 0)


def compared(paths: Mapping[str, Paths]) -> dict[str, Comparison]:
    """The f-VAE, and each likelihood of it, against the flow."""
    names = [name for name in paths if name.startswith("fvae")]
    found = {name: Comparison.of(paths[name], paths["flow"]) for name in names if "flow" in paths}
    return {name: each for name, each in found.items() if each}


def against(found: Comparison, truth: Comparison) -> Verdict:
    """A search's comparison against the truth, at the sizes of the search that the truth has too."""
    inside = (found.log_size >= truth.log_size[0]) & (found.log_size <= truth.log_size[-1])
    true = np.interp(found.log_size, truth.log_size, np.median(truth.difference, axis=0))[inside]
    band = Band.of(found.difference[:, inside])
    answers = np.array(found.answers())[inside]
    wrong = ((answers == "fewer") & (true > 0)) | ((answers == "more") & (true < 0))
    return Verdict(
        held=float(((band.low <= true) & (true <= band.high)).mean()),
        width=float((band.high - band.low).mean()),
        error=float(np.abs(band.median - true).mean()),
        decided=float((answers != "undecided").mean()),
        wrong=float(wrong.mean()),
    )


def split(records: Sequence[TrialRecord], factor: float, seed: int) -> list[TrialRecord]:
    """Each trial given to one of two families at random, those of the second with ``factor`` times the parameters."""
    chance = random.Random(seed)
    return [
        dataclasses.replace(record, family="fvae", params=round(factor * record.params))
        if chance.random() < 0.5
        else record
        for record in records
    ]


def answers_of(records: Sequence[TrialRecord], curves: Curves) -> set[str]:
    """What is said of any size; nothing where a family has no complete trial."""
    complete = {record.family for record in records if record.status == "complete"}
    if len(complete) < 2:
        return set()
    found = compared(paths_of(records, curves))
    return {answer for each in found.values() for answer in each.answers()}


if __name__ == "__main__":
    command_line.run(main, Settings)

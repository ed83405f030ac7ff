"""What each part of this search is worth: the same searches of the table without it.

    python -m benchmarks.search.ablation --output benchmarks/results/search_ablation.txt

- without sizes: the front is the lowest bits/dim alone; larger trials compete with smaller ones.
- without extrapolation: part-trained trials are compared by what they have reached, after equal training.
- without a share per size: no trial goes on because few of its size have.
- without stopping: every trial is trained to the end. The proposer is the same.
- without designs: what is begun with is drawn at random.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.search.curves import CURVES, TARGETS, Curves
from benchmarks.search.ours import Ours
from benchmarks.search.quality import ENOUGH, TITLES
from benchmarks.search.replay import MakeMethod, Trace, replay
from benchmarks.search.results import SHARES, Conditions, quartiles
from fvae.files import write_text
from pipelines.cli import command_line
from tune.run.assembly import Strategy
from tune.stopping import StoppingRule

WITHOUT: dict[str, MakeMethod] = {
    "whole": Ours,
    "without sizes": functools.partial(Ours, strategy=Strategy(by_size=False)),
    "without extrapolation": functools.partial(Ours, strategy=Strategy(extrapolate=False)),
    "without a share per size": functools.partial(Ours, strategy=Strategy(rule=StoppingRule(kept=None))),
    "without stopping": functools.partial(Ours, strategy=Strategy(rule=StoppingRule(rung_shares=()))),
    "without designs": functools.partial(Ours, strategy=Strategy(designs=0)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Replay this search without its parts."""

    seeds: int = 30
    """Searches of each."""
    workers: int = 8
    """Side by side, in simulated time."""
    curves: Path = CURVES
    """The table."""
    processes: int = 2
    """Replays side by side."""
    output: Path | None = None
    """Where to write the text."""


def main(settings: Settings) -> int:
    """Replay, write, print. Returns the exit status."""
    curves = Curves.load(settings.curves)
    conditions = Conditions.of(curves, workers=settings.workers, seeds=settings.seeds)
    wanted = [(name, seed) for name in WITHOUT for seed in range(settings.seeds)]
    one = functools.partial(_replay_one, settings.curves, settings.workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, context) as pool:
        traces = list(pool.map(one, *zip(*wanted, strict=True)))
    found: dict[str, list[Trace]] = {}
    for (name, _), trace in zip(wanted, traces, strict=True):
        found.setdefault(name, []).append(trace)
    text = report(conditions, found)
    if settings.output:
        write_text(settings.output, text)
    print(text, end="")
    return 0


@functools.cache
def _table(path: Path) -> tuple[Curves, Curves]:
    curves = Curves.load(path)
    return curves, curves.blind()


def _replay_one(path: Path, workers: int, name: str, seed: int) -> Trace:
    curves, blind = _table(path)
    return replay(curves, WITHOUT[name](blind, seed), workers=workers, enough=ENOUGH)


def report(conditions: Conditions, traces: dict[str, list[Trace]]) -> str:
    """A table for each target: quartiles of epochs, and the medians' ratio to the whole search's."""
    lines = [
        f"{conditions.rows} learning curves, {conditions.seeds} searches each, {conditions.workers} workers.",
        "Epochs trained by all workers until that share of the true hypervolume is reached: quartiles; and the median",
        "over that of the whole search. –: never reached.",
    ]
    for target in TARGETS:
        lines += ["", TITLES[target], ""]
        header = f"{'':26}" + "".join(f"{f'epochs to {share:.0%}':>26}{'ratio':>8}" for share in SHARES)
        lines += [header, "-" * len(header)]
        for name, seeds in traces.items():
            line = f"{name:26}"
            for share in SHARES:
                epochs = quartiles(trace.epochs_to(target, share) for trace in seeds)
                whole = quartiles(trace.epochs_to(target, share) for trace in traces["whole"])[1]
                shown = " / ".join(_number(value, ",.0f") for value in epochs)
                line += f"{shown:>26}{_number(epochs[1] / whole, '.2f'):>8}"
            lines.append(line)
    return "\n".join(lines) + "\n"


def _number(value: float, pattern: str) -> str:
    return format(value, pattern) if math.isfinite(value) else "–"


if __name__ == "__main__":
    command_line.run(main, Settings)

"""How much training a search needs for the front: this one and others, replayed on real learning curves.

    python -m benchmarks.search.quality --output benchmarks/results/search_quality.txt
    python -m benchmarks.search.quality --methods ours random   # again these alone; the others' results are kept

Every method searches the same table with the same seeds. What counts is how many epochs all workers together have
trained, and how long that took in simulated time, until the fully trained models' hypervolume is 95% and 99% of the
whole table's. Beside the text lies a Parquet file of the same name: what tables and pictures are made from.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.search.curves import CURVES, TARGETS, Curves
from benchmarks.search.others import METHODS as OTHERS
from benchmarks.search.others import TOOLS, VARIANTS
from benchmarks.search.ours import METHODS as OURS
from benchmarks.search.replay import MakeMethod, Trace, replay
from benchmarks.search.results import SHARES, Conditions, Traces, goal, quartiles, read_results, write_results
from fvae import ConfigError
from fvae.files import write_text
from pipelines.cli import command_line

ENOUGH = 0.995
"""Share of every target's hypervolume at which a search is ended: nothing that is asked comes after it."""
TITLES = {
    "front": "One front over all families",
    "map": "The three families' fronts (their hypervolumes summed)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Replay searches; print what they needed."""

    seeds: int = 30
    """Searches of each method."""
    workers: int = 8
    """Side by side, in simulated time."""
    methods: tuple[str, ...] = ()
    """Only these; `variants` for all settings tried of the others."""
    curves: Path = CURVES
    """The table, or a folder of its finished rows."""
    processes: int = 2
    """Replays side by side."""
    output: Path | None = None
    """Where to write the text; the raw results go beside it."""


def main(settings: Settings) -> int:
    """Replay, write, print. Returns the exit status."""
    methods = _chosen(settings.methods)
    curves = Curves.load(settings.curves)
    conditions = Conditions.of(curves, workers=settings.workers, seeds=settings.seeds)
    for make in methods.values():
        make(curves.blind(), 0)  # what is missing is said now, not after minutes
    traces: Traces = _kept(settings, conditions) | _replay_all(settings, list(methods))
    known = list(OURS | OTHERS | VARIANTS)
    traces = dict(sorted(traces.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known)))
    text = report(conditions, traces, list(OURS))
    if settings.output:
        write_results(_raw(settings.output), conditions, traces)
        write_text(settings.output, text)
    print(text, end="")
    return 0


def _chosen(names: Sequence[str]) -> dict[str, MakeMethod]:
    known = OURS | OTHERS | VARIANTS
    if not names:
        return OURS | OTHERS
    names = [each for name in names for each in (VARIANTS if name == "variants" else (name,))]
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(repr(name) for name in OURS | TOOLS)
        raise ConfigError(
            f"--methods: no method is called {unknown[0]!r}; there are {shown}, the others also with 'designs', "
            "'stratified' and 'designs stratified' after their names"
        )
    return {name: known[name] for name in names}


def _raw(output: Path) -> Path:
    return output.with_suffix(".parquet")


def _kept(settings: Settings, conditions: Conditions) -> dict[str, list[Trace]]:
    """Earlier results of the same table, workers and seeds, where only some methods are asked for."""
    if not settings.methods or settings.output is None or not _raw(settings.output).exists():
        return {}
    kept_under, traces = read_results(_raw(settings.output))
    return traces if kept_under == conditions else {}


def _replay_all(settings: Settings, methods: Sequence[str]) -> dict[str, list[Trace]]:
    wanted = [(method, seed, settings.workers) for method in methods for seed in range(settings.seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, context, _open_table, (settings.curves,)) as pool:
        if settings.processes == 1:  # here: a process of its own takes seconds to begin
            _open_table(settings.curves)
        run = map if settings.processes == 1 else pool.map
        console = Console(stderr=True)
        shown = track(
            run(_replay_one, *zip(*wanted, strict=True)),
            "Replaying",
            len(wanted),
            console=console,
            disable=not console.is_terminal,
        )
        traces = iter(list(shown))
    return {method: [next(traces) for _ in range(settings.seeds)] for method in methods}


def _open_table(path: Path) -> None:
    global _curves, _blind, _methods
    _curves = Curves.load(path)
    _blind = _curves.blind()
    _methods = OURS | OTHERS | VARIANTS


def _replay_one(method: str, seed: int, workers: int) -> Trace:
    return replay(_curves, _methods[method](_blind, seed), workers=workers, enough=ENOUGH)


def report(conditions: Conditions, traces: Traces, ours: Sequence[str]) -> str:
    """The tables of both targets, and what they say of our methods."""
    lines = [
        f"{conditions.rows} learning curves ({conditions.table_epochs:,} epochs in all), "
        f"{conditions.seeds} searches of each method, {conditions.workers} workers.",
        "Epochs trained by all workers, and simulated hours, until that share of the true hypervolume is reached:",
        "quartiles over the searches. The ratio is of median epochs, to the best other method's.",
    ]
    for target in TARGETS:
        fewest = " and ".join(f"{conditions.fewest[goal(target, share)]:,} epochs for {share:.0%}" for share in SHARES)
        lines += ["", TITLES[target], f"The fewest trainings that hold it are {fewest}.", ""]
        lines += [*_table(traces, target, ours), "", *_verdicts(conditions, traces, target, ours)]
    return "\n".join(lines).rstrip() + "\n"


def _table(traces: Traces, target: str, ours: Sequence[str]) -> list[str]:
    best = {share: best_other(traces, target, share, ours) for share in SHARES}
    header = ["method"]
    for share in SHARES:
        header += [f"epochs to {share:.0%}", "hours", "ratio"]
    cells = [header]
    for method, seeds in traces.items():
        row = [method]
        for share in SHARES:
            epochs = quartiles(trace.epochs_to(target, share) for trace in seeds)
            hours = quartiles(trace.hours_to(target, share) for trace in seeds)
            ratio = epochs[1] / best[share][1] if best[share] else math.inf
            row += [
                " / ".join(_number(value, "{:,.0f}") for value in epochs),
                " / ".join(_number(value, "{:.3f}") for value in hours),
                _number(ratio, "{:.2f}"),
            ]
        cells.append(row)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    names = widths[0]  # to the left, the numbers to the right
    lines = [row[0].ljust(names) + line[names:] for row, line in zip(cells, lines, strict=True)]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _verdicts(conditions: Conditions, traces: Traces, target: str, ours: Sequence[str]) -> list[str]:
    """Of each of our methods: the share of the best other's epochs at 95%, and the quartiles at 99%.

    Once against the others as they are released, once with a repair of ours too, and once where they may also begin
    with this project's designs.
    """
    lines = []
    for what, ours_in_them in (
        ("as released", {"designs", "repaired"}),
        ("also repaired", {"designs"}),
        ("also repaired and from designs", set()),
    ):
        rivals = {
            name: seeds for name, seeds in traces.items() if name in ours or ours_in_them.isdisjoint(name.split())
        }
        first, last = (best_other(rivals, target, share, ours) for share in SHARES)
        if not first or not last:
            continue
        least = conditions.fewest[goal(target, SHARES[0])] / first[1]
        for method in (name for name in ours if name in traces):
            median = quartiles(trace.epochs_to(target, SHARES[0]) for trace in traces[method])[1]
            mine = quartiles(trace.epochs_to(target, SHARES[1]) for trace in traces[method])
            worse = [name for name, own, best in zip(("25%", "50%", "75%"), mine, last, strict=True) if own > best]
            lines.append(
                f"{method}, against the others {what}: at {SHARES[0]:.0%} {median / first[1]:.2f} of the best's epochs "
                f"(wanted: 0.25; possible: {least:.2f}); at {SHARES[1]:.0%} "
                + (f"worse at quartile {', '.join(worse)}" if worse else "worse at no quartile")
            )
    return lines


def best_other(traces: Traces, target: str, share: float, ours: Sequence[str]) -> tuple[float, float, float] | None:
    """The lowest epochs of all others, quartile by quartile: no single method need have them all."""
    others = [
        quartiles(trace.epochs_to(target, share) for trace in seeds)
        for method, seeds in traces.items()
        if method not in ours
    ]
    return tuple(min(column) for column in zip(*others, strict=True)) if others else None  # type: ignore[return-value]


def _number(value: float, pattern: str) -> str:
    return pattern.format(value) if math.isfinite(value) else "–"


if __name__ == "__main__":
    command_line.run(main, Settings)

"""What a trial costs besides its work, ours and Ray's own ways, on two cores, in one run.

    python -m benchmarks.search.overhead --trials 24 --output benchmarks/results/search_overhead.txt

Every measurement is a fresh process with a Ray of its own. Each way is measured with few trials and with many: what one
more trial costs (the marginal seconds) is their difference, per trial; what is left of the few is the start-up. Trials
do nothing and report one figure, so that all of it is overhead; only in the last row do they train, and the work, timed
without a search, is taken off. The pattern that Ray's documentation has for training many models, a Train run inside
each trial, takes half a minute for each, so it is measured with fewer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure the overhead per trial."""

    trials: int = 24
    """Many trials."""
    few: int = 4
    """Few trials; the marginal seconds are of those between few and many."""
    train_trials: int = 6
    """Many, where a Train run is inside each trial."""
    train_few: int = 2
    """Few of these."""
    rounds: int = 3
    """Of the quick ways, in turn; medians are shown. The others have one."""
    only: tuple[str, ...] = ()
    """Only these ways, by the names in :mod:`benchmarks.search.overhead_parts`."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""

    def __post_init__(self) -> None:
        if not (0 < self.few < self.trials and 0 < self.train_few < self.train_trials):
            raise ValueError("few trials must be fewer than many")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run trials."""

    part: str
    what: str
    quick: bool = False
    """Measured in several rounds."""
    with_train: bool = False
    """Measured with fewer trials."""


WAYS = (
    Way(part="idle", what="this search", quick=True),
    Way(part="reused", what="Tune, class trials, processes reused", quick=True),
    Way(part="class_", what="Tune, class trials"),
    Way(part="function", what="Tune, function trials"),
    Way(part="documented", what="a Train run inside each trial (documented)", with_train=True),
    Way(part="documented_twice", what="the same, two at a time (no core each)", with_train=True),
    Way(part="trained", what="this search, models that train, less the work", quick=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One process."""

    wall: float
    """Seconds from its start to its end."""
    seconds: float
    """Of the trials alone."""
    work: float = 0.0
    """Of the same work without a search."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overhead:
    """Of one way, in seconds."""

    few: int
    many: int
    marginal: float
    """Of one more trial."""
    start: float
    """Of no trial at all: imports, Ray, and its end."""
    spread: tuple[float, float]
    """Lowest and highest of the marginal seconds over the rounds."""


def measure(part: str, trials: int) -> Measured:
    """One process. Raises ``RuntimeError`` with what it said where it fails."""
    command = [sys.executable, "-m", "benchmarks.search.overhead_parts", part, str(trials)]
    # Ray's usage report is the one default of its own that is not left as it is.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        started = time.perf_counter()
        done = subprocess.run(
            [*command, folder], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{part}: {done.stdout}{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Measured(wall=wall - found.get("work", 0.0), **found)


def overhead(few: int, many: int, rounds: list[tuple[Measured, Measured]]) -> Overhead:
    """Of one way, by its rounds of few and of many trials."""
    marginal = [(second.seconds - second.work - first.seconds + first.work) / (many - few) for first, second in rounds]
    middle = statistics.median(marginal)
    start = statistics.median(first.wall - first.work for first, _ in rounds) - few * middle
    return Overhead(few=few, many=many, marginal=middle, start=start, spread=(min(marginal), max(marginal)))


def report(settings: Settings, found: dict[str, Overhead]) -> str:
    """The table."""
    lines = [
        "python -m benchmarks.search.overhead",
        f"Ray {version('ray')}, MLflow {version('mlflow')}, Python {platform.python_version()}, {os.cpu_count()} cores "
        f"(Ray's own ways are given 2); where there is a range, medians of {settings.rounds} rounds, else one round",
        "",
        f"{'seconds':<48}{'trials':>10}{'start-up':>10}{'marginal':>10}{'range':>16}{'ratio':>9}",
    ]
    ours = found.get("idle")
    for way in WAYS:
        if (each := found.get(way.part)) is None:
            continue
        low, high = each.spread
        spread = f"{low:.3f}-{high:.3f}" if way.quick else ""
        ratio = f"{each.marginal / ours.marginal:.1f}" if ours else ""
        figures = f"{each.start:>10.1f}{each.marginal:>10.3f}{spread:>16}{ratio:>9}"
        lines.append(f"{way.what:<48}{f'{each.few}, {each.many}':>10}{figures}")
    lines += ["", "ratio: marginal seconds, as a multiple of this search's"]
    if ours and (theirs := found.get("documented")):
        times = theirs.marginal / ours.marginal
        lines.append(f"targets: at most 0.5 s a trial: {verdict(ours.marginal <= 0.5)} ({ours.marginal:.3f} s)")
        lines.append(f"         25 times less than documented: {verdict(times >= 25)} ({times:.0f} times)")
    return "\n".join(lines)


def verdict(met: bool) -> str:
    """In a word."""
    return "met" if met else "MISSED"


def main(settings: Settings) -> None:
    """Measure in turn, and print."""
    console = Console(stderr=True)
    ways = [way for way in WAYS if not settings.only or way.part in settings.only]
    rounds: dict[str, list[tuple[Measured, Measured]]] = {way.part: [] for way in ways}
    found: dict[str, Overhead] = {}
    for turn in range(settings.rounds):
        for way in ways:
            if turn and not way.quick:
                continue
            few, many = trials_of(settings, way)
            console.print(f"round {turn + 1}: {way.what}, {few} and {many} trials …", highlight=False)
            rounds[way.part].append((measure(way.part, few), measure(way.part, many)))
            found[way.part] = overhead(few, many, rounds[way.part])
    text = report(settings, found)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n", encoding="utf-8")


def trials_of(settings: Settings, way: Way) -> tuple[int, int]:
    """Few and many."""
    return (settings.train_few, settings.train_trials) if way.with_train else (settings.few, settings.trials)


if __name__ == "__main__":
    main(tyro.cli(Settings))

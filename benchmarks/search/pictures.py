"""How searches come along: hypervolume against epochs trained, a line and a band for each method.

python -m benchmarks.search.pictures                       # of benchmarks/results/search_quality.parquet
python -m benchmarks.search.pictures --methods front tpe asha
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.search.curves import TARGETS
from benchmarks.search.others import METHODS as OTHERS
from benchmarks.search.others import TOOLS, VARIANTS, four_ways
from benchmarks.search.replay import Trace
from benchmarks.search.results import Conditions, Traces, quartiles, read_results
from fvae import ConfigError
from pipelines.cli import command_line
from tune.map.style import GREY, INK, format_count

DPI = 160
CAPTION_CHARACTERS = 134
TITLES = {"front": "One front over all families", "map": "The three families' fronts, summed"}
COLORS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8f98")
"""Of Okabe and Ito's palette, as the map's. The others' are in the order of ``METHODS``."""
OURS = ("#d55e00", "#000000", "#8a5a2b", "#7f3fbf")
LEAST_SHARE = 0.5
"""Where the axis begins."""
LEAST_MISSING = 2e-3
"""Of the truth; where the axis ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Draw the raw results of ``benchmarks.search.quality``."""

    results: Path = Path("benchmarks/results/search_quality.parquet")
    """What quality wrote beside its text."""
    methods: tuple[str, ...] = ()
    """Only these of ours and of the other tools."""
    output: Path | None = None
    """By default beside the results, as .png."""


def main(settings: Settings) -> int:
    """Draw."""
    if not settings.results.exists():
        raise ConfigError(f"no results at {settings.results}: python -m benchmarks.search.quality writes them")
    conditions, traces = read_results(settings.results)
    output = settings.output or settings.results.with_suffix(".png")
    draw(conditions, traces, settings.methods).savefig(output, format="png")
    print(output)
    return 0


def draw(conditions: Conditions, traces: Traces, methods: Sequence[str] = ()) -> Figure:
    """Both targets side by side."""
    figure = Figure(figsize=(10, 5.4), dpi=DPI, facecolor="white")
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.985, top=0.775, bottom=0.205, wspace=0.22)
    figure.suptitle(
        f"What a search needs for the front: {conditions.rows} real learning curves, {conditions.workers} workers",
        x=0.075, y=0.975, ha="left", fontsize=14, fontweight="bold", color=INK,
    )  # fmt: skip
    lines: dict[str, Line2D] = {}
    for axes, target in zip(panels, TARGETS, strict=True):
        _style(axes, TITLES[target])
        for name, method, color in _drawn(traces, target, methods):
            lines.setdefault(name, _draw(axes, traces[method], target, color, ours=name not in TOOLS))
        axes.set_xlim(_first_seen(lines.values()), conditions.table_epochs)
    figure.legend(
        lines.values(), lines.keys(), loc="upper left", bbox_to_anchor=(0.067, 0.935), ncols=4, frameon=False,
        fontsize=10, handlelength=1.8, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip
    caption = (
        f"Median and quartiles of {conditions.seeds} searches; only fully trained models count. Each other tool is "
        "drawn in whichever of its four ways (families together or apart, from sound designs or not) needs least for "
        f"95%. The whole table is {format_count(conditions.table_epochs)} epochs."
    )
    lines_of_text = "\n".join(textwrap.wrap(caption, CAPTION_CHARACTERS))
    figure.text(0.075, 0.095, lines_of_text, va="top", linespacing=1.45, color=INK, fontsize=9.5)
    return figure


def _drawn(traces: Traces, target: str, methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, whose traces, and colour: each of the others in the way in which it first reaches 95%, and ours."""
    drawn = []
    for tool, color in zip(TOOLS, COLORS, strict=True):
        ways = [way for way in four_ways({tool: TOOLS[tool]}) if way in traces]
        if ways and (not methods or tool in methods):
            best = min(ways, key=lambda way: quartiles(trace.epochs_to(target, 0.95) for trace in traces[way])[1])
            drawn.append((tool, best, color))
    ours = [name for name in traces if name not in OTHERS and name not in VARIANTS]
    ours = [name for name in ours if not methods or name in methods]
    return drawn + [(name, name, color) for name, color in zip(ours, OURS, strict=False)]


def _draw(axes: Axes, seeds: Sequence[Trace], target: str, color: str, *, ours: bool) -> Line2D:
    last = max(trace.total_epochs for trace in seeds)
    epochs = np.geomspace(max(1, min(trace.epochs[0] for trace in seeds)), last, 400)
    shares = np.array([_at(trace, target, epochs) for trace in seeds])  # [seeds, epochs]
    bands = np.array([quartiles(column) for column in shares.T])
    axes.fill_between(epochs, _missing(bands[:, 0]), _missing(bands[:, 2]), color=color, alpha=0.14, linewidth=0)
    (line,) = axes.plot(epochs, _missing(bands[:, 1]), color=color, linewidth=2.6 if ours else 1.6)
    return line


def _first_seen(lines: Iterable[Line2D]) -> float:
    """Where the first line comes into the panel, and a little before."""
    data = [np.asarray(line.get_xydata()) for line in lines]
    seen = [points[points[:, 1] <= 1 - LEAST_SHARE, 0] for points in data]
    return 0.8 * min((float(epochs[0]) for epochs in seen if len(epochs)), default=1.0)


def _at(trace: Trace, target: str, epochs: np.ndarray) -> np.ndarray:
    """The share at given numbers of epochs: that of the last step until then."""
    return np.concatenate([[0.0], trace.shares[target]])[np.searchsorted(trace.epochs, epochs, side="right")]


def _missing(shares: np.ndarray) -> np.ndarray:
    return np.maximum(1 - shares, LEAST_MISSING / 2)


def _style(axes: Axes, title: str) -> None:
    """Shares are drawn by what they miss of 100%, on a log scale: so that 95% and 99% are told apart."""
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, pad=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1 - LEAST_SHARE, LEAST_MISSING)
    ticks = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995]
    axes.yaxis.set_major_locator(FixedLocator([1 - tick for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - value):.3g}%"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Epochs trained, all workers together", color=INK, fontsize=10)
    axes.set_ylabel("Share of the true hypervolume", color=INK, fontsize=10)
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.grid(alpha=0.18, linewidth=0.6)
    for share in (0.95, 0.99):
        axes.axhline(1 - share, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    command_line.run(main, Settings)

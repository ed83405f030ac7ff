"""Whether the scaling law tells what larger models will reach: forecasts held against models that were trained.

    python -m benchmarks.search.scaling_law --output benchmarks/results/scaling_law.txt

Of each family's models in the table the cheaper half, by FLOPs for an image, is shown to the forecast
(:func:`tune.map.scaling.forecast_front`); the largest quarter by parameters is what it must tell. At the size of each
model of that quarter the truth is what the family's front has there: the lowest bits/dim of all models of that size or
less. A model of the quarter that belongs to the cheaper half is shown, and is not asked for.

A search has fewer models than the table. So the same is done for many smaller tables, drawn from it at random; their
truth is still the whole table's front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.search.curves import CURVES, Curves, Row
from fvae.config import FAMILIES
from fvae.files import write_text
from pipelines.cli import command_line
from tune.map.scaling import FORECAST_SHARE, forecast_front


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Forecast the largest models of the table from its cheapest."""

    draws: int = 100
    """Smaller tables of each size."""
    sizes: tuple[int, ...] = (20, 40)
    """Models of each family in a smaller table."""
    curves: Path = CURVES
    """The table."""
    output: Path | None = None
    """Where to write the text."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Forecasts held against the truth: arrays ``[sizes]``, bits/dim."""

    inside: np.ndarray
    """Whether the truth lay in the band."""
    error: np.ndarray
    """Forecast less truth."""
    width: np.ndarray
    """Of the band."""


def main(settings: Settings) -> int:
    """Forecast, write, print. Returns the exit status."""
    curves = Curves.load(settings.curves)
    lines = [
        f"The cheaper half of the models forecasts the front at the sizes of the largest quarter "
        f"({FORECAST_SHARE:.0%} band).",
        "Errors and widths in bits/dim. 'last value' forecasts what the front of the cheaper half has reached.",
        "",
        f"{'models shown from':24}{'family':>8}{'forecasts':>11}{'coverage':>10}{'mean error':>12}{'mean |error|':>14}"
        f"{'mean width':>12}{'last value |error|':>20}",
    ]
    lines.append("-" * len(lines[-1]))
    rng = np.random.default_rng(0)
    for count, draws in ((None, 1), *((size, settings.draws) for size in settings.sizes)):
        label = "the whole table" if count is None else f"{draws} tables of {count}"
        everything: list[Held] = []
        naive: list[np.ndarray] = []
        for family in FAMILIES:
            rows = [row for row in curves.rows if row.family == family and row.failure is None]
            held, last = [], []
            for draw in range(draws):
                some = rows if count is None else [rows[at] for at in rng.choice(len(rows), count, replace=False)]
                one = held_against_truth(some, rows, seed=draw)
                if one is not None:
                    held.append(one[0])
                    last.append(one[1])
            lines.append(_line(label, family, held, last))
            everything += held
            naive += last
            label = ""
        lines.append(_line("", "all", everything, naive))
    text = "\n".join(lines) + "\n"
    if settings.output:
        write_text(settings.output, text)
    print(text, end="")
    return 0


def held_against_truth(some: Sequence[Row], everything: Sequence[Row], *, seed: int) -> tuple[Held, np.ndarray] | None:
    """The forecast from the cheaper half of ``some`` against the front of ``everything``; and the last value's error.

    None where the half determines no curve, or holds all of the largest quarter.
    """
    by_cost = sorted(some, key=lambda row: row.flops_per_image)
    shown = by_cost[: len(some) // 2]
    by_size = sorted(some, key=lambda row: row.params)
    asked = [row for row in by_size[-(len(some) // 4) :] if row not in shown]
    if not asked:
        return None
    sizes = np.array([float(row.params) for row in asked])
    forecast = forecast_front(np.array([[row.params, row.final] for row in shown]), sizes, seed)
    if forecast is None:
        return None
    truth = np.array([min(row.final for row in everything if row.params <= size) for size in sizes])
    middle, low, high = (np.array(forecast[name]) for name in ("bpd", "low", "high"))
    reached = np.array([min(row.final for row in shown if row.params <= size) for size in sizes])
    held = Held((low <= truth) & (truth <= high), middle - truth, high - low)
    return held, np.abs(reached - truth)


def _line(label: str, family: str, held: Sequence[Held], last: Sequence[np.ndarray]) -> str:
    inside, error, width = (
        np.concatenate([getattr(one, name) for one in held]) for name in ("inside", "error", "width")
    )
    return (
        f"{label:24}{family:>8}{len(inside):>11,}{inside.mean():>10.1%}{error.mean():>+12.3f}{np.abs(error).mean():>14.3f}"
        f"{width.mean():>12.3f}{np.concatenate(last).mean():>20.3f}"
    )


if __name__ == "__main__":
    command_line.run(main, Settings)

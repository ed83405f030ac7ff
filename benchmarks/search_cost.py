"""What searches cost and what they found: seconds of training, and each family's best model under some sizes.

    python tune/search.py --seed 0 --name before0       # and others
    python -m benchmarks.search_cost runs/before0 runs/after0

A search of one core for each trial spends as many core-seconds as its trials' attempts have seconds, if nothing else
keeps the machine busy.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.cli import command_line

SIZES = (3_000, 10_000, 30_000, 100_000)
"""Most parameters of the columns' models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Print a table of searches."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished searches."""


def main(settings: Settings) -> int:
    """Print the table. Returns the exit status."""
    print("test bits/dim, k = 1, of the best model by validation under so many parameters")
    sizes = "".join(f"{f'< {size // 1000}k':>9}" for size in SIZES)
    print(f"\n{'':12}{'trials':>8}{'complete':>10}{'epochs':>8}{'core-s':>9}  {'family':8}{sizes}")
    for run in settings.runs:
        records = [json.loads(file.read_text()) for file in sorted(run.glob("trials/*/trial.json"))]
        complete = [record for record in records if record["status"] == "complete"]
        seconds = sum(attempt["seconds"] for record in records for attempt in record["attempts"])
        epochs = sum(len(record["history"]) for record in records)
        figures = f"{run.name:12}{len(records):>8}{len(complete):>10}{epochs:>8,}{seconds:>9.0f}"
        for number, family in enumerate(("flow", "fvae", "vae")):
            best = "".join(f"{cell(complete, family, size):>9}" for size in SIZES)
            print(f"{figures if number == 0 else '':47}  {family:8}{best}")
    return 0


def cell(complete: list[dict[str, Any]], family: str, most: int) -> str:
    """The test bits/dim of a family's best model of at most so many parameters; – where there is none."""
    fitting = [each for each in complete if each["family"] == family and each["params"] <= most]
    read = [each for each in fitting if each["test"]]
    if not read:
        return "–"
    return f"{min(read, key=lambda each: float(each['val_bpd']))['test']['bpd']:.3f}"


if __name__ == "__main__":
    command_line.run(main, Settings)

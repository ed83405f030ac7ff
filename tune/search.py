"""The main job: search VAE, flow and f-VAE, and draw the map of parameters against bits/dim.

    python tune/search.py                              # the embedded digits, two minutes on two cores
    python tune/search.py --dataset PATH --trials 60   # your own images
    python tune/search.py --dataset s3://bucket/images --storage s3://bucket/runs

Results lie in runs/<name>/ (or where --storage says): tradeoff.html, tradeoff.png, tradeoff.json and trials.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # the code beside this file, not of another checkout that the environment may know
    folder = Path(__file__).resolve().parent
    # Without this folder, which Python puts first: its `statistics` would hide the standard library's.
    sys.path[:] = [str(folder.parent), *(each for each in sys.path if Path(each).resolve() != folder)]

from pipelines.cli import command_line
from pipelines.cluster.submission import run_or_submit
from tune.settings import SearchSettings


def main(settings: SearchSettings) -> int:
    """Search, read the tests, draw the map. Returns the exit status."""
    # torch, Optuna and scikit-learn take seconds to import, for which --help and a mistake need not wait.
    from tune import search_run

    return search_run.main(settings)


if __name__ == "__main__":
    command_line.run(run_or_submit(main), SearchSettings)

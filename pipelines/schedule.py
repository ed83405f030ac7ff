"""Retraining at set times: cron expressions with a time zone, each run a Ray job.

    python -m pipelines.schedule add nightly --cron '0 3 * * *' --zone Europe/Berlin --limit 6h \\
        -- --model fvae-photos --dataset s3://bucket/photos
    python -m pipelines.schedule list
    python -m pipelines.schedule serve            # keeps the schedules; a supervisor keeps it up

What follows -- goes to `python -m pipelines.retrain` as it stands. Everything about it: docs/retraining.md.
"""

from __future__ import annotations

import sys

from fvae.config import require
from pipelines.cli import command_line
from pipelines.cli.terminal import make_console
from pipelines.scheduling.commands import add, change, run_now, serve
from pipelines.scheduling.settings import Add, History, List, RunNow, ScheduleSettings, Serve
from pipelines.scheduling.store import Store
from pipelines.scheduling.tables import show_history, show_schedules


def main(settings: ScheduleSettings, arguments: tuple[str, ...] | None = None) -> int:
    """Do one command; returns the exit status. ``arguments``: what followed ``--``."""
    command = settings.command
    console = make_console()
    require(
        arguments is None or isinstance(command, Add), "--: what follows goes to a schedule's job, so it belongs to add"
    )
    store = Store(command.store, create=isinstance(command, Add | Serve))
    try:
        if isinstance(command, Add):
            add(store, command, arguments or (), console)
        elif isinstance(command, List):
            show_schedules(console, store.entries(), store.open_runs())
        elif isinstance(command, History):
            runs = store.history(command.name, command.last)
            if command.name is not None and not runs:
                store.entry(command.name)  # raises where the name is a mistake
            show_history(console, runs, store, steps=command.steps)
        elif isinstance(command, RunNow):
            return run_now(store, command, console)
        elif isinstance(command, Serve):
            serve(store, command)
        else:
            change(store, command, console)
    finally:
        store.close()
    return 0


def split_arguments(words: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """A command line's own words, and what follows the first ``--`` (None: there is none)."""
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], tuple(words[place + 1 :])


if __name__ == "__main__":
    sys.argv, _arguments = split_arguments(sys.argv)
    command_line.run(lambda settings: main(settings, _arguments), ScheduleSettings)

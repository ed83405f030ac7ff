"""What ``python -m pipelines.schedule`` does: add, change, run and serve schedules."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fvae.config import ConfigError
from pipelines.cli import command_line
from pipelines.cli.quantities import parse_duration
from pipelines.retraining.failure_hooks import require_hook
from pipelines.scheduling.definition import Schedule, model_of
from pipelines.scheduling.runs import OPEN, SUCCEEDED, Run
from pipelines.scheduling.settings import Add, Pause, Remove, Resume, RunNow, Serve
from pipelines.scheduling.store import Store


def add(store: Store, command: Add, arguments: tuple[str, ...], console: Console) -> None:
    """Add a schedule. Raises ``ConfigError`` for what cannot work."""
    times = {name: getattr(command, name) for name in ("backoff", "limit", "grace")}
    seconds = {name: parse_duration(f"--{name}", text) for name, text in times.items() if text is not None}
    try:
        entrypoint = tuple(shlex.split(command.entrypoint or ""))
    except ValueError as error:
        raise ConfigError(f"--entrypoint={command.entrypoint!r}: no command ({error})") from error
    schedule = Schedule(
        name=command.name,
        cron=command.cron,
        zone=command.zone,
        arguments=arguments,
        entrypoint=entrypoint,
        directory=str(Path(command.directory).expanduser().resolve()),
        exclusive=command.exclusive if command.exclusive is not None else model_of(arguments) or command.name,
        attempts=command.attempts,
        on_failure=command.on_failure,
        **seconds,
    )
    if command.on_failure is not None:
        require_hook("--on-failure", command.on_failure)
    if not entrypoint:
        _check_retraining(arguments)
    store.add(schedule, paused=command.paused)
    slot = schedule.times.next_slot(datetime.now(UTC))
    coming = "paused" if command.paused or slot is None else f"next run {schedule.local(slot.timestamp())}"
    _print(console, f"Added {schedule.name}: {coming}.")


def _check_retraining(arguments: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` now for options that the retraining would refuse when it is due."""
    from pipelines.retraining.settings import RetrainSettings

    words, sys.argv = sys.argv, ["pipelines.retrain", *arguments]
    try:
        command_line.parse(RetrainSettings)
    finally:
        sys.argv = words


def change(store: Store, command: Pause | Resume | Remove, console: Console) -> None:
    """Pause, resume or remove a schedule. Raises ``ConfigError`` for an unknown one."""
    name = command.name
    verbs = {Pause: (store.pause, "Paused"), Resume: (store.resume, "Resumed"), Remove: (store.remove, "Removed")}
    act, done = verbs[type(command)]
    act(name)
    left = [run.submission_id for run in store.open_runs() if run.job.name == name and run.submission_id]
    goes_on = f"; {', '.join(left)} goes on (ray job stop ends it)" if left and not isinstance(command, Resume) else ""
    _print(console, f"{done} {name}{goes_on}.")


def run_now(store: Store, command: RunNow, console: Console) -> int:
    """Start a run outside the slots and follow it; returns 0 if it succeeded."""
    from pipelines.scheduling.ray_jobs import RayJobs, RayUnreachable
    from pipelines.scheduling.run_steps import advance  # Ray takes a second to import
    from pipelines.scheduling.server import describe

    jobs = RayJobs(command.address)
    if not command.detach:
        jobs.require_answer()
    run: Run = store.add_run(command.name)
    _print(console, describe(run))
    if command.detach:
        return 0
    try:
        while run.state in OPEN:
            with contextlib.suppress(RayUnreachable):  # it answered before; its jobs are not lost
                advance(store, jobs, run)
            moved = store.run(run.id)
            if moved.state != run.state:
                _print(console, describe(moved))
            else:
                time.sleep(command.poll_seconds)
            run = moved
    except KeyboardInterrupt:
        _print(console, f"{run.submission_id or run.slot} goes on, and `serve` sees to it; history shows it.")
        return 1
    return 0 if run.state == SUCCEEDED else 1


def serve(store: Store, command: Serve) -> None:
    """Serve the schedules; SIGTERM and Ctrl-C end it at once."""
    from pipelines.scheduling.ray_jobs import RayJobs
    from pipelines.scheduling.server import Scheduler

    def say(line: str) -> None:
        print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", flush=True)

    def end(number: int, _frame: object) -> None:
        # Anything in progress may be left as it is, as after kill -9. An exception could be caught, by a callback
        # for example.
        os.write(1, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} ended by {signal.Signals(number).name}\n".encode())
        os._exit(0)

    jobs = RayJobs(command.address)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    say(f"schedules of {store.shown}, jobs to {jobs.address}")
    Scheduler(store, jobs, say).serve(command.poll_seconds)


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)

"""Commands and options of ``python -m pipelines.schedule``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from fvae.config import require_integer, require_positive
from pipelines.cli.optional_fields import without_default

POLL_SECONDS = 2.0


Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    store: str = "sqlite:///runs/schedules.db"
    """Database of the schedules: sqlite:///PATH or postgresql://USER@HOST/NAME (its password in ~/.pgpass)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OnRay(_Stored):
    address: Annotated[str | None, without_default("URL")] = None
    """Ray's dashboard, which takes the jobs. Default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265."""
    poll_seconds: float = POLL_SECONDS
    """Seconds from one look at the jobs to the next."""

    def __post_init__(self) -> None:
        require_positive("--poll-seconds", self.poll_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add(_Stored):
    """Add a schedule. What follows -- are the options of the retraining."""

    name: Name
    """Its name: a-z, 0-9, '-', '_' and '.'."""
    cron: str
    """When: minute, hour, day of the month, month, day of the week, as in a crontab; or @daily and the like."""
    zone: str = "UTC"
    """Time zone whose clock that is read on, e.g. Europe/Berlin."""
    attempts: int = 3
    """How often a run is tried before it has failed. Bad input (exit status 2) is not tried again."""
    backoff: str = "1m"
    """From a failed attempt to the next; doubled each time, up to an hour."""
    limit: Annotated[str | None, without_default("TIME")] = None
    """A run is stopped after this time, from the start of its first attempt, e.g. 6h."""
    grace: Annotated[str | None, without_default("TIME")] = None
    """A run that cannot begin within this time after its slot is left out, e.g. 2h. Default: it begins however late."""
    on_failure: Annotated[str | None, without_default("HOOK")] = None
    """A command or an http(s):// address that is called when a run has failed."""
    exclusive: Annotated[str | None, without_default("KEY")] = None
    """One run with this key is active at a time. Default: the model after --model, or the schedule's name."""
    entrypoint: Annotated[str | None, without_default("COMMAND")] = None
    """Another command than `python -m pipelines.retrain`."""
    directory: str = "."
    """Where the command runs, on the machine of Ray's head."""
    paused: bool = False
    """Begin paused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(_Stored):
    """Show the schedules: when each runs next, on its own clock, and what it does now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pause(_Stored):
    """Begin no more runs of a schedule, nor the attempts that wait; a job that runs goes on."""

    name: Name
    """The schedule's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(_Stored):
    """Go on with a schedule that was paused; what it missed meanwhile is not made up."""

    name: Name
    """The schedule's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunNow(_OnRay):
    """Run a schedule's job now, outside its slots, and wait for it. Ctrl-C leaves it to `serve`."""

    name: Name
    """The schedule's name."""
    detach: bool = False
    """Do not wait: `serve` starts and follows it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove(_Stored):
    """Remove a schedule. Its history stays; a job that runs goes on."""

    name: Name
    """The schedule's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class History(_Stored):
    """Show what became of the slots."""

    name: Annotated[str | None, tyro.conf.Positional, without_default("[NAME]")] = None
    """Show one schedule only."""
    last: int = 20
    """How many."""
    steps: bool = False
    """Every step of each run, too."""

    def __post_init__(self) -> None:
        require_integer("--last", self.last, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(_OnRay):
    """Keep the schedules, until it is ended. Ended and started again at any moment, it goes on."""


Command = Add | List | Pause | Resume | RunNow | Remove | History | Serve


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Retrain at set times: each run is a Ray job, one at a time for each model."""

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Command]]

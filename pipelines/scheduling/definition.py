"""The definition of a schedule: cron expression, command, attempts, limits. The job's own options are passed on."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fvae.config import from_fields, require, require_integer, require_positive
from pipelines.retraining.failure_hooks import require_hook
from pipelines.scheduling.cron import Cron, cron

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
LONGEST_BACKOFF = 3600.0
"""Longest wait between two attempts, in seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A job at set times. Raises ``ConfigError`` for values that cannot work."""

    name: str
    """Also the beginning of its Ray jobs' submission ids."""
    cron: str
    """When: a crontab's five fields."""
    zone: str
    """The time zone whose clock ``cron`` is read on."""
    arguments: tuple[str, ...]
    """Arguments of the command."""
    entrypoint: tuple[str, ...] = ()
    """The command; empty: ``python -m pipelines.retrain``."""
    directory: str
    """Absolute; where the command runs, on the machine of Ray's head."""
    exclusive: str
    """One run with this key is active at a time: the model's name, or the schedule's."""
    attempts: int = 3
    """Number of attempts after which a run has failed."""
    backoff: float = 60.0
    """Seconds from a failed attempt to the next; doubled each time, up to :data:`LONGEST_BACKOFF`."""
    limit: float | None = None
    """Seconds after which a run is stopped, from the start of its first attempt; None: never."""
    grace: float | None = None
    """Seconds after its slot in which a run may still begin; None: however late."""
    on_failure: str | None = None
    """The failure hook: a command or a URL, called when a run has failed."""

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"NAME={self.name!r}: must be 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a-z or 0-9",
        )
        cron(self.cron, self.zone)
        require(
            bool(self.arguments or self.entrypoint),
            "nothing to run: give the retraining's options after '--', as in: -- --model fvae-digits --dataset digits",
        )
        require(Path(self.directory).is_absolute(), f"--directory={self.directory!r}: must be an absolute path")
        require(bool(self.exclusive), "--exclusive='': must not be empty")
        require_integer("--attempts", self.attempts, 1)
        require_positive("--backoff", self.backoff)
        for option in ("limit", "grace"):
            if getattr(self, option) is not None:
                require_positive(f"--{option}", getattr(self, option))
        if self.on_failure is not None:
            require_hook("--on-failure", self.on_failure, here=False)

    @property
    def times(self) -> Cron:
        """The slots at which it is due."""
        return cron(self.cron, self.zone)

    def command(self) -> str:
        """The shell command of its Ray jobs, everything quoted.

        The retraining runs with this process's own Python: a job's PATH is that of Ray's processes.
        """
        words = [*(self.entrypoint or (sys.executable, "-m", "pipelines.retrain")), *self.arguments]
        return f"cd {shlex.quote(self.directory)} && exec {shlex.join(words)}"

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after this attempt, counted from 1, has failed."""
        return min(LONGEST_BACKOFF, self.backoff * 2.0 ** min(attempt - 1, 30))

    def local(self, moment: float) -> str:
        """A moment (seconds since 1970) on the schedule's own clock."""
        return datetime.fromtimestamp(moment, UTC).astimezone(self.times.zone).strftime("%Y-%m-%d %H:%M %Z")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schedule:
        """Raises ``ConfigError`` for fields that it does not know, and for values that cannot work."""
        return from_fields(cls, values | {name: tuple(values[name]) for name in ("arguments", "entrypoint")})


def model_of(arguments: tuple[str, ...]) -> str | None:
    """The model that a retraining's options name: ``--model NAME`` or ``--model=NAME``."""
    for place, argument in enumerate(arguments):
        if argument == "--model" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--model="):
            return argument.removeprefix("--model=")
    return None

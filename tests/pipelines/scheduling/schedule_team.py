"""A team's store of schedules, a real Ray for its jobs, and schedulers: in this process, or each in one of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient
from sqlalchemy import update

from pipelines import schedule
from pipelines.cli import command_line
from pipelines.scheduling.database import runs, schedules
from pipelines.scheduling.ray_jobs import ADDRESS_VARIABLE, RayJobs
from pipelines.scheduling.runs import COALESCED, OPEN, Run
from pipelines.scheduling.server import Scheduler
from pipelines.scheduling.store import Store
from tests.commands import Called, call
from tests.pipelines.ray_server import ROOT, RayServer, kill_group, wait_for

POLL = ("--poll-seconds", "0.2")


class Team:
    """A store in ``folder``, where its jobs run too. :meth:`close` ends what was started."""

    def __init__(self, folder: Path, ray: RayServer, patch: pytest.MonkeyPatch) -> None:
        patch.setenv(ADDRESS_VARIABLE, ray.address)
        self.folder, self.ray = folder, ray
        self.uri = f"sqlite:///{folder}/schedules.db"
        self.lines = folder / "lines"
        self.log = folder / "serve.log"
        self.printed: list[str] = []
        """By the schedulers of this process."""
        self._processes: list[subprocess.Popen[str]] = []
        self._stores: list[Store] = []

    # --- commands --------------------------------------------------------------------------------------

    def add(
        self, name: str, script: str, *options: str, due: int = 1, later: int = 0, arguments: tuple[str, ...] = ()
    ) -> list[datetime]:
        """A schedule whose job is a shell's script, with ``arguments`` as $1, $2, …

        It is due in this minute and in those before it, ``due`` in all, as if it had been added then; and ``later``
        times after ten minutes. No other slot comes within the hour, however the test's minutes fall. Returns them all.
        """
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        slots = [now - timedelta(minutes=back) for back in reversed(range(due))]
        slots += [now + timedelta(minutes=10 + after) for after in range(later)]
        minutes = ",".join(str(slot.minute) for slot in slots or [now + timedelta(minutes=30)])
        words = ["add", name, "--cron", f"{minutes} * * * *", "--directory", str(self.folder), "--entrypoint", "sh"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["schedule", *words, *options, "--store", self.uri])
            parsed = command_line.parse(schedule.ScheduleSettings)
        assert schedule.main(parsed, ("-c", script, "job", *arguments)) == 0
        if due:
            self.change(update(schedules).where(schedules.c.name == name).values(since=slots[0].timestamp() - 1))
        return slots

    def call(self, *words: str) -> Called:
        """One command in this process, to its end."""
        return call(schedule.main, schedule.ScheduleSettings, *words, "--store", self.uri)

    def process(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command in a process of its own, to its end."""
        command = [sys.executable, "-m", "pipelines.schedule", *words, "--store", self.uri]
        return subprocess.run(
            command, cwd=ROOT, env=self.ray.environment | environment, capture_output=True, text=True, timeout=540
        )

    # --- schedulers ------------------------------------------------------------------------------------

    def scheduler(self) -> Scheduler:
        """One in this process, which does nothing but what a test has it do."""
        store = Store(self.uri, create=True)
        self._stores.append(store)
        return Scheduler(store, RayJobs(self.ray.address), self.printed.append)

    def serve(self, *program: str) -> subprocess.Popen[str]:
        """One in a process of its own: ``python -m pipelines.schedule serve``, or another ``program`` that is it."""
        command = [sys.executable, *(program or ("-m", "pipelines.schedule")), "serve", "--store", self.uri]
        environment = self.ray.environment | {"PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--address", self.ray.address, *POLL],
                cwd=ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def until(self, holds: Callable[[], object], *schedulers: Scheduler, what: str = "") -> None:
        """Wait until ``holds()``, while these schedulers take turns."""

        def look() -> object:
            for each in schedulers:
                each.turn()
            return holds()

        wait_for(look, message=lambda: f"{what}\n{self.log_text()}\n{self.printed}")

    def over(self, name: str, *schedulers: Scheduler, count: int = 1) -> list[Run]:
        """Wait until so many runs of a schedule are over, coalesced ones aside; returns them."""

        def ended() -> list[Run]:
            return [run for run in self.history(name) if run.state not in (*OPEN, COALESCED)]

        self.until(lambda: len(ended()) >= count, *schedulers, what=f"{count} runs of {name}")
        return ended()

    def reaches(self, name: str, state: str, *schedulers: Scheduler) -> Run:
        """Wait until the last run of a schedule is in a state; returns it."""
        self.until(
            lambda: [run.state for run in self.history(name)][-1:] == [state], *schedulers, what=f"{name} {state}"
        )
        return self.history(name)[-1]

    # --- what is there ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The store."""
        store = Store(self.uri)
        try:
            yield store
        finally:
            store.close()

    def change(self, statement: Any) -> None:
        """Change a row of the store, as if something had been at another time."""
        with self.store() as store, store._database.transaction() as connection:
            connection.execute(statement)

    def began_hours_ago(self, name: str, hours: float) -> None:
        """The first attempts of a schedule's runs began so long ago."""
        began = time.time() - hours * 3600
        self.change(update(runs).where(runs.c.schedule == name).values(started_at=began))

    def history(self, name: str | None = None) -> list[Run]:
        """All runs, or those of a schedule."""
        with self.store() as store:
            return store.history(name, 1000)

    def steps(self, run: Run) -> list[Any]:
        """The states that a run went through."""
        with self.store() as store:
            return list(store.steps(run))

    def jobs(self) -> JobSubmissionClient:
        """Ray's own client."""
        return JobSubmissionClient(self.ray.address)

    def log_text(self) -> str:
        """What the schedulers in processes of their own have printed."""
        return self.log.read_text() if self.log.exists() else ""

    def written(self) -> Sequence[str]:
        """What the jobs have written."""
        return self.lines.read_text().splitlines() if self.lines.exists() else []

    def close(self) -> None:
        """End the processes, and the connections to the store."""
        for process in self._processes:
            kill_group(process)
        for store in self._stores:
            store.close()

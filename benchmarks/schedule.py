"""A schedule of every minute, for ten minutes in which its scheduler and the machine's services are killed.

    python benchmarks/schedule.py --output benchmarks/results/schedule.txt

A real Ray takes the jobs, each of 40 s. By kill -9 are ended and started again: the scheduler, while a job runs; the
scheduler with Ray's head and the job, for more than two minutes; the scheduler, in the second of a slot. In the last
three minutes two schedulers serve the same store. What ran is taken from lines that the jobs themselves write, not from
the scheduler's own history, and compared with it: exit status 1 unless every slot ran to its end once or was coalesced.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipelines.scheduling.cron import slot_name
from pipelines.scheduling.runs import COALESCED, SUCCEEDED
from pipelines.scheduling.store import Store
from tests.pipelines.ray_server import ROOT, RayServer, kill_group

JOB = """
import json, os, sys, time
job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]
def write(what):
    with open(sys.argv[1], "a") as file:
        file.write(f"{what} {job['slot']} {job['job_submission_id']}\\n")
write("begun")
time.sleep(float(sys.argv[2]))
write("ended")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, and where the report goes."""

    job_seconds: float = 40.0
    """Length of each job."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


class Machine:
    """Ray, the schedulers, and a diary of what was done to them."""

    def __init__(self, folder: Path, job_seconds: float) -> None:
        self.uri = f"sqlite:///{folder}/schedules.db"
        self.lines, self.log = folder / "lines", folder / "serve.log"
        self.ray = RayServer()
        self.schedulers: list[subprocess.Popen[str]] = []
        self.diary: list[str] = []
        self.script = folder / "job.py"
        self.script.write_text(JOB)
        self.arguments = [str(self.script), str(self.lines), f"{job_seconds:g}"]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.schedule", *words, "--store", self.uri]

    def add(self) -> None:
        words = ["add", "minutely", "--cron", "* * * * *", "--backoff", "5s", "--entrypoint", sys.executable]
        subprocess.run([*self.command(*words), "--", *self.arguments], cwd=ROOT, check=True)

    def start_scheduler(self) -> None:
        self.note("a scheduler is started")
        with self.log.open("ab") as log:
            command = [*self.command("serve"), "--address", self.ray.address]
            self.schedulers.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=self.ray.environment, stdout=log, stderr=log, text=True,
                    start_new_session=True,
                )
            )  # fmt: skip

    def kill_scheduler(self) -> None:
        self.note("the scheduler is killed (kill -9)")
        kill_group(self.schedulers.pop())

    def start_ray(self) -> None:
        self.note("Ray is started")
        self.ray.start()

    def kill_ray(self) -> None:
        self.note("Ray and its jobs are killed (kill -9)")
        self.ray.kill()

    def end_schedulers(self) -> None:
        """By SIGTERM, as a supervisor does; each must end at once and with status 0."""
        while self.schedulers:
            process = self.schedulers.pop()
            began = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            status = process.wait(10)
            self.note(f"SIGTERM: a scheduler ended with status {status} after {time.monotonic() - began:.2f} s")

    def note(self, what: str) -> None:
        self.diary.append(f"{datetime.now(UTC):%H:%M:%S}  {what}")
        print(self.diary[-1], flush=True)


def sleep_until(moment: datetime) -> None:
    time.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


def play(machine: Machine) -> list[str]:
    """Ten minutes of it; returns the names of the slots that came."""
    machine.start_ray()
    machine.add()
    machine.start_scheduler()
    first = (datetime.now(UTC) + timedelta(minutes=1)).replace(second=0, microsecond=0)
    at = lambda minutes, seconds: sleep_until(first + timedelta(minutes=minutes, seconds=seconds))  # noqa: E731

    at(1, 20)  # a job runs
    machine.kill_scheduler()
    at(1, 50)  # it has ended meanwhile
    machine.start_scheduler()
    at(3, 15)  # a job runs
    machine.kill_ray()
    machine.kill_scheduler()
    at(5, 30)  # two slots later
    machine.start_ray()
    machine.start_scheduler()
    at(7, 0)  # the second of a slot
    time.sleep(0.5)
    machine.kill_scheduler()
    machine.start_scheduler()
    at(7, 10)
    machine.start_scheduler()
    at(8, 20)  # a job runs; the other scheduler goes on
    machine.kill_scheduler()
    at(8, 30)
    machine.start_scheduler()
    at(9, 30)
    return [slot_name(first + timedelta(minutes=minute)) for minute in range(10)]


def report(machine: Machine, slots: list[str], console: Console) -> bool:
    """Print what became of each slot; returns whether each ran to its end once, or was coalesced and never ran."""
    lines = [line.split() for line in machine.lines.read_text().splitlines()]
    did = Counter((what, slot) for what, slot, _ in lines)
    store = Store(machine.uri)
    runs = [run for run in store.history("minutely", 1000) if run.slot in slots]  # more came while these were ended
    noted = Counter(run.slot for run in runs)
    for line in machine.diary:
        console.print(line, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("slot", "state", "attempts", "seconds", "jobs begun", "jobs ended", "submission id", "reason"):
        table.add_column(column, no_wrap=True)
    good = sorted(noted) == slots and set(noted.values()) == {1}
    for run in runs:
        begun, ended = did["begun", run.slot], did["ended", run.slot]
        right = (run.state == SUCCEEDED and ended == 1 and begun <= run.attempt) or (
            run.state == COALESCED and begun == ended == 0
        )
        good = good and right
        seconds = "" if run.seconds is None else f"{run.seconds:.0f}"
        table.add_row(
            run.slot, run.state, str(run.attempt or ""), seconds, str(begun), str(ended), run.submission_id, run.reason
        )
    console.print(table)
    twice = [
        submission
        for submission, count in Counter(line[2] for line in lines if line[0] == "begun").items()
        if count > 1
    ]
    good = good and not twice
    states = Counter(run.state for run in runs)
    console.print(
        f"{len(slots)} slots: {states[SUCCEEDED]} ran to their end, {states[COALESCED]} coalesced; "
        f"{sum(did['ended', slot] > 1 for slot in noted)} ended twice, "
        f"{len(twice)} submissions begun twice, {len(set(slots) - set(noted))} without a trace",
        highlight=False,
    )
    for run in runs:
        if run.attempt > 1:
            console.print(f"\nEvery step of {run.slot}:", highlight=False)
            for step in store.steps(run):
                at = datetime.fromtimestamp(step.at, UTC)
                console.print(f"  {at:%H:%M:%S}  {step.state}, attempt {step.attempt}  {step.reason}", highlight=False)
    store.close()
    return good


def main(settings: Settings) -> int:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), settings.job_seconds)
        try:
            slots = play(machine)
            store = Store(machine.uri)
            deadline = time.monotonic() + 300
            while any(run.slot in slots for run in store.open_runs()) and time.monotonic() < deadline:
                time.sleep(1)
            store.close()
            machine.end_schedulers()
        finally:
            for process in machine.schedulers:
                kill_group(process)
            machine.ray.close()
        with Path(os.devnull).open("w") as nothing:
            console = Console(file=nothing, width=200, record=True)
            console.print(f"$ python {' '.join(sys.argv)}", highlight=False)
            console.print(
                f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}; times are UTC\n"
            )
            good = report(machine, slots, console)
            console.print(f"\n{'Each slot ran once or was coalesced, none twice.' if good else 'NOT as it must be.'}")
        text = "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"
        print(text)
        if settings.output:
            settings.output.write_text(text)
        if not good:
            print(machine.log.read_text())
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))

"""``python -m pipelines.schedule`` against a real Ray that asks for a token, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from pipelines import command_line, schedule
from pipelines.scheduling.database import runs, schedules
from pipelines.scheduling.runs import (
    BACKING_OFF,
    COALESCED,
    FAILED,
    MISSED,
    OPEN,
    RUNNING,
    STOPPED,
    SUBMITTING,
    SUCCEEDED,
    TIMED_OUT,
    WAITING,
    Run,
)
from pipelines.scheduling.slots import slot_time
from pipelines.scheduling.store import Store
from tests.pipelines.ray_server import ROOT, RayServer, kill_group, wait_for

pytestmark = pytest.mark.core

DYING = ROOT / "tests" / "pipelines" / "dying_scheduler.py"


@pytest.fixture(scope="module")
def ray() -> Iterator[RayServer]:
    server = RayServer()
    server.start()
    yield server
    server.close()


class Team:
    """A store, and a Ray for its jobs."""

    def __init__(self, folder: Path, ray: RayServer) -> None:
        self.folder, self.ray = folder, ray
        self.uri = f"sqlite:///{folder}/schedules.db"
        self.lines = folder / "lines"
        self.log = folder / "serve.log"
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        command = [sys.executable, "-m", "pipelines.schedule", *words, "--store", self.uri]
        return subprocess.run(
            command, cwd=ROOT, env=self.ray.environment | environment, capture_output=True, text=True, timeout=300
        )

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
            with self.store() as store, store._database.transaction() as connection:
                change = update(schedules).where(schedules.c.name == name)
                connection.execute(change.values(since=slots[0].timestamp() - 1))
        return slots

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        store = Store(self.uri)
        try:
            yield store
        finally:
            store.close()

    def serve(self, *options: str, dying: str | None = None) -> subprocess.Popen[str]:
        """The scheduler; with ``dying`` it kills itself at that moment."""
        program = [str(DYING), dying] if dying else ["-m", "pipelines.schedule"]
        command = [sys.executable, *program, "serve", "--store", self.uri]
        command += ["--address", self.ray.address, "--poll-seconds", "0.2", *options]
        with self.log.open("ab") as log:
            environment = self.ray.environment | {"PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )
        self._started.append(process)
        return process

    def history(self, name: str | None = None) -> list[Run]:
        with self.store() as store:
            return store.history(name, 1000)

    def over(self, name: str, count: int = 1) -> list[Run]:
        """Wait until so many runs of a schedule are over, coalesced ones aside; returns them."""

        def ended() -> list[Run]:
            return [run for run in self.history(name) if run.state not in (*OPEN, COALESCED)]

        wait_for(lambda: len(ended()) >= count, message=f"{count} runs of {name}\n{self.log.read_text()}")
        return ended()

    def until(self, name: str, state: str) -> Run:
        """Wait until the last run of a schedule is in a state."""
        wait_for(
            lambda: [run.state for run in self.history(name)][-1:] == [state],
            message=f"{name} {state}\n{self.log_text()}",
        )
        return self.history(name)[-1]

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def written(self) -> list[str]:
        """What the jobs have written."""
        return self.lines.read_text().splitlines() if self.lines.exists() else []

    def close(self) -> None:
        for process in self._started:
            kill_group(process)


@pytest.fixture
def team(tmp_path: Path, ray: RayServer) -> Iterator[Team]:
    team = Team(tmp_path, ray)
    yield team
    team.close()


def ray_job(team: Team, *words: str) -> str:
    """Ray's own command line."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *words]
    environment = team.ray.environment | {"RAY_API_SERVER_ADDRESS": team.ray.address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_now_runs_the_job_with_its_words_as_given(team: Team) -> None:
    odd = ("a b", "c'd", '"$HOME"', "x;y", "*")
    team.add("words", 'pwd > lines; printf "%s\\n" "$@" >> lines', due=0, arguments=odd)
    done = team("run-now", "words", "--address", team.ray.address, "--poll-seconds", "0.2")
    assert done.returncode == 0, done.stderr
    assert team.written() == [str(team.folder), *odd]
    (run,) = team.history("words")
    assert (run.state, run.attempt) == (SUCCEEDED, 1)
    assert run.submission_id == f"words-{run.slot}"
    assert run.slot.startswith("now-")
    assert run.submission_id in done.stdout


def test_the_job_finds_mlflow_and_the_store_and_no_password_goes_along(team: Team) -> None:
    team.add("where", 'echo "$MLFLOW_TRACKING_URI" "$AWS_REGION" "$AWS_ENDPOINT_URL" > lines', due=0)
    places = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "AWS_REGION": "eu-test-1"}
    secret = {"AWS_ENDPOINT_URL": "http://user:password-of-it@127.0.0.1:9000"}
    done = team("run-now", "where", "--address", team.ray.address, **places, **secret)
    assert done.returncode == 0, done.stderr
    (line,) = team.written()
    assert line.startswith("http://127.0.0.1:5000 eu-test-1 ")
    assert "password-of-it" not in line + ray_job(team, "list")


def test_a_failed_job_is_tried_again_later_each_time_and_then_the_hook_is_told_once(team: Team) -> None:
    hook = team.folder / "hook"
    hook.write_text(f"#!/bin/sh\nenv | grep ^FVAE_ >> {team.folder}/told\n")
    hook.chmod(0o700)
    options = ("--attempts", "3", "--backoff", "3s", "--on-failure", str(hook))
    team.add("fails", "echo run >> lines; echo no such bucket; exit 3", *options)
    team.serve()
    wait_for(lambda: team.written(), message=team.log_text())
    (run,) = team.over("fails")
    assert (run.state, run.attempt, run.reason) == (FAILED, 3, "exit status 3: no such bucket")
    assert run.submission_id == f"fails-{run.slot}-retry2"
    assert len(team.written()) == 3
    with team.store() as store:
        steps = store.steps(run)
    failed = [step for step in steps if step.state == BACKING_OFF]
    assert [steps[steps.index(step) + 1].state for step in failed] == [SUBMITTING] * 2
    waited = [steps[steps.index(step) + 1].at - step.at for step in failed]
    assert waited[0] >= 3 - 0.01
    assert waited[1] >= 6 - 0.01
    wait_for(lambda: "hook was told" in team.log_text(), message=team.log_text())
    told = dict(line.split("=", 1) for line in (team.folder / "told").read_text().splitlines())
    assert told["FVAE_EVENT"] == "failed"
    assert told["FVAE_SCHEDULE"] == "fails"
    assert told["FVAE_SLOT"] == run.slot
    assert told["FVAE_REASON"] == run.reason
    assert told["FVAE_TEXT"].endswith("(exit status 3: no such bucket)")
    assert (team.folder / "told").read_text().count("FVAE_EVENT") == 1


def test_bad_input_is_not_tried_again(team: Team) -> None:
    team.add("refuses", "echo run >> lines; echo error: --model=x: no such model; exit 2", due=0)
    done = team("run-now", "refuses", "--address", team.ray.address, "--poll-seconds", "0.2")
    assert done.returncode == 1
    (run,) = team.history("refuses")
    assert (run.state, run.attempt) == (FAILED, 1)
    assert run.reason == "exit status 2: error: --model=x: no such model; trying again would not help"
    assert team.written() == ["run"]


def test_a_run_is_stopped_at_its_limit(team: Team) -> None:
    team.add("slow", "echo $$ >> lines; sleep 300; echo late >> lines", "--limit", "4s", "--attempts", "3")
    team.serve()
    wait_for(lambda: team.written(), message=team.log_text())
    (run,) = team.over("slow")
    assert (run.state, run.attempt, run.reason) == (TIMED_OUT, 1, "longer than its limit of 4s")
    assert run.seconds is not None
    assert 4 <= run.seconds < 120
    process = int(team.written()[0])
    wait_for(lambda: not Path(f"/proc/{process}").exists())
    assert "STOPPED" in ray_job(team, "status", run.submission_id).upper()


def test_a_run_that_somebody_stops_is_not_tried_again(team: Team) -> None:
    team.add("asked", "echo run >> lines; sleep 300")
    team.serve()
    run = team.until("asked", RUNNING)
    wait_for(lambda: team.written())
    ray_job(team, "stop", "--no-wait", run.submission_id)
    (run,) = team.over("asked")
    assert (run.state, run.attempt) == (STOPPED, 1)


def test_what_was_missed_is_one_run_and_what_comes_meanwhile_waits(team: Team) -> None:
    script = "echo begin >> lines; while [ ! -e go ]; do sleep 0.1; done; echo end >> lines"
    *missed, first, then, last = team.add("missed", script, due=4, later=2)
    team.serve()
    wait_for(lambda: team.written() == ["begin"], message=team.log_text())
    team.until("missed", RUNNING)
    with team.store() as store:  # two more come
        assert store.claim("missed", then) is not None
        assert store.claim("missed", last) is not None
    expected = [*zip(missed, [COALESCED] * 3, strict=True), (first, RUNNING), (then, COALESCED), (last, WAITING)]
    assert [(slot_time(run.slot), run.state) for run in team.history("missed")] == expected
    (team.folder / "go").touch()
    ended = team.over("missed", 2)
    assert [(slot_time(run.slot), run.state) for run in ended] == [(first, SUCCEEDED), (last, SUCCEEDED)]
    assert team.written() == ["begin", "end", "begin", "end"]


def test_one_job_at_a_time_for_each_model(team: Team) -> None:
    script = "echo begin >> lines; sleep 2; echo end >> lines"
    for name in ("a", "b"):
        team.add(name, script, "--exclusive", "fvae-photos")
    team.add("c", "echo $$ > other; sleep 1", "--exclusive", "fvae-digits")
    team.serve()
    runs_of = {name: team.over(name)[0] for name in ("a", "b", "c")}
    assert team.written() == ["begin", "end", "begin", "end"]
    other, first = runs_of["c"], min((runs_of["a"], runs_of["b"]), key=lambda run: run.started_at or 0)
    assert (other.started_at or 0) < (first.ended_at or 0)  # another model's does not wait


@pytest.mark.parametrize("moment", ["noted", "claimed", "submitted", "ended"])
def test_the_scheduler_is_killed_at_any_moment_and_the_slot_is_run_once(team: Team, moment: str) -> None:
    once = f"once-{moment}"  # Ray, which all tests share, would take a submission id of another test for this one's
    team.add(once, "echo run >> lines; sleep 1")
    process = team.serve(dying=moment)
    assert process.wait(180) == -signal.SIGKILL, team.log_text()
    if moment == "submitted":  # its job ends while nobody looks
        wait_for(lambda: team.written() == ["run"])
    assert len([run for run in team.history(once) if run.state in OPEN]) == 1
    team.serve()
    (run,) = team.over(once)
    assert (run.state, run.attempt) == (SUCCEEDED, 1)
    assert team.written() == ["run"]
    with team.store() as store:
        assert [step.state for step in store.steps(run)] == ["waiting", "submitting", "running", SUCCEEDED]


@pytest.mark.parametrize("moment", ["ended", "recorded", "telling"])
def test_the_scheduler_is_killed_around_a_failure_and_the_hook_is_told(team: Team, moment: str) -> None:
    fails = f"fails-{moment}"
    told = team.folder / "told"
    team.add(fails, "exit 1", "--attempts", "1", "--on-failure", f"sh -c 'echo $FVAE_SLOT >> {told}'")
    assert team.serve(dying=moment).wait(180) == -signal.SIGKILL, team.log_text()
    with team.store() as store, store._database.transaction() as connection:  # minutes later
        connection.execute(update(runs).where(runs.c.hook_at.is_not(None)).values(hook_at=time.time() - 3600))
    team.serve()
    (run,) = team.over(fails)
    wait_for(lambda: "hook was told" in team.log_text(), message=team.log_text())
    assert told.read_text().splitlines() == [run.slot] * (2 if moment == "telling" else 1)  # at least once
    with team.store() as store:
        assert [step.state for step in store.steps(run)].count(FAILED) == 1


def test_two_schedulers_on_one_store_run_a_slot_once(team: Team) -> None:
    names = [f"s{number}" for number in range(4)]
    for name in names:
        team.add(name, f"echo {name} >> lines", due=3)
    for _ in range(2):
        team.serve()
    for name in names:
        assert [run.state for run in team.over(name)] == [SUCCEEDED]
    assert sorted(team.written()) == names
    assert team.log_text().count(": succeeded") == len(names)  # each outcome was noted by one


def test_two_schedulers_on_two_stores_run_a_slot_once(team: Team, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Team(tmp_path / "other", team.ray)
    team.add("shared", f"echo run >> {team.lines}; sleep 1")
    with team.store() as store, contextlib.closing(Store(other.uri, create=True)) as second:
        entry = store.entry("shared")
        second.add(entry.schedule)
        with second._database.transaction() as connection:
            connection.execute(update(schedules).values(since=entry.since))
    for each in (team, other):
        each.serve()
    ended = [each.over("shared")[0] for each in (team, other)]
    other.close()
    assert [run.state for run in ended] == [SUCCEEDED] * 2
    assert ended[0].submission_id == ended[1].submission_id
    assert team.written() == ["run"]


def test_sigterm_ends_it_at_once_and_the_job_goes_on(team: Team) -> None:
    team.add("ends", "exit 1", "--attempts", "1", "--on-failure", "sleep 50")  # a hook that takes its time
    team.add("long", "echo begin >> lines; while [ ! -e go ]; do sleep 0.1; done; echo end >> lines")
    process = team.serve()
    team.over("ends")
    wait_for(lambda: team.written() == ["begin"], message=team.log_text())
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5
    assert "ended by SIGTERM" in team.log_text()
    assert "Traceback" not in team.log_text()
    (team.folder / "go").touch()
    wait_for(lambda: team.written() == ["begin", "end"])
    team.serve()
    (run,) = team.over("long")
    assert run.state == SUCCEEDED


def test_a_slot_that_is_too_late_is_left_out(team: Team) -> None:
    team.add("punctual", "echo run >> lines", "--grace", "10m", due=0)  # a minute of every hour: half an hour ago
    with team.store() as store, store._database.transaction() as connection:
        connection.execute(update(schedules).values(since=time.time() - 40 * 60))
    team.serve()
    (run,) = team.over("punctual")
    assert (run.state, run.reason, run.attempt) == (MISSED, "could not begin within 10m00s", 0)
    assert team.written() == []


def test_a_token_that_is_wrong_is_one_line(team: Team, tmp_path: Path) -> None:
    team.add("refused", "echo run >> lines", due=0)
    token = tmp_path / "token"
    token.write_text("0" * 64)
    done = team("run-now", "refused", "--address", team.ray.address, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: {team.ray.address}: refuses this token; RAY_AUTH_MODE=token and ~/.ray/auth_token must be as on "
        "Ray's head (GET version)"
    )


# The last tests of the file: Ray, which all share, is ended and started again.


def test_a_job_that_ray_lost_is_tried_again_and_slots_meanwhile_are_coalesced(team: Team) -> None:
    script = "echo begin >> lines; [ -e second ] || { touch second; sleep 300; }; echo end >> lines"
    (slot,) = team.add("lost", script, "--backoff", "1s")
    team.serve()
    wait_for(lambda: team.written() == ["begin"], message=team.log_text())
    team.until("lost", RUNNING)
    team.ray.kill()
    _, second, third = team.add("away", "echo away >> lines", due=2, later=1)
    team.until("away", WAITING)
    with team.store() as store:
        assert store.claim("away", third) is not None
    assert [run.state for run in team.history("away")] == [COALESCED, COALESCED, WAITING]
    wait_for(lambda: "no Ray answers there" in team.log_text(), message=team.log_text())
    team.ray.start()
    (run,) = team.over("lost")
    assert (slot_time(run.slot), run.state, run.attempt) == (slot, SUCCEEDED, 2)
    with team.store() as store:
        reasons = [step.reason for step in store.steps(run) if step.state == BACKING_OFF]
    assert reasons == ["Ray was started again meanwhile and does not know the job any more"]
    assert [(slot_time(run.slot), run.state) for run in team.over("away")] == [(third, SUCCEEDED)]
    assert sorted(team.written()) == ["away", "begin", "begin", "end"]
    assert len(team.log_text().splitlines()) < 30  # that Ray is away is not said in each pass


def test_ray_that_is_away_is_one_line(team: Team) -> None:
    team.add("alone", "true", due=0)
    done = team("run-now", "alone", "--address", "http://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (1, "error: http://127.0.0.1:1: no Ray answers there (GET version)\n")
    assert team.history("alone") == []  # and nothing waits to surprise anybody
    done = team("run-now", "alone", "--address", "127.0.0.1:8265")
    assert done.returncode == 2
    assert "--address='127.0.0.1:8265': must be that of Ray's dashboard" in done.stderr


def test_an_address_of_the_environment_is_used(team: Team) -> None:
    team.add("env", "true", due=0)
    done = team("run-now", "env", RAY_API_SERVER_ADDRESS="http://127.0.0.1:2", RAY_ADDRESS="127.0.0.1:6379")
    assert "http://127.0.0.1:2: no Ray answers there" in done.stderr

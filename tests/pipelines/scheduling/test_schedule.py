"""``python -m pipelines.schedule`` against a real Ray that asks for a token: runs, attempts, limits, hooks, turns."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from pipelines.scheduling.cron import slot_time
from pipelines.scheduling.database import schedules
from pipelines.scheduling.ray_jobs import ADDRESS_VARIABLE, RayJobs
from pipelines.scheduling.runs import (
    BACKING_OFF,
    COALESCED,
    FAILED,
    MISSED,
    RUNNING,
    STOPPED,
    SUBMITTING,
    SUCCEEDED,
    TIMED_OUT,
    WAITING,
    Run,
)
from pipelines.scheduling.store import Store
from tests.pipelines.scheduling.schedule_team import POLL, Team
from tests.services.head import PATIENCE, lives

pytestmark = pytest.mark.core


def test_run_now_runs_the_job_with_its_words_as_given_and_no_password_goes_along(team: Team) -> None:
    odd = ("a b", "c'd", '"$HOME"', "x;y", "*")
    places = '"$MLFLOW_TRACKING_URI" "$AWS_REGION" "$AWS_ENDPOINT_URL"'
    script = f'pwd > lines; printf "%s\\n" "$@" >> lines; echo {places} >> lines'
    team.add("words", script, due=0, arguments=odd)
    secret = {"AWS_ENDPOINT_URL": "http://user:password-of-it@127.0.0.1:9000"}
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "AWS_REGION": "eu-test-1"} | secret
    done = team.process("run-now", "words", "--address", team.ray.address, *POLL, **environment)
    assert done.returncode == 0, done.stderr
    *given, found = team.written()
    assert given == [str(team.folder), *odd]
    assert found.startswith("http://127.0.0.1:5000 eu-test-1 ")
    assert "password-of-it" not in found + str(team.jobs().list_jobs())
    (run,) = team.history("words")
    assert (run.state, run.attempt) == (SUCCEEDED, 1)
    assert run.submission_id == f"words-{run.slot}"
    assert run.slot.startswith("now-")
    assert run.submission_id in done.stdout


def test_a_failed_job_is_tried_again_later_each_time_and_then_the_hook_is_run_once(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, planned = Store.move, []

    def moving(self: Store, run: Run, state: str, **changes: Any) -> Run | None:
        planned.extend([changes["next_at"]] if state == BACKING_OFF else [])
        return move(self, run, state, **changes)

    monkeypatch.setattr(Store, "move", moving)
    hook = team.folder / "hook"
    hook.write_text(f"#!/bin/sh\nenv | grep ^FVAE_ >> {team.folder}/told\n")
    hook.chmod(0o700)
    options = ("--attempts", "3", "--backoff", "1s", "--on-failure", str(hook))
    team.add("fails", "echo run >> lines; echo no such bucket; exit 3", *options)
    scheduler = team.scheduler()
    (run,) = team.over("fails", scheduler)
    assert (run.state, run.attempt, run.reason) == (FAILED, 3, "exit status 3: no such bucket")
    assert run.submission_id == f"fails-{run.slot}-retry2"
    assert len(team.written()) == 3
    steps = team.steps(run)
    failed = [step for step in steps if step.state == BACKING_OFF]
    assert [steps[steps.index(step) + 1].state for step in failed] == [SUBMITTING] * 2
    tried_again = [steps[steps.index(step) + 1].at for step in failed]
    assert [at >= due for at, due in zip(tried_again, planned, strict=True)] == [True, True]
    running = [steps[steps.index(step) - 1].at for step in failed]
    pauses = zip(planned, running, (1, 2), strict=True)
    assert [due >= began + run.job.pause_after(attempt) for due, began, attempt in pauses] == [True, True]
    team.until(lambda: "hook was run" in str(team.printed), scheduler)
    told = dict(line.split("=", 1) for line in (team.folder / "told").read_text().splitlines())
    assert told["FVAE_EVENT"] == "failed"
    assert told["FVAE_SCHEDULE"] == "fails"
    assert told["FVAE_SLOT"] == run.slot
    assert told["FVAE_REASON"] == run.reason
    assert told["FVAE_TEXT"].endswith("(exit status 3: no such bucket)")
    assert (team.folder / "told").read_text().count("FVAE_EVENT") == 1


def test_bad_input_is_not_tried_again(team: Team) -> None:
    team.add("refuses", "echo run >> lines; echo error: --model=x: no such model; exit 2", due=0)
    assert team.call("run-now", "refuses", "--address", team.ray.address, *POLL).status == 1
    (run,) = team.history("refuses")
    assert (run.state, run.attempt) == (FAILED, 1)
    assert run.reason == "exit status 2: error: --model=x: no such model; trying again would not help"
    assert team.written() == ["run"]


def test_a_run_is_stopped_at_its_limit(team: Team) -> None:
    team.add("slow", "echo $$ >> lines; sleep 3000; echo late >> lines", "--limit", "4h", "--attempts", "3")
    scheduler = team.scheduler()
    team.until(team.written, scheduler)
    team.reaches("slow", RUNNING, scheduler)
    process = int(team.written()[0])
    team.began_hours_ago("slow", 3.9)
    scheduler.turn()
    assert team.history("slow")[0].state == RUNNING
    assert lives(process)
    team.began_hours_ago("slow", 4.1)
    (run,) = team.over("slow", scheduler)
    assert (run.state, run.attempt, run.reason) == (TIMED_OUT, 1, "longer than its limit of 4h00m")
    team.until(lambda: not lives(process))
    assert team.jobs().get_job_status(run.submission_id) == "STOPPED"
    assert len(team.written()) == 1


def test_a_run_that_somebody_stops_is_not_tried_again(team: Team) -> None:
    team.add("asked", "echo run >> lines; sleep 3000")
    scheduler = team.scheduler()
    team.until(team.written, scheduler)
    run = team.reaches("asked", RUNNING, scheduler)
    team.jobs().stop_job(run.submission_id)
    (run,) = team.over("asked", scheduler)
    assert (run.state, run.attempt) == (STOPPED, 1)


def test_what_was_missed_is_one_run_and_what_comes_meanwhile_waits(team: Team) -> None:
    script = "echo begin >> lines; while [ ! -e go ]; do sleep 0.1; done; echo end >> lines"
    *missed, first, then, last = team.add("missed", script, due=4, later=2)
    scheduler = team.scheduler()
    team.until(lambda: team.written() == ["begin"], scheduler)
    team.reaches("missed", RUNNING, scheduler)
    with team.store() as store:  # two more come
        assert store.claim("missed", then) is not None
        assert store.claim("missed", last) is not None
    expected = [*zip(missed, [COALESCED] * 3, strict=True), (first, RUNNING), (then, COALESCED), (last, WAITING)]
    assert [(slot_time(run.slot), run.state) for run in team.history("missed")] == expected
    (team.folder / "go").touch()
    ended = team.over("missed", scheduler, count=2)
    assert [(slot_time(run.slot), run.state) for run in ended] == [(first, SUCCEEDED), (last, SUCCEEDED)]
    assert team.written() == ["begin", "end", "begin", "end"]


def test_one_job_at_a_time_for_each_model(team: Team) -> None:
    script = "echo begin >> lines; while [ ! -e go ]; do sleep 0.1; done; echo end >> lines"
    for name in ("a", "b"):
        team.add(name, script, "--exclusive", "fvae-photos")
    team.add("c", "true", "--exclusive", "fvae-digits")
    scheduler = team.scheduler()
    team.until(lambda: team.written() == ["begin"], scheduler)
    assert team.over("c", scheduler)[0].state == SUCCEEDED  # another model's does not wait
    assert sorted(team.history(name)[0].state for name in ("a", "b")) == [RUNNING, WAITING]
    (team.folder / "go").touch()
    for name in ("a", "b"):
        assert team.over(name, scheduler)[0].state == SUCCEEDED
    assert team.written() == ["begin", "end", "begin", "end"]


def test_two_schedulers_on_one_store_run_a_slot_once(team: Team) -> None:
    names = ["s0", "s1"]
    for name in names:
        team.add(name, f"echo {name} >> lines", due=3)
    ended, failures = threading.Event(), []

    def serve() -> None:
        try:
            scheduler = team.scheduler()
            while not ended.is_set():
                scheduler.turn()
        except BaseException as error:  # noqa: BLE001 - for the test to raise
            failures.append(error)

    both = [threading.Thread(target=serve) for _ in range(2)]
    for one in both:
        one.start()
    try:
        for name in names:
            assert [run.state for run in team.over(name)] == [SUCCEEDED]
    finally:
        ended.set()
        for one in both:
            one.join()
    assert failures == []
    assert sorted(team.written()) == names
    assert str(team.printed).count(": succeeded") == len(names)  # each outcome was noted by one


def test_two_schedulers_on_two_stores_run_a_slot_once(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    team.add("shared", f"echo run >> {team.lines}")
    with contextlib.closing(Team(tmp_path / "other", team.ray, monkeypatch)) as other:
        with team.store() as store, contextlib.closing(Store(other.uri, create=True)) as second:
            entry = store.entry("shared")
            second.add(entry.schedule)
            with second._database.transaction() as connection:
                connection.execute(update(schedules).values(since=entry.since))
        both = (team.scheduler(), other.scheduler())
        ended = [each.over("shared", *both)[0] for each in (team, other)]
    assert [run.state for run in ended] == [SUCCEEDED] * 2
    assert ended[0].submission_id == ended[1].submission_id
    assert team.written() == ["run"]
    # Also where neither knew of the other when it submitted: Ray takes an id once.
    RayJobs(team.ray.address).submit(ended[0].submission_id, f"sh -c 'echo again >> {team.lines}'", {})
    assert len([job for job in team.jobs().list_jobs() if job.submission_id == ended[0].submission_id]) == 1
    assert team.written() == ["run"]


def test_sigterm_ends_it_at_once_and_the_job_goes_on(team: Team) -> None:
    hook, started = team.folder / "hook", team.folder / "started"
    hook.write_text(f"#!/bin/sh\necho $$ > {started}.part\nmv {started}.part {started}\nexec sleep 3000\n")
    hook.chmod(0o700)
    team.add("ends", "exit 1", "--attempts", "1", "--on-failure", str(hook))
    team.add("long", "echo begin >> lines; while [ ! -e go ]; do sleep 0.1; done; echo end >> lines")
    process = team.serve()
    team.until(started.exists)
    team.until(lambda: team.written() == ["begin"])
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    os.kill(int(started.read_text()), signal.SIGKILL)  # it has not been waited for, and not been ended
    assert team.log_text().splitlines()[-1].endswith("ended by SIGTERM")
    assert "Traceback" not in team.log_text()
    (team.folder / "go").touch()
    team.until(lambda: team.written() == ["begin", "end"])
    (run,) = team.over("long", team.scheduler())
    assert run.state == SUCCEEDED


def test_a_slot_that_is_too_late_is_left_out(team: Team) -> None:
    team.add("punctual", "echo run >> lines", "--grace", "10m", due=0)  # a minute of every hour: half an hour ago
    team.change(update(schedules).values(since=time.time() - 40 * 60))
    (run,) = team.over("punctual", team.scheduler())
    assert (run.state, run.reason, run.attempt) == (MISSED, "could not begin within 10m00s", 0)
    assert team.written() == []


def test_a_token_that_is_wrong_is_one_line(team: Team, tmp_path: Path) -> None:
    team.add("refused", "echo run >> lines", due=0)
    token = tmp_path / "token"
    token.write_text("0" * 64)
    done = team.process("run-now", "refused", "--address", team.ray.address, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: {team.ray.address}: refuses this token; RAY_AUTH_MODE=token and ~/.ray/auth_token must be as on "
        "Ray's head (GET version)"
    )


def test_ray_that_is_away_is_one_line(team: Team) -> None:
    team.add("alone", "true", due=0)
    done = team.call("run-now", "alone", "--address", "http://127.0.0.1:1")
    assert (done.status, done.err) == (1, "error: http://127.0.0.1:1: no Ray answers there (GET version)\n")
    assert team.history("alone") == []  # and nothing waits to surprise anybody
    done = team.call("run-now", "alone", "--address", "127.0.0.1:8265")
    assert done.status == 2
    assert "--address='127.0.0.1:8265': must be that of Ray's dashboard" in done.err


def test_an_address_of_the_environment_is_used(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.add("env", "true", due=0)
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:2")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "http://127.0.0.1:2: no Ray answers there" in team.call("run-now", "env").err

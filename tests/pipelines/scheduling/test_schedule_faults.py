"""The scheduler is killed at any moment of a run, and Ray is lost: each slot is run once, each hook is called."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest
from sqlalchemy import update

from pipelines.scheduling.cron import slot_time
from pipelines.scheduling.database import runs
from pipelines.scheduling.runs import BACKING_OFF, COALESCED, FAILED, OPEN, RUNNING, SUCCEEDED, WAITING
from tests.pipelines.scheduling import dying_scheduler
from tests.pipelines.scheduling.schedule_team import Team
from tests.services.head import PATIENCE

pytestmark = pytest.mark.faults


class Died(BaseException):
    """What a killed process does next: nothing."""


def killed(team: Team, moment: str) -> None:
    """A scheduler of this process does its work up to a moment, and nothing afterwards."""
    died: list[bool] = []

    def die(*_arguments: object, **_options: object) -> None:
        died.append(True)
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        dying_scheduler.plan(moment, die, patch)
        scheduler = team.scheduler()
        with contextlib.suppress(Died):
            team.until(lambda: died, scheduler)  # a hook is run in a thread, which dies alone


def once(team: Team, name: str, moment: str) -> None:
    """After a scheduler was killed, another one finds the run that is open, and its job is run once."""
    if moment == "submitted":  # its job ends while nobody looks
        team.until(lambda: team.written() == ["run"])
    assert len([run for run in team.history(name) if run.state in OPEN]) == 1
    (run,) = team.over(name, team.scheduler())
    assert (run.state, run.attempt) == (SUCCEEDED, 1)
    assert team.written() == ["run"]
    assert [step.state for step in team.steps(run)] == ["waiting", "submitting", "running", SUCCEEDED]


@pytest.mark.parametrize("moment", ["noted", "claimed", "submitted", "ended"])
def test_the_scheduler_dies_at_any_moment_and_the_slot_is_run_once(team: Team, moment: str) -> None:
    name = f"once-{moment}"  # Ray, which all tests share, would take a submission id of another test for this one's
    team.add(name, "echo run >> lines")
    killed(team, moment)
    once(team, name, moment)


def test_the_scheduler_is_killed_between_ray_and_its_store_and_the_slot_is_run_once(team: Team) -> None:
    """A process and a signal."""
    team.add("killed", "echo run >> lines")
    process = team.serve(dying_scheduler.__file__, "submitted")
    assert process.wait(PATIENCE) == -signal.SIGKILL, team.log_text()
    once(team, "killed", "submitted")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # "reporting" is in a thread
@pytest.mark.parametrize("moment", ["ended", "recorded", "reporting"])
def test_the_scheduler_dies_around_a_failure_and_the_hook_is_run(team: Team, moment: str) -> None:
    name, told = f"fails-{moment}", team.folder / "told"
    team.add(name, "exit 1", "--attempts", "1", "--on-failure", f"sh -c 'echo $FVAE_SLOT >> {told}'")
    killed(team, moment)
    team.change(update(runs).where(runs.c.hook_at.is_not(None)).values(hook_at=time.time() - 3600))  # an hour later
    scheduler = team.scheduler()
    (run,) = team.over(name, scheduler)
    team.until(lambda: "hook was run" in str(team.printed), scheduler)
    assert told.read_text().splitlines() == [run.slot] * (2 if moment == "reporting" else 1)  # at least once
    assert [step.state for step in team.steps(run)].count(FAILED) == 1


def test_a_job_that_ray_lost_is_tried_again_and_slots_meanwhile_are_coalesced(team: Team) -> None:
    script = "echo begin >> lines; [ -e second ] || { touch second; sleep 3000; }; echo end >> lines"
    (slot,) = team.add("lost", script, "--backoff", "1s")
    scheduler = team.scheduler()
    team.until(lambda: team.written() == ["begin"], scheduler)
    team.reaches("lost", RUNNING, scheduler)
    team.ray.kill()
    _, second, third = team.add("away", "echo away >> lines", due=2, later=1)
    team.reaches("away", WAITING, scheduler)
    with team.store() as store:
        assert store.claim("away", third) is not None
    assert [run.state for run in team.history("away")] == [COALESCED, COALESCED, WAITING]
    for _ in range(5):
        scheduler.turn()
    assert str(team.printed).count("no Ray answers there") == 1  # it is not repeated in each pass
    team.ray.start()
    (run,) = team.over("lost", scheduler)
    assert (slot_time(run.slot), run.state, run.attempt) == (slot, SUCCEEDED, 2)
    reasons = [step.reason for step in team.steps(run) if step.state == BACKING_OFF]
    assert reasons == ["Ray was restarted meanwhile and does not know the job any more"]
    assert [(slot_time(run.slot), run.state) for run in team.over("away", scheduler)] == [(third, SUCCEEDED)]
    assert sorted(team.written()) == ["away", "begin", "begin", "end"]

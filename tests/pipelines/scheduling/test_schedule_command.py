"""The commands of ``python -m pipelines.schedule`` that need no Ray: what they show, and one line for a mistake."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import schedule
from pipelines.cli import command_line
from pipelines.scheduling.runs import RUNNING, SUBMITTING, SUCCEEDED
from pipelines.scheduling.store import Store

pytestmark = pytest.mark.core

Answer = tuple[int, str, str]
Run = Callable[..., Answer]

RETRAINING = ("--", "--model", "fvae-digits", "--dataset", "digits")
NIGHTLY = ("add", "nightly", "--cron", "0 3 * * *", "--zone", "Europe/Berlin", *RETRAINING)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/schedules.db"


@pytest.fixture
def run(uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command: its exit status, and what it printed."""

    def run(*words: str) -> Answer:
        own, after = schedule.split_arguments(["schedule", *words])
        monkeypatch.setattr(sys, "argv", [*own, "--store", uri] if len(own) > 1 else own)
        with pytest.raises(SystemExit) as ended:
            command_line.run(lambda settings: schedule.main(settings, after), schedule.ScheduleSettings)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_a_schedule_from_its_beginning_to_its_end(run: Run, uri: str) -> None:
    status, out, _ = run(*NIGHTLY)
    assert status == 0
    assert re.fullmatch(r"Added nightly: next run \d{4}-\d\d-\d\d 03:00 CES?T\.\n", out)
    _, out, _ = run("list")
    header, line = out.splitlines()
    assert header.split("  ")[0] == "schedule"
    assert line.startswith("nightly   0 3 * * *  Europe/Berlin  20")
    assert " 03:00 CE" in line
    assert line.rstrip().endswith("pipelines.retrain --model fvae-digits --dataset digits")
    assert run("pause", "nightly") == (0, "Paused nightly.\n", "")
    assert "  paused  " in run("list")[1]
    assert run("resume", "nightly") == (0, "Resumed nightly.\n", "")
    assert "paused" not in run("list")[1]
    assert run("history")[1] == "No runs yet.\n"
    status, out, _ = run("run-now", "nightly", "--detach")
    assert (status, out.endswith(": due\n")) == (0, True)
    assert " waiting" in run("list")[1]
    store = Store(uri)
    (waiting,) = store.open_runs()
    submission = waiting.submission(1)
    begun = store.move(waiting, SUBMITTING, attempt=1, submission_id=submission, started_at=time.time() - 1234)
    assert begun is not None
    running = store.move(begun, RUNNING)
    assert running is not None
    assert run("remove", "nightly") == (0, f"Removed nightly; {submission} goes on (ray job stop ends it).\n", "")
    store.move(running, SUCCEEDED)
    store.close()
    assert run("list")[1] == "No schedules.\n"
    header, line = run("history", "nightly")[1].splitlines()
    assert header.split() == ["schedule", "slot", "state", "attempts", "seconds", "reason", "submission", "id"]
    for column in ("slot", "state", "reason", "submission"):
        assert line[header.index(column) - 1] == " "  # the columns stand below one another
    assert line[header.index("state") :].startswith("succeeded")
    seconds = re.search(r"  (\d,\d{3})$", line[: header.index("seconds") + len("seconds")])
    assert seconds is not None
    assert int(seconds[1].replace(",", "")) >= 1234
    assert line.rstrip().endswith(submission)
    steps = run("history", "--steps")[1]
    assert [step in steps for step in ("  waiting", "  submitting", "  running")] == [True] * 3


def test_of_the_history_the_last_are_shown(run: Run, uri: str) -> None:
    run(*NIGHTLY)
    store = Store(uri)
    for number in range(3):
        other = store.entry("nightly").schedule
        store.add(type(other).from_dict(other.to_dict() | {"name": f"n{number}"}))
        store.add_run(f"n{number}")
    store.close()
    assert [line.split()[0] for line in run("history", "--last", "2")[1].splitlines()] == ["schedule", "n1", "n2"]


DIGITS = " -- --model fvae-digits --dataset digits"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("", "Expected one of {add, list, pause, resume, run-now, remove, history, serve}."),
        ("add n --cron '0 3 * *'" + DIGITS, "--cron='0 3 * *': must be five fields (minute, hour, day of the month, "),
        ("add n --cron '61 3 * * *'" + DIGITS, "--cron='61 3 * * *': '61' (minute): 61 is not from 0 to 59"),
        ("add n --cron @daily --zone Mars/Phobos" + DIGITS, "--zone='Mars/Phobos': no such time zone; give one like "),
        ("add a/b --cron @daily" + DIGITS, "NAME='a/b': must be 1 to 63 of a-z, 0-9, "),
        ("add nightly --cron @daily" + DIGITS, "NAME='nightly': there is such a schedule already; choose another name"),
        ("add n --cron @daily", "nothing to run: give the retraining's options after '--', as in: -- --model fvae-"),
        ("add n --cron @daily -- --model digits --dataset digits", "--model='digits': must be fvae-NAME"),
        ("add n --cron @daily" + DIGITS + " --bugdet 3", "Unrecognized options: --bugdet, 3"),
        ("add n --cron @daily --attempts 0" + DIGITS, "--attempts=0: must be an integer of at least 1"),
        ("add n --cron @daily --limit soon" + DIGITS, "--limit='soon': give a time such as 2h, 90m, 1h30m or 45s"),
        ("add n --cron @daily --on-failure no-such" + DIGITS, "--on-failure='no-such': no program 'no-such' here"),
        ('add n --cron @daily --entrypoint "sh -c \'x"', '--entrypoint="sh -c \'x": no command (No closing quotation)'),
        ("pause weekly", "NAME='weekly': no such schedule; there is nightly"),
        ("history weekly", "NAME='weekly': no such schedule; there is nightly"),
        ("history --last 0", "--last=0: must be an integer of at least 1"),
        ("run-now weekly --detach", "NAME='weekly': no such schedule; there is nightly"),
        ("list" + DIGITS, "--: what follows goes to a schedule's job, so it belongs to add"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run: Run, command: str, line: str) -> None:
    assert run(*NIGHTLY)[0] == 0
    status, out, err = run(*shlex.split(command))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert line in err
    assert len(err.splitlines()) == 1
    assert run("list")[1].count("nightly") == 1  # and nothing was added


def test_help_has_defaults_and_needs_no_ray() -> None:
    """A second to import Ray is too much for a list of schedules."""
    program = "import sys, pipelines.schedule; assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    command = [sys.executable, "-m", "pipelines.schedule", "add", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--cron", "--zone", "--attempts", "--limit", "--on-failure", "UTC)", "1m)"):
        assert option in shown

"""What every command shares: one line and status 2 for a user's mistake."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fvae
from fvae.config import require
from pipelines.cli import command_line
from pipelines.cli.stop_signals import treat_as_ctrl_c
from pipelines.storage import StorageError

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A command."""

    count: int = 3
    """How many."""

    def __post_init__(self) -> None:
        require(self.count > 0, f"--count={self.count}: must be above 0")


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--count", "0"], "error: --count=0: must be above 0"),
        (["--count", "x"], "error: Error parsing --count: invalid literal for int() with base 10: 'x'"),
        (["--cuont", "1"], "error: Unrecognized options: --cuont, 1"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, boxes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(lambda settings: 0, Settings)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize("arguments", [["--version"], ["--count", "0", "--version"]])
def test_the_version_is_that_of_the_library(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(lambda settings: 1, Settings)
    assert exit_.value.code == 0
    assert capsys.readouterr() == (f"fvae {fvae.__version__}\n", "")


def test_help_describes_the_command_and_names_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(lambda settings: 1, Settings)
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "A command.\n\nThe option --version shows" in shown and "How many." in shown


@pytest.mark.parametrize("command", [["tune/search.py"], ["-m", "pipelines.services"]])
def test_a_command_shows_its_version_as_a_user_starts_it(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"fvae {fvae.__version__}\n"), done.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_the_command_s(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(lambda settings: status, Settings)
    assert exit_.value.code == status


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(settings: Settings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(interrupted, Settings)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_store_that_fails_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unlucky(settings: Settings) -> int:
        print("begun")
        raise StorageError("s3://a/b: cannot write: 503 SlowDown (9 attempts in 150 s)")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(unlucky, Settings)
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("begun\n", "error: s3://a/b: cannot write: 503 SlowDown (9 attempts in 150 s)\n")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["-O", "script.py", "-O"], ["script.py", "-O"]),
        (["-OO", "-m", "tune.search", "--help"], ["-m", "tune.search", "--help"]),
        (["-uOO", "-X", "dev", "-Wd", "script.py"], ["-u", "-X", "dev", "-Wd", "script.py"]),
        (["-W", "error", "-O", "-c", "O"], ["-W", "error", "-c", "O"]),
        (["-m", "O", "-OO"], ["-m", "O", "-OO"]),
    ],
)
def test_the_interpreter_s_own_options_lose_their_o(given: list[str], kept: list[str]) -> None:
    assert command_line._unoptimized(given) == kept


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-OO", "-u"]])
def test_without_docstrings_the_help_is_the_same(options: list[str]) -> None:
    def shown(*options: str, **variables: str) -> str:
        command = [sys.executable, *options, "tune/search.py", "--help"]
        environment = {**os.environ, **variables}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    plain = shown()
    assert "Search VAE, flow and f-VAE" in plain
    assert shown(*options) == shown(PYTHONOPTIMIZE="2") == plain


SIGNALLED = """
import dataclasses, os, signal, sys, threading
from pipelines.cli import command_line

@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    number: int

def main(settings):
    os.kill(os.getpid(), settings.number)
    threading.Event().wait()

command_line.run(main, Settings)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_command_is_ctrl_c(number: int) -> None:
    command = [sys.executable, "-c", SIGNALLED, "--number", str(int(number))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Interrupted.\n")


CLOSING = """
import dataclasses, os, signal
from pipelines.cli import command_line

@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    then: int

def main(settings):
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        signal.pause()
    finally:
        for number in (settings.then, signal.SIGHUP):
            os.kill(os.getpid(), number)
        print("closed")

command_line.run(main, Settings)
"""


@pytest.mark.parametrize("then", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_cut_the_closing_short(then: int) -> None:
    command = [sys.executable, "-c", CLOSING, "--then", str(int(then))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "closed\n", "Interrupted.\n")


def test_below_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        treat_as_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

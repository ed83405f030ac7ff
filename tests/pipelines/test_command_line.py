"""What every command shares: one line and status 2 for a user's mistake."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from fvae.config import require
from pipelines import command_line
from pipelines.storage import StorageError

pytestmark = pytest.mark.core


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

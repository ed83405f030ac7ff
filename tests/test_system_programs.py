"""The check before the system tier: all that is missing is reported, with what installs it, before any test begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import system_programs
from tests.system_programs import PROGRAMS, main, missing

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are searched; all are in it, and none of them does anything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in PROGRAMS:
        write(folder / program, "exit 0")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(system_programs, "SBIN", ())
    monkeypatch.setattr(system_programs, "POSTGRESQL", tmp_path / "postgresql")
    return folder


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def user(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)


def test_where_everything_is_here_nothing_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user(monkeypatch, 0)
    assert missing() == {}
    assert main([]) == 0
    assert main(["--packages"]) == 0
    assert capsys.readouterr() == ("\n", "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_missing_has_a_line_with_its_package(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user(monkeypatch, 0)
    (folder / program).unlink()
    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: these tests need {program}, of Debian's package {PROGRAMS[program]}",
        f"error: install them with: apt-get install {PROGRAMS[program]}",
    ]


def test_programs_are_also_searched_where_an_ordinary_users_path_does_not_lead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbin, postgresql = tmp_path / "sbin", tmp_path / "postgresql" / "17" / "bin"
    for target, names in ((sbin, ("sshd", "mkfs.ext4")), (postgresql, ("initdb", "pg_ctl"))):
        target.mkdir(parents=True)
        for name in names:
            (folder / name).rename(target / name)
    assert set(missing()) == {"sshd", "mkfs.ext4"}
    monkeypatch.setattr(system_programs, "SBIN", (str(sbin),))
    assert missing() == {}


def test_another_browser_of_the_same_make_will_do(folder: Path) -> None:
    (folder / "chromium").rename(folder / "google-chrome")
    assert missing() == {}


@pytest.mark.parametrize(("program", "what"), [("unshare", "namespaces with a network"), ("losetup", "a loop device")])
def test_what_the_machine_refuses_is_a_line(
    program: str, what: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user(monkeypatch, 0)
    write(folder / program, f"echo {program}: Operation not permitted >&2; exit 1")
    assert main([]) == 2
    assert capsys.readouterr().err == f"error: these tests need {what}: {program}: Operation not permitted\n"


def test_another_user_than_root_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user(monkeypatch, 1000)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: these tests need root, ")
    assert line.endswith("this is user 1000")


def test_it_runs_before_anything_is_installed(tmp_path: Path) -> None:
    """As a script, without this environment's packages and without a program in its PATH."""
    command = [sys.executable, "-I", "-S", str(ROOT / "tests" / "system_programs.py")]
    shown = subprocess.run([*command, "--packages"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    found = shown.stdout.split()
    assert set(found) <= set(PROGRAMS.values())
    assert "rsync" in found  # which is in no sbin
    refused = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == f"error: install them with: apt-get install {' '.join(found)}"

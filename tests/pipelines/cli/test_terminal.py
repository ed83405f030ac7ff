"""Whatever becomes of the terminal, the pipe or the file that a command prints to, the command goes on to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]
SCRIPT = """
import dataclasses, sys
from pathlib import Path
from pipelines.cli import command_line
from pipelines.cli.terminal import make_console
from pipelines.cli.progress import Steps

@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    to: str = ""

def main(settings):
    console = make_console()
    with Steps(console).step("Reading", 20000, "images of 8×8, σ") as advance:
        for number in range(2000):
            advance(10)
            console.print(f"line {number}: 8×8×1 images …", markup=False)
    print("a warning: σ", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.reconfigure(line_buffering=True)
    Path(settings.to).write_text("whole")
    return 7

command_line.run(main, Settings)
"""


def run(tmp_path: Path, shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``shell`` with the command in place of COMMAND; asserts that it came to its end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"{sys.executable} {tmp_path}/script.py --to {tmp_path}/done"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(["bash", "-c", shell.replace("COMMAND", command)], env=variables, capture_output=True)
    assert (tmp_path / "done").exists(), done.stderr.decode()
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.parametrize(
    "shell",
    [
        "COMMAND",
        "COMMAND > /dev/full",
        "COMMAND > /dev/full 2> /dev/full",
        "COMMAND >&-",
        "COMMAND >&- 2>&-",
        "COMMAND | head -1; exit ${PIPESTATUS[0]}",
        "COMMAND 2>&1 | true; exit ${PIPESTATUS[0]}",
        "script -qec 'stty cols 1 rows 1; COMMAND' /dev/null",
        "script -qec 'stty cols 0 rows 0; COMMAND' /dev/null",
    ],
)
def test_a_command_comes_to_its_end_with_its_own_status(shell: str, tmp_path: Path) -> None:
    assert run(tmp_path, shell).returncode == 7


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_what_an_encoding_lacks_is_replaced(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, "COMMAND", **environment)
    assert done.returncode == 7
    assert len(done.stdout.splitlines()) == 2001
    assert b"line 1999: 8" in done.stdout


NON_BLOCKING = """
import fcntl, os, select, subprocess, sys, time
ours, theirs = os.pipe()
fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
os.set_blocking(theirs, False)
process = subprocess.Popen(sys.argv[1:], stdout=theirs)
while select.select([], [theirs], [], 0)[1]:  # until it is full
    time.sleep(0.001)
os.close(theirs)
with open(ours, "rb") as pipe:
    sys.stdout.buffer.write(pipe.read())
sys.exit(process.wait())
"""


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_pipe_that_is_full_for_now_gets_every_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(NON_BLOCKING)
    done = run(tmp_path, f"{sys.executable} {tmp_path}/reader.py COMMAND", **environment)
    assert done.returncode == 7
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("line")]
    assert lines == [f"line {number}: 8×8×1 images …" for number in range(2000)]


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    for term, plain in (("dumb", True), ("xterm", False)):
        done = run(tmp_path, f"script -qec 'env TERM={term} COMMAND' /dev/null")
        assert done.returncode == 7
        assert (b"\x1b[" not in done.stdout) == plain
        assert b"Reading: 20,000 images" in done.stdout

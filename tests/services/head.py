"""A head machine of the tests: a data folder, a home, a free port, and the services that run from them."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

from pipelines.services.__main__ import main
from pipelines.services.settings import Command
from tests.commands import call

ROOT = Path(__file__).parents[2]
PATIENCE = 540.0
"""Seconds until something must have happened; far more than it takes, also on a busy machine."""
_INHERITED = ("AWS_", "PATH", "LANG", "PYTHONPATH")


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(done: Callable[[], object], what: str) -> None:
    """Wait until ``done``; the test fails where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def lives(pid: int) -> bool:
    """Whether there is a process ``pid`` that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Head:
    """A user's home with a data folder in it. Nothing of it is shared with another."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.data = self.home / "fvae-data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {name: text for name, text in os.environ.items() if name.startswith(_INHERITED)}
        self.environment |= {"HOME": str(self.home), **(environment or {})}

    # --- the command -----------------------------------------------------------------------------------

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``python -m pipelines.services WORDS`` for this data folder, in this process, which is a second faster."""
        umask = os.umask(0o022)  # the command changes it
        try:
            with mock.patch.dict(os.environ, self.environment, clear=True):
                done = call(main, Command, *self._options(words))
        finally:
            os.umask(umask)
        return subprocess.CompletedProcess(words, done.status, done.out, done.err)

    def process(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, from a folder that is not the repository."""
        return subprocess.run(
            [sys.executable, "-m", "pipelines.services", *self._options(words)],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def _options(self, words: tuple[str, ...]) -> tuple[str, ...]:
        patience = ("--patience", str(PATIENCE)) if words[0] == "up" and "--patience" not in words else ()
        return (words[0], "--data", str(self.data), *patience, *words[1:])

    def up(self, *options: str) -> str:
        """``up``, which must succeed; returns its output."""
        result = self.run("up", *options)
        assert result.returncode == 0, result.stdout + result.stderr + self.logs()
        return result.stdout

    def first_up(self, *options: str) -> str:
        """``up`` on this head's own port; MLflow alone unless ``options`` say otherwise."""
        programs = () if "--programs" in options else ("--programs", "mlflow")
        return self.up("--port", str(self.port), *programs, *options)

    def status(self) -> tuple[int, dict[str, tuple[str, int]]]:
        """Exit status, and of each program the state and the process id (0: none)."""
        result = self.run("status")
        rows = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()[1:]]
        return result.returncode, {row[0]: (row[1], 0 if row[2] == "-" else int(row[2])) for row in rows}

    def pids(self) -> dict[str, int]:
        """Of each program the process id."""
        return {program: pid for program, (_, pid) in self.status()[1].items()}

    def well(self) -> bool:
        """Whether everything runs."""
        return self.status()[0] == 0

    # --- what it made -----------------------------------------------------------------------------------

    def password(self) -> str:
        """Of MLflow's user admin."""
        return (self.data / "secrets" / "mlflow-admin-password").read_text()

    def logs(self) -> str:
        """All logs."""
        return "\n".join(path.read_text() for path in sorted(self.data.glob("logs/*")))

    def processes(self) -> list[int]:
        """Every process of this head's services, whoever its parent is."""
        mine = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                told = path.joinpath("cmdline").read_bytes() + path.joinpath("environ").read_bytes()
                if str(self.data / "supervisor").encode() in told and lives(int(path.name)):
                    mine.append(int(path.name))
        return mine

    def children(self, pid: int) -> list[int]:
        """The processes that ``pid`` started."""
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    # --- MLflow ----------------------------------------------------------------------------------------

    def request(
        self,
        path: str,
        user: tuple[str, str] | None = None,
        body: bytes | None = None,
        method: str | None = None,
        **headers: str,
    ) -> tuple[int, str]:
        """Status and text of MLflow's answer."""
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if user is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(user).encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def request_fails(self) -> bool:
        """Whether nothing listens."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    @property
    def admin(self) -> tuple[str, str]:
        """MLflow's user admin, and its password."""
        return "admin", self.password()

    def client(self, **changes: str) -> dict[str, str]:
        """The environment of a program here that finds MLflow by its address, and by MLflow's file of credentials."""
        return self.environment | {"MLFLOW_TRACKING_URI": self.url} | changes

    def close(self) -> None:
        """End everything, and see that nothing is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("down")
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert left == [], f"`down` left processes {left}"

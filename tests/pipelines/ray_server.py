"""A real Ray with its job server, in processes of its own, for the tests and benchmarks of what submits jobs."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = """
import pipelines.training.ray_environment, ray, sys, time
from ray._private.parameter import RayParams
from ray.job_submission import JobSubmissionClient

# ray.init has no option for the port of the agent that starts jobs, and the default one is taken by any other Ray here.
init = RayParams.__init__
RayParams.__init__ = lambda self, **options: init(self, **(options | {"dashboard_agent_listen_port": 0}))
ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
         _temp_dir=sys.argv[2], num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False)
client = JobSubmissionClient(f"http://127.0.0.1:{sys.argv[1]}")
for _ in range(600):
    try:
        job = client.submit_job(entrypoint="true")
        break
    except RuntimeError as error:  # the agent is not there yet
        print(error, file=sys.stderr)
        time.sleep(0.2)
while not client.get_job_status(job).is_terminal():
    time.sleep(0.1)
print("ready", flush=True)
sys.stdin.read()
ray.shutdown()
"""


class RayServer:
    """A Ray on this machine whose jobs are taken at ``address``; it may end and be started again there, as a new one.

    It asks for a token: this process's own, if it has one. Processes that are started with ``environment`` have it.
    Its folder is a short one of its own: the path of a Unix socket has 107 characters at most.
    """

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        token = Path(self._folder.name) / "auth_token"
        token.touch(mode=0o600)
        token.write_text(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
        without = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
        self.environment = {key: value for key, value in os.environ.items() if key not in without}
        patience = {"RAY_raylet_start_wait_time_s": "180", "RAY_agent_register_timeout_ms": "180000"}
        patience |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180"}
        self.environment |= patience  # a busy machine takes its time
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Wait until it has run a job. On a machine that is too busy Ray may give up; then it is started once more."""
        for last in (False, False, True):
            command = [sys.executable, "-c", HEAD, str(self._port), self._folder.name]
            with (Path(self._folder.name) / "head.log").open("ab") as log:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True, start_new_session=True,
                )  # fmt: skip
            assert self._process.stdout is not None
            if self._process.stdout.readline() == "ready\n":
                return
            assert not last, (Path(self._folder.name) / "head.log").read_text()
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the head and all that it has started, jobs too: a machine that is switched off."""
        if self._process is None:
            return
        processes = [self._process.pid, *_descendants(self._process.pid)]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        wait_for(
            lambda: not any(_alive(process) for process in processes), message=lambda: "Ray's processes do not end"
        )
        self._process = None

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        self._folder.cleanup()


def _descendants(process: int) -> list[int]:
    """All that a process has started, and what those have."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _alive(process: int) -> bool:
    """Whether it is there and no zombie, which only its parent could remove."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(
    what: Callable[[], object], seconds: float = 540.0, message: Callable[[], str] = lambda: "it never was"
) -> None:
    """Poll ``what()`` until it is true. Fails with ``message()`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process that leads a group, and to all in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

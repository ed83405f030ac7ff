"""This user's running processes, from Linux's ``/proc``."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pipelines.storage.lease_holder import boot_id, process_start


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningProcess:
    """A process, distinguished from a later one with the same id by its start."""

    pid: int
    started: int
    """Clock ticks from boot to the start of the process."""
    boot: str
    """The random id of the machine's boot."""

    @classmethod
    def of(cls, pid: int) -> RunningProcess | None:
        """The process that has this id now; None where there is none, or it is a zombie."""
        started = process_start(pid)
        return None if started is None else cls(pid=pid, started=started, boot=boot_id())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunningProcess:
        """The inverse of ``dataclasses.asdict``."""
        return cls(pid=values["pid"], started=values["started"], boot=values["boot"])

    def lives(self) -> bool:
        """Whether it still runs."""
        return RunningProcess.of(self.pid) == self

    def command(self) -> list[str]:
        """Its command line. Raises ``OSError`` once it has ended."""
        return [part.decode() for part in Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[:-1]]

    def environment(self) -> dict[str, str]:
        """The environment that it was started with. Raises ``OSError`` once it has ended."""
        entries = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in entries if entry)
        return {name: value for name, _, value in pairs}

    def end(self, seconds: float) -> None:
        """Send it SIGTERM, and SIGKILL after ``seconds``, until it has ended."""
        deadline = time.monotonic() + seconds
        while self.lives():
            try:
                os.kill(self.pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def find_process(ending: str) -> RunningProcess | None:
    """This user's process with one of its first arguments ending in ``ending``; None where there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        process = RunningProcess.of(int(folder.name))
        try:
            if (
                process
                and folder.stat().st_uid == os.getuid()
                and any(part.endswith(ending) for part in process.command()[:6])
            ):
                return process
        except OSError:
            continue  # it has ended meanwhile
    return None


def start_detached(command: list[str], environment: dict[str, str]) -> RunningProcess:
    """Start a process that outlives this one and its terminal. Raises ``OSError`` where it does not start."""
    started = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process = RunningProcess.of(started.pid)
    if process is None:
        raise OSError(f"{command[0]}: has ended at once")
    return process

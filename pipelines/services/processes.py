"""The processes of a data folder's services: ending leftovers, and which one listens on a port.

Each process has in its environment which supervisord started it, and as which program. Linux only.

MLflow's server is a process that starts another, which listens: when the first is killed, the second keeps the port,
and no new server can start. And when supervisord itself is killed, its programs run on without supervision.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from pipelines.services.paths import Places

_LISTENING = "0A"
"""A socket's state, in the kernel's tables."""
_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def end_leftovers(places: Places, programs: tuple[str, ...]) -> list[int]:
    """End what is left of ``programs`` outside this process's group, and return the process ids.

    To be called while no supervisord runs, or by a program that supervisord has just started.
    """
    ended = []
    with contextlib.ExitStack() as stack:
        found = []
        for pid in _all_processes():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if os.getpgid(pid) == os.getpgrp():
                    continue
                handle = os.pidfd_open(pid)
                stack.callback(os.close, handle)
                # Read after the handle was opened: the id cannot have gone to another process meanwhile.
                if _program_of(pid, places) in programs:
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
                    found.append((pid, handle))
        for pid, handle in found:
            if not select.select([handle], [], [], _GRACE)[0]:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], _GRACE)
            ended.append(pid)
    return ended


def listens(program: str, port: int, places: Places) -> bool:
    """Whether a process of this program listens on the TCP port."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    for pid in _all_processes() if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if _program_of(pid, places) == program:
                held = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
                if sockets & held:
                    return True
    return False


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _program_of(pid: int, places: Places) -> str | None:
    """The program that this data folder's supervisord started as ``pid``. Raises ``OSError`` once it has ended."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    variables = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    if variables.get(b"SUPERVISOR_SERVER_URL") != f"unix://{places.socket}".encode():
        return None
    return variables.get(b"SUPERVISOR_PROCESS_NAME", b"").decode()


def _listeners(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on it."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # no IPv6 here
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]

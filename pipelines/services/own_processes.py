"""Which processes are those of a data folder's services: each has in its environment who started it, as what. Linux."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipelines.services.paths import Places

_LISTENING = "0A"
"""A socket's state, in the kernel's tables."""


def processes() -> list[int]:
    """The ids of all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def program_of(pid: int, places: Places) -> str | None:
    """As which program of this data folder's supervisord a process was started. Raises ``OSError`` where it is gone."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    variables = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    if variables.get(b"SUPERVISOR_SERVER_URL") != f"unix://{places.socket}".encode():
        return None
    return variables.get(b"SUPERVISOR_PROCESS_NAME", b"").decode()


def listens(program: str, port: int, places: Places) -> bool:
    """Whether a process of this program listens on the TCP port."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    for pid in processes() if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if program_of(pid, places) == program:
                held = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
                if sockets & held:
                    return True
    return False


def _listeners(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on it."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # no IPv6 here
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]

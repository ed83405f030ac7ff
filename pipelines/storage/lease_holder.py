"""The process that holds a lease, as it is named to users and recognised as ended on the same machine."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a lease, as it is written into the lease. Unknown parts are empty or 0."""

    host: str = ""
    pid: int = 0
    since: str = ""
    """ISO 8601, UTC, by the holder's clock: for people only."""
    machine: str = ""
    """The running system that ``pid`` counts in: this boot of this machine, this container."""
    started: str = ""
    """When the process started, so that another one with the same ``pid`` later is not taken for it."""
    token: str = ""
    """Unique for each lease that is taken."""
    renewals: int = 0

    @classmethod
    def this_process(cls, token: str = "") -> Holder:
        """The calling process, as the holder from now on."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            host=socket.gethostname(), pid=pid, since=since, machine=_machine(), started=_started(pid), token=token
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Holder:
        """The holder that ``content`` names; a value that is missing or of another type is the default."""
        try:
            values = json.loads(content)
        except ValueError:
            return cls()
        if not isinstance(values, dict):
            return cls()
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        known: dict[str, Any] = {name: value for name, value in values.items() if kinds.get(name) is type(value)}
        return cls(**known)

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; ``False`` where that cannot be seen from here."""
        return self.pid > 0 and self.machine == _machine() != "" and _started(self.pid) != self.started

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since else ""
        return f"process {self.pid} on {self.host}{since}" if self.pid else "an unknown process"


def boot_id() -> str:
    """The id of this boot of the machine. Raises ``OSError`` on systems other than Linux."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None where there is none, or it is a zombie. Linux only."""
    try:
        # The second field, the name in brackets, may hold blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _machine() -> str:
    """``""`` on systems other than Linux."""
    try:
        return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    start = process_start(pid)
    return "" if start is None else str(start)

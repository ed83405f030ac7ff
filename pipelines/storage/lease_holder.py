"""Who holds a lease: enough to name the process to a user, and to see from the same machine that it is gone."""

from __future__ import annotations

import contextlib
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
    """Another one for each lease ever taken."""
    renewals: int = 0

    @classmethod
    def this_process(cls, token: str = "") -> Holder:
        """The process that asks, from now on."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            host=socket.gethostname(), pid=pid, since=since, machine=_machine(), started=_started(pid), token=token
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Holder:
        """What ``content`` says, as far as it says it; it may be empty, cut short or somebody else's."""
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


def _machine() -> str:
    """``""`` where the system does not say (other than Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Clock ticks from boot to the start of a process; ``""`` where there is none, or it has ended unburied."""
    with contextlib.suppress(OSError):
        # The second field, the name in brackets, may hold blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""

"""A machine that can be started, lose its power and be started again: namespaces of its own for processes and /run.

Files below /tmp and the network are those of the machine that the tests run on, so its services can be asked from
outside. Needs root, as its cron does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.services.head import PATIENCE, until

_SET_UP = """
set -e
mount -t tmpfs none /run
mount --bind {disk}/spool /var/spool/cron
mount --bind {disk}/units /etc/systemd/system
{then}
touch {disk}/started
exec sleep infinity
"""


class Machine:
    """Its crontabs and systemd's units survive on ``disk``; its processes and /run do not."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        (disk / "units").mkdir(parents=True)
        (disk / "spool").mkdir()
        subprocess.run(["cp", "-a", "/var/spool/cron/.", disk / "spool"], check=True)
        for crontab in (disk / "spool" / "crontabs").iterdir():
            crontab.unlink()
        self._processes: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def on(self, then: str = ":") -> Iterator[None]:
        """The machine has started, and done ``then``, as its boot would; with the block its power is gone."""
        (self.disk / "started").unlink(missing_ok=True)
        script = _SET_UP.format(disk=self.disk, then=then)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        self._processes = subprocess.Popen(command)
        try:
            until((self.disk / "started").exists, "the machine has started")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first(), signal.SIGKILL)  # the kernel then kills all others in its namespace
            self._processes.wait()

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """A command on the machine."""
        inside = ["nsenter", "--target", str(self._first()), "--mount", "--pid", *command]
        return subprocess.run(  # type: ignore[call-overload]
            inside, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
        )

    def _first(self) -> int:
        """Outside, the id of the process that is the machine's first."""
        assert self._processes is not None
        pid = self._processes.pid
        (first,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(first)

"""Processes of a service that outlived what supervised them.

MLflow's server is a process that starts another, which listens: when the first is killed, the second keeps the port
and no new server can start. And when supervisord itself is killed, all its programs go on with nobody to watch them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from pipelines.services.own_processes import processes, program_of
from pipelines.services.paths import Places

_GRACE = 5.0
"""Seconds that a leftover has to end by itself."""


def end_leftovers(places: Places, programs: tuple[str, ...]) -> list[int]:
    """End what is left of ``programs`` outside this process's group, and return the ids. Linux only.

    For whoever knows that no supervisord runs, and for a program that supervisord has just started.
    """
    ended = []
    with contextlib.ExitStack() as stack:
        found = []
        for pid in processes():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if os.getpgid(pid) == os.getpgrp():
                    continue
                handle = os.pidfd_open(pid)
                stack.callback(os.close, handle)
                # Read after the handle was opened: the id cannot have gone to another process meanwhile.
                if program_of(pid, places) in programs:
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
                    found.append((pid, handle))
        for pid, handle in found:
            if not select.select([handle], [], [], _GRACE)[0]:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], _GRACE)
            ended.append(pid)
    return ended

"""SIGTERM and SIGHUP, from a batch system, a service manager or a closed terminal, do what Ctrl-C does.

SIGKILL may follow SIGTERM a few seconds later: after three with ``ray job stop``.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_hurried = False


def in_a_hurry() -> bool:
    """Whether a signal that SIGKILL may follow has interrupted the command: it only saves what must be kept."""
    return _hurried


def treat_as_ctrl_c() -> None:
    """From now on the first SIGTERM or SIGHUP raises ``KeyboardInterrupt`` in the main thread; later ones do nothing.

    A signal that the process was started to ignore, as SIGHUP is below ``nohup``, stays ignored. To be called again
    after ``ray.init``, which takes SIGTERM for itself. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``. SIGINT's own handler is not used: Tune's first waits for the trials."""
    global _hurried
    if _hurried:  # systemd and closed terminals send both; another interrupt would cut short what must be kept
        return
    _hurried = True
    raise KeyboardInterrupt

"""Waiting for events, with deadlines that a busy machine meets too."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

DEADLINE = 300.0
"""Seconds for whatever is waited for."""


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until ``true()``; ``what`` it is, for the error where it is not within ``DEADLINE``."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {DEADLINE:.0f} s: {what}")
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True

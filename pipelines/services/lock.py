"""One ``up`` or ``down`` of a data folder at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from pipelines.services.paths import Places


@contextlib.contextmanager
def one_at_a_time(places: Places) -> Iterator[None]:
    """Wait until no other process is in this block for these places. A process that dies leaves it."""
    with places.lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another `up` or `down` of {places.data}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Wait for a lease that another process holds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from pipelines.cli.quantities import duration
from pipelines.storage import Storage, StorageError
from pipelines.storage.lease import Lease, LeaseTaken, exclusive

LOOK_SECONDS, LOOK_SECONDS_REMOTE = 0.5, 5.0
"""How often it is tried again: on a folder, and on a store, where it costs requests."""


@contextlib.contextmanager
def waited_for(storage: Storage, what: str, seconds: float, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold ``storage`` alone, as :func:`pipelines.storage.lease.exclusive` does, once its holder has ended.

    Args:
        storage: the place.
        what: what holds it ("another retraining of fvae-digits"), for the line that ``say`` gets.
        seconds: the longest wait. ``StorageError`` then: the same command may be started again.
        say: gets one line where there is something to wait for.
    """
    began, reported = time.monotonic(), False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                lease = stack.enter_context(exclusive(storage))
            except LeaseTaken as taken:
                holder = str(taken).removesuffix("; wait until it has ended")
                if time.monotonic() - began >= seconds:
                    raise StorageError(f"{what} still runs after {duration(seconds)} of waiting ({holder})") from taken
                if not reported:
                    say(f"Waiting for {what}: {holder}")
                    reported = True
            else:
                if reported:
                    say(f"It has ended, after {duration(time.monotonic() - began)} of waiting")
                yield lease
                return
        time.sleep(LOOK_SECONDS if storage.local_path is not None else LOOK_SECONDS_REMOTE)

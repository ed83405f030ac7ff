"""Calls in a few threads at once, of which the first failure cancels the others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8

_cancelled = threading.local()


class CancelledError(Exception):
    """A wait that was cancelled, because its result is no longer needed."""


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]`` in a few threads; the first failure ends the rest and is raised."""
    stop = threading.Event()

    def work(item: T) -> R:
        with cancelled_by(stop):
            return function(item)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="storage") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future.exception() for future in futures if future in done and future.exception()), None)
            if failed is not None:
                raise failed
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


@contextlib.contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """In this thread, once ``event`` is set, a failed request is not tried again, and no wait for it goes on."""
    before = cancellation()
    _cancelled.event = event
    try:
        yield
    finally:
        _cancelled.event = before


def cancellation() -> threading.Event | None:
    """The event of the innermost :func:`cancelled_by` of this thread; None outside."""
    event: threading.Event | None = getattr(_cancelled, "event", None)
    return event

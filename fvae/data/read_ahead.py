"""Read-ahead: the next result is always prepared in background threads while one is in use."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS = 2
"""Threads: one fetches while the other decodes."""
EXIT_SECONDS = 1.0
"""How long the end of the process waits for threads to come to the end of their jobs."""

Job = Callable[[], object]


class ReadAhead(Generic[Item, Result]):
    """Iterates over the results of ``items``, with one more result under way while one is in use.

    ``prepare(item)`` gives a result to be filled and the jobs that fill it, which run in :data:`READERS` daemon
    threads. What a job raises is raised again where its result is taken. It is a context manager: leaving it ends the
    threads when their present jobs end, and does not wait for them.
    """

    def __init__(self, prepare: Callable[[Item], tuple[Result, Iterable[Job]]], items: Iterable[Item]) -> None:
        self._prepare, self._items = prepare, iter(items)
        self._loading: _Loading[Result] | None = None

    def __enter__(self) -> Iterator[Result]:
        self._begin_next()
        return self

    def __exit__(self, *_: object) -> None:
        if self._loading is not None:
            self._loading.stop()

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._loading is None:
            raise StopIteration
        result = self._loading.result()
        self._begin_next()
        return result

    def _begin_next(self) -> None:
        self._loading = None
        for item in self._items:
            self._loading = _Loading(*self._prepare(item))
            return


class _Loading(Generic[Result]):
    def __init__(self, result: Result, jobs: Iterable[Job]) -> None:
        self._result, self._jobs = result, deque(jobs)
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self.threads = [
            threading.Thread(target=self._work, name="fvae-read-ahead", daemon=True)
            for _ in range(min(READERS, len(self._jobs)))
        ]
        _under_way.add(self)
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                job = self._jobs.popleft()
            except IndexError:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (raised by result)
                self._error = self._error or error
                self._stopped.set()

    def result(self) -> Result:
        for thread in self.threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def stop(self) -> None:
        self._stopped.set()


_under_way: weakref.WeakSet[_Loading] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A daemon thread that is inside torch when the interpreter goes away would abort the process."""
    deadline = time.monotonic() + EXIT_SECONDS
    loadings = list(_under_way)
    for loading in loadings:
        loading.stop()
    for thread in (thread for loading in loadings for thread in loading.threads):
        thread.join(max(0.0, deadline - time.monotonic()))

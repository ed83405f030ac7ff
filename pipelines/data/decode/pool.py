"""Decoding every image of a source in order: encoded files in several processes, arrays in this one.

A decoding process runs ``pipelines.data.decode.worker.serve``. The pools of the standard library would run the
program's main module again in each (spawn: torch, ray … in every process), or copy a process that has threads (fork);
and their processes outlive a parent that is killed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from fvae.config import ConfigError
from pipelines.data.decode.conversion import Conversion, convert
from pipelines.data.decode.value_levels import Seen
from pipelines.data.decode.worker import NO_MEMORY, Part, channels_first, decode_task
from pipelines.data.sources import BadFile, ImageFile, Item, Pixels, Source

TASK_FILES, TASK_BYTES = 256, 4 << 20
"""A process is given at most so much at a time: enough to forget the cost of handing it over."""
ALONE_FILES, ALONE_BYTES = 1000, 8 << 20
"""Inputs up to this are decoded before other processes would have started. Not TIFFs: libtiff writes to stderr."""
AHEAD = 2
"""Tasks that wait or run in one process, so that it never waits for the next."""


@dataclass(slots=True)
class DecodedBatch:
    """Some of the files, in their order; N of them are images."""

    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]
    images: np.ndarray | list[np.ndarray]
    """uint8 ``[N, C, H, W]`` where all are of one shape, else N of ``[C, H, W]``."""
    digests: np.ndarray
    """uint8 ``[N, 32]``: SHA-256 of each image's pixels, channels first."""
    notes: Counter[str]
    """How many images each note of ``pipelines.data.decode.image.describe`` is true of."""
    bad: list[tuple[str, str]]
    """Path and cause of each file that is no usable image."""
    seen: Seen
    """The values of the images."""


def decode_source(source: Source, conversion: Conversion, processes: int | None = None) -> Iterator[DecodedBatch]:
    """Decode and convert every image of a source, in its order, whether it holds encoded files or arrays.

    Raises what the source raises, and ``ConfigError`` where a decoding process dies.
    """
    for is_pixels, items in itertools.groupby(source.items(), lambda item: isinstance(item, Pixels)):
        if is_pixels:
            for item in items:
                assert isinstance(item, Pixels)
                labels = item.labels or (None,) * len(item.images)
                names = _Names((f"{item.path}[{row}]", item.split, label) for row, label in enumerate(labels))
                yield from map(names.batch, decode_task(item.images, conversion, convert))
        else:
            yield from _decode_files(items, conversion, processes)


def _decode_files(items: Iterable[Item], conversion: Conversion, processes: int | None) -> Iterator[DecodedBatch]:
    bad: list[tuple[str, str]] = []  # what could not even be handed over

    def files() -> Iterator[ImageFile]:
        for item in items:
            if isinstance(item, BadFile):
                bad.append((item.path, item.cause))
            elif isinstance(item, ImageFile):
                yield item

    yield from decode_many(files(), conversion, processes)
    if bad:
        yield DecodedBatch([], [], [], *channels_first([]), Counter(), bad, Seen())


def decode_many(
    files: Iterable[ImageFile], conversion: Conversion, processes: int | None = None
) -> Iterator[DecodedBatch]:
    """Decode files in ``processes`` processes (default: one per core), reading not far ahead of what is taken.

    Raises ``ConfigError`` where the system ends a decoding process, as it does for want of memory.
    """
    processes = processes or usable_cores()
    tasks = _tasks(files)
    first, alone = _first_tasks(tasks)
    if alone:
        for task in first:
            names = _Names((file.path, file.split, file.label) for file in task)
            yield from map(names.batch, decode_task([file.content for file in task], conversion))
        return
    workers: list[_Worker] = []
    running: deque[tuple[_Worker, _Names]] = deque()
    try:
        workers = [_Worker(conversion) for _ in range(processes)]
        for number, task in enumerate(_emptying(first, tasks)):
            if len(running) == AHEAD * processes:
                yield from _finish(*running.popleft())
            names = _Names((file.path, file.split, file.label) for file in task)
            worker = workers[number % processes]
            worker.send([file.content for file in task], names)
            running.append((worker, names))
        while running:
            yield from _finish(*running.popleft())
    finally:
        for worker in workers:
            worker.end()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Names:
    """Path, split and label of each file of a task, while the contents are decoded elsewhere."""

    def __init__(self, rows: Iterable[tuple[str, str | None, str | None]]) -> None:
        self._rows = list(rows)
        self._done = 0

    def batch(self, part: Part) -> DecodedBatch:
        rows = self._rows[self._done : self._done + part.files]
        self._done += part.files
        good = [row for position, row in enumerate(rows) if position not in part.bad] if part.bad else rows
        paths, splits, labels = (list(column) for column in zip(*good, strict=True)) if good else ([], [], [])
        bad = [(rows[position][0], cause) for position, cause in part.bad.items()]
        return DecodedBatch(paths, splits, labels, part.images, part.digests, part.notes, bad, part.seen)

    def remaining(self) -> str:
        rows = self._rows[self._done :] or self._rows[-1:]  # the process may end between the last part and its end mark
        return rows[0][0] if len(rows) == 1 else f"{rows[0][0]} … {rows[-1][0]}"


class _Worker:
    """One decoding process and the connection to it."""

    def __init__(self, conversion: Conversion) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        program = "from pipelines.data.decode.worker import serve"
        program = f"import sys; sys.path[:] = {sys.path!r}; {program}; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would be started for nothing
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C is for the parent, which then ends the connection
        )
        theirs.close()
        self._connection.send(conversion)

    def send(self, contents: list[bytes], names: _Names) -> None:
        try:
            self._connection.send(contents)
        except OSError:
            self._fail(names)

    def receive(self, names: _Names) -> Part | None:
        """The next part of the oldest task; None after its last."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._fail(names)

    def end(self) -> None:
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # inside one huge image
            self._process.kill()
            self._process.wait()

    def _fail(self, names: _Names) -> NoReturn:
        status = self._process.wait()
        if status >= 0 and status != NO_MEMORY:
            raise RuntimeError(f"a decoding process ended with exit status {status} at {names.remaining()}")
        cause = "out of memory" if status == NO_MEMORY else f"{signal.Signals(-status).name}, likely for want of memory"
        raise ConfigError(
            f"a decoding process was ended ({cause}) at {names.remaining()}; free some memory, take fewer --processes "
            "or leave out the largest images"
        )


def _finish(worker: _Worker, names: _Names) -> Iterator[DecodedBatch]:
    while part := worker.receive(names):
        yield names.batch(part)


def _tasks(files: Iterable[ImageFile]) -> Iterator[list[ImageFile]]:
    task: list[ImageFile] = []
    size = 0
    for file in files:
        task.append(file)
        size += len(file.content)
        if len(task) == TASK_FILES or size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _first_tasks(tasks: Iterator[list[ImageFile]]) -> tuple[list[list[ImageFile]], bool]:
    """The first tasks, as many as show whether to decode in this process; and whether so, when they are all tasks."""
    first: list[list[ImageFile]] = []
    files = size = 0
    for task in tasks:
        first.append(task)
        files += len(task)
        size += sum(len(file.content) for file in task)
        if files > ALONE_FILES or size > ALONE_BYTES or any(file.content[:2] in (b"II", b"MM") for file in task):
            return first, False
    return first, True


def _emptying(first: list[list[ImageFile]], rest: Iterator[list[ImageFile]]) -> Iterator[list[ImageFile]]:
    """Both, keeping no task that was taken."""
    while first:
        yield first.pop(0)
    yield from rest

"""A decoding process, which loads only numpy and the decoders, and ends with the connection to its parent."""

from __future__ import annotations

import gc
import hashlib
import os
import queue
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pipelines.data.decode.image import BadImage, Conversion, Decoded, decode
from pipelines.data.decode.value_levels import Seen

PART_BYTES = 2 << 20
"""Decoded pixels that are handed back at a time."""
NO_MEMORY = 3
"""Exit status of a decoding process that was refused memory."""


@dataclass(slots=True)
class Part:
    """What became of ``files`` consecutive files."""

    files: int
    images: np.ndarray | list[np.ndarray]
    digests: np.ndarray
    notes: Counter[str]
    bad: dict[int, str]
    """Cause by the file's position in this part."""
    seen: Seen
    """The values of the images."""


def decode_task(
    contents: Iterable[Any], conversion: Conversion, decode: Callable[[Any, Conversion], Decoded] = decode
) -> Iterator[Part]:
    """Decode files, or whatever ``decode`` takes, one after the other, and yield them a few megabytes at a time."""
    pixels: list[np.ndarray] = []
    notes: Counter[str] = Counter()
    bad: dict[int, str] = {}
    seen = Seen()
    files = size = 0
    for content in contents:
        try:
            decoded = decode(content, conversion)
        except BadImage as cause:
            bad[files] = str(cause)
        else:
            pixels.append(decoded.pixels)
            size += decoded.pixels.nbytes
            if decoded.notes:
                notes.update(decoded.notes)
            seen.add(decoded.stored)
        files += 1
        if size >= PART_BYTES:
            yield _part(files, pixels, notes, bad, seen)
            pixels, notes, bad, seen, files, size = [], Counter(), {}, Seen(), 0, 0
    if files:
        yield _part(files, pixels, notes, bad, seen)


def _part(files: int, pixels: list[np.ndarray], notes: Counter[str], bad: dict[int, str], seen: Seen) -> Part:
    images, digests = channels_first(pixels)
    seen.add_pixels(images)
    return Part(files, images, digests, notes, bad, seen)


def serve(descriptor: int) -> None:
    """Decode what comes through the connection until it ends; the main function of a decoding process.

    Two threads keep the connection moving while the images are decoded: the parent never waits for a process that
    waits for the parent.
    """
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # for an error of this program, but not for libtiff's messages
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    gc.disable()  # nothing here makes cycles, and its rounds over many small objects cost a few percent
    connection = Connection(descriptor)
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.Queue[Part | None] = queue.Queue(maxsize=1)  # no more than the parent takes

    def receive() -> None:
        with _ending_the_process():
            while True:
                tasks.put(connection.recv())

    def send() -> None:
        with _ending_the_process():
            while True:
                connection.send(answers.get())

    threading.Thread(target=receive, daemon=True).start()
    threading.Thread(target=send, daemon=True).start()
    with _ending_the_process():
        conversion = tasks.get()
        while True:
            for part in decode_task(tasks.get(), conversion):
                answers.put(part)
            answers.put(None)


@contextmanager
def _ending_the_process() -> Iterator[None]:
    """However the block ends, so does the whole process, as the parent waits for an answer or an end."""
    status = 1
    try:
        yield
    except (EOFError, OSError):
        status = 0  # the parent is done, or gone
    except MemoryError:
        status = NO_MEMORY
    finally:
        if status == 1:
            traceback.print_exc()
        os._exit(status)


def channels_first(pixels: list[np.ndarray]) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
    """Images ``[H, W]`` or ``[H, W, C]`` as ``[N, C, H, W]`` where all are of one shape, and their digests."""
    images: np.ndarray | list[np.ndarray]
    if pixels and all(image.shape == pixels[0].shape for image in pixels):
        stacked = np.stack(pixels) if len(pixels) > 1 else pixels[0][None]  # one may be large
        images = stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    else:
        images = [
            image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1)) for image in pixels
        ]
    digests = b"".join([hashlib.sha256(image.data).digest() for image in images])
    return images, np.frombuffer(digests, np.uint8).reshape(-1, 32)

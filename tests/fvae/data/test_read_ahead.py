"""Reading ahead: bounded, ended with the iterator, and never silent about what went wrong."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fvae
from fvae.config import ConfigError
from fvae.data.read_ahead import READERS
from fvae.data.streaming import ShardedImages
from tests.fvae.datasets import (
    SIZE,
    Files,
    epoch_of,
    numbers,
    readers,
    settle,
    sharded,
    train_in_shards,
)

pytestmark = pytest.mark.core


def test_one_window_is_read_ahead_and_no_more() -> None:
    source, files = sharded([10] * 8, buffer_bytes=20 * SIZE)  # four windows of two shards
    batches = source.batches(seed=0, epoch=0, batch_size=5)
    taken = 0
    for wanted, shards in ((1, 4), (4, 4), (5, 6), (9, 8), (16, 8)):
        for _ in range(wanted - taken):
            next(batches)
        taken = wanted
        settle()
        assert len(files.read) == shards, taken
    assert next(batches, None) is None


def test_nothing_is_read_before_the_first_batch_is_asked_for() -> None:
    source, files = sharded([10] * 4)
    batches = source.batches(seed=0, epoch=0, batch_size=5)
    settle()
    assert files.read == []
    next(batches)


class Gate(Files):
    """Files whose next reads wait for ``opened`` once ``closing`` reads were made."""

    def __init__(self, contents: dict[str, bytes], closing: int) -> None:
        super().__init__(contents)
        self.closing, self.opened, self.waiting = closing, threading.Event(), threading.Event()

    def fetch(self, key: str) -> bytes:
        content = super().fetch(key)
        if len(self.read) > self.closing:
            self.waiting.set()
            assert self.opened.wait(60)
        return content


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_closed_iterator_ends_its_threads_and_waits_for_none(how: str) -> None:
    manifest, files = train_in_shards([10] * 8)
    gate = Gate(files.contents, closing=4)  # the first of two windows of four shards
    source = ShardedImages(manifest, "train", gate.fetch, buffer_bytes=40 * SIZE)
    batches = source.batches(seed=0, epoch=0, batch_size=5)
    next(batches)
    assert gate.waiting.wait(60)
    assert readers()
    if how == "close":
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
        gc.collect()
    assert readers()  # still in the fetch, which ends only now:
    gate.opened.set()
    settle()
    assert 4 < len(gate.read) <= 4 + READERS  # what was under way


def test_a_failing_store_surfaces_in_the_one_who_takes_the_batches() -> None:
    manifest, files = train_in_shards([10] * 6)
    wanted = files.fetch

    def fetch(key: str) -> bytes:
        content = wanted(key)
        if len(files.read) == 4:  # in the second window
            raise ConnectionResetError(f"{key}: connection reset")
        return content

    source = ShardedImages(manifest, "train", fetch, buffer_bytes=20 * SIZE)
    batches = source.batches(seed=0, epoch=0, batch_size=5)
    taken = [numbers(next(batches)) for _ in range(4)]
    with pytest.raises(ConnectionResetError, match="connection reset"):
        next(batches)
    settle()
    # It answers again: the rest of the epoch, from where it broke.
    assert taken + epoch_of(source, batch_size=5, start=4) == epoch_of(source, batch_size=5)


@pytest.mark.parametrize("trouble", ["missing", "damaged"])
def test_a_shard_that_is_not_the_manifests_is_named_in_mid_epoch(trouble: str) -> None:
    source, files = sharded([10] * 6, buffer_bytes=20 * SIZE)
    last = list(source.windows(0, 0))[-1].shards[-1].key
    if trouble == "missing":
        del files.contents[last]
    else:
        files.contents[last] = files.contents[last][:-1] + b"?"
    batches = source.batches(seed=0, epoch=0, batch_size=20)
    assert len(next(batches)) == len(next(batches)) == 20
    with pytest.raises(ConfigError, match=f"^{last}: {trouble}"):
        next(batches)


def test_every_worker_finds_a_damaged_shard() -> None:
    source, files = sharded([10])
    key = source.manifest.of_split("train")[0].key
    files.contents[key] = files.contents[key][:-1] + b"?"
    for worker in range(2):
        with pytest.raises(ConfigError, match=f"{key}: damaged"):
            epoch_of(source.for_worker(worker, 2))


STALLED = """
import threading
from fvae.data.streaming import ShardedImages
from tests.fvae.datasets import train_in_shards

manifest, files = train_in_shards([10] * 6)
stalled = threading.Event()

def fetch(key):
    content = files.fetch(key)
    if len(files.read) > 2:
        stalled.set()
        threading.Event().wait()
    return content

batches = ShardedImages(manifest, "train", fetch, buffer_bytes=80).batches(seed=0, epoch=0, batch_size=5)
next(batches)
stalled.wait()
print("leaving")
"""


def test_a_stalled_store_does_not_keep_the_process() -> None:
    root = Path(fvae.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", STALLED], cwd=root, capture_output=True, text=True, timeout=500, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaving\n", "")

"""Streaming: every image once an epoch whatever the workers, in a pure order that can be entered anywhere."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from fvae.data.images import ImageSource, TensorImages, steps_per_epoch
from fvae.data.streaming import ShardedImages
from fvae.workers import share
from tests.fvae.datasets import (
    SIZE,
    epoch_of,
    flat,
    numbered,
    numbers,
    settle,
    sharded,
    train_in_shards,
)
from tests.fvae.strategies import EXAMPLES, seeds

pytestmark = pytest.mark.core


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Shards, workers, buffer and batch size, in any proportion."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    return {
        "sizes": sizes,
        "workers": draw(st.integers(1, 5)),
        "buffer_bytes": SIZE * draw(st.integers(1, 80)),
        "batch_size": draw(st.integers(1, 40)),
    }


def check_shares(whole: ImageSource, workers: int, count: int, batch_size: int) -> None:
    """Every image once; a global batch is the same, in the same order, whatever the number of workers."""
    alone = epoch_of(whole, batch_size=batch_size)
    assert sorted(flat(alone)) == list(range(count)) and len(whole) == count
    assert [len(batch) for batch in alone[:-1]] == [batch_size] * (len(alone) - 1)
    shares = [epoch_of(whole.for_worker(worker, workers), batch_size=batch_size) for worker in range(workers)]
    assert [flat(list(batch)) for batch in zip(*shares, strict=True)] == alone
    for batch in zip(*shares, strict=True):
        assert max(map(len, batch)) - min(map(len, batch)) <= 1


@EXAMPLES
@given(layout=layouts())
def test_workers_share_global_batches_that_do_not_depend_on_their_number(layout: dict[str, Any]) -> None:
    manifest, files = train_in_shards(layout["sizes"])
    source = ShardedImages(manifest, "train", files.fetch, buffer_bytes=layout["buffer_bytes"])
    check_shares(source, layout["workers"], sum(layout["sizes"]), layout["batch_size"])


@EXAMPLES
@given(count=st.integers(1, 100), workers=st.integers(1, 6), batch_size=st.integers(1, 30))
def test_workers_share_them_in_memory_too(count: int, workers: int, batch_size: int) -> None:
    check_shares(TensorImages(torch.from_numpy(numbered(count))), workers, count, batch_size)


@EXAMPLES
@given(count=st.integers(0, 100), workers=st.integers(1, 12))
def test_shares_are_contiguous_and_equal_to_within_one(count: int, workers: int) -> None:
    ends = [share(count, worker, workers) for worker in range(workers)]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])] and ends[-1][1] == count
    sizes = [end - begin for begin, end in ends]
    assert max(sizes) - min(sizes) <= 1


@EXAMPLES
@given(layout=layouts(), seed=seeds, epoch=st.integers(0, 9), data=st.data())
def test_the_order_is_a_pure_function_and_can_be_entered_anywhere(
    layout: dict[str, Any], seed: int, epoch: int, data: st.DataObject
) -> None:
    workers = layout["workers"]
    worker = data.draw(st.integers(0, workers - 1))
    settings = {"worker": worker, "workers": workers, "buffer_bytes": layout["buffer_bytes"]}
    source, _ = sharded(layout["sizes"], **settings)
    place = {"seed": seed, "epoch": epoch, "batch_size": layout["batch_size"]}
    state = torch.get_rng_state()
    whole = epoch_of(source, **place)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(epoch)
    again, files = sharded(layout["sizes"], **settings)
    start = data.draw(st.integers(0, len(whole) - 1))
    assert epoch_of(again, **place, start=start) == whole[start:]
    # Windows that were handed out before are not read again.
    needed, end = [], 0
    for window in source.windows(seed, epoch):
        end += len(window)
        if end > start * layout["batch_size"]:
            needed += [shard.key for shard in window.shards]
    assert sorted(files.read) == sorted(needed)


def test_a_window_that_ends_where_reading_starts_is_not_read() -> None:
    source, files = sharded([10] * 4, buffer_bytes=20 * SIZE)
    assert len(epoch_of(source, batch_size=20, start=1)) == 1
    assert len(files.read) == 2


@EXAMPLES
@given(layout=layouts(), seed=seeds, start=st.integers(0, 2))
def test_several_epochs_in_one_iterator_are_the_epochs_one_by_one(
    layout: dict[str, Any], seed: int, start: int
) -> None:
    source, _ = sharded(layout["sizes"], buffer_bytes=layout["buffer_bytes"])
    place = {"seed": seed, "batch_size": layout["batch_size"]}
    start = min(start, steps_per_epoch(len(source), layout["batch_size"]) - 1)
    one_by_one = [epoch_of(source, 3, start=start, **place), epoch_of(source, 4, **place), epoch_of(source, 5, **place)]
    assert epoch_of(source, 3, start=start, epochs=3, **place) == [batch for each in one_by_one for batch in each]
    memory = TensorImages(torch.from_numpy(numbered(sum(layout["sizes"]))))
    in_memory = [*epoch_of(memory, 3, start=start, **place), *epoch_of(memory, 4, **place)]
    assert epoch_of(memory, 3, start=start, epochs=2, **place) == in_memory


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = {tuple(flat(epoch_of(sharded([10] * 6)[0], epoch, seed))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_window_is_shuffled_and_windows_change_from_epoch_to_epoch() -> None:
    source, _ = sharded([50] * 6, buffer_bytes=100 * SIZE)  # windows of two shards
    neighbours = set()
    for epoch in range(4):
        windows = np.array(flat(epoch_of(source, epoch))).reshape(3, 100)
        for window in windows:
            shards = sorted(set((window // 50).tolist()))
            assert len(shards) == 2
            neighbours.add(tuple(shards))
            first_half = np.isin(window[:50] // 50, shards[:1]).sum()
            assert 12 < first_half < 38  # both shards all over the window: 25 ± 5 standard deviations
            assert (np.diff(window) == 1).sum() < 10  # nor in stored order
        places = windows % 50 + 50 * (windows // 50 == windows[:, :1] // 50)
        assert len({tuple(row) for row in places.tolist()}) == 3  # each in an order of its own
    assert len(neighbours) > 6


@EXAMPLES
@given(layout=layouts())
def test_windows_keep_to_the_buffer(layout: dict[str, Any]) -> None:
    source, _ = sharded(layout["sizes"], buffer_bytes=layout["buffer_bytes"])
    windows = list(source.windows(0, 0))
    assert sum(map(len, windows)) == sum(layout["sizes"])
    for window in windows:
        assert len(window) * SIZE <= layout["buffer_bytes"] or len(window.shards) <= 2
    assert all(len(window.shards) >= 2 for window in windows[:-1])


@EXAMPLES
@given(layout=layouts(), workers=st.integers(1, 3))
def test_in_stored_order_whatever_the_worker(layout: dict[str, Any], workers: int) -> None:
    count = sum(layout["sizes"])
    source, _ = sharded(layout["sizes"], worker=workers - 1, workers=workers)
    batch_size = layout["batch_size"]
    batches = [numbers(batch) for batch in source.in_order(batch_size)]
    assert batches == [list(range(count))[start : start + batch_size] for start in range(0, count, batch_size)]
    assert numbers(source.first(batch_size)) == list(range(count))[:batch_size]


def test_the_first_images_are_read_once_and_only_they() -> None:
    source, files = sharded([5, 5, 5, 5])
    assert numbers(source.first(7)) == list(range(7))
    settle()
    assert len(set(files.read)) <= 3  # two shards, and one that was read ahead
    files.read.clear()
    assert numbers(source.first(6)) == list(range(6))
    assert files.read == []
    assert len(pickle.dumps(source)) == len(pickle.dumps(sharded([5, 5, 5, 5])[0]))
    assert numbers(source.first(99)) == list(range(20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "training"}, "split='training': must be one of train, val, test"),
        ({"worker": 2, "workers": 2}, r"rank=2: must be from 0 to count − 1 = 1"),
        ({"worker": -1}, "rank=-1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    manifest, files = train_in_shards([4, 3])
    with pytest.raises(ConfigError, match=message):
        ShardedImages(**{"manifest": manifest, "split": "train", "fetch": files.fetch, **settings})
    if "split" not in settings:
        with pytest.raises(ConfigError, match=message):
            TensorImages(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), **settings)

"""Splits by content: the same whatever the order, nothing lost, nothing in two splits."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from fvae.data.manifest import SPLITS
from pipelines.data.splits import Splitting, split
from pipelines.data.spool import UNSPLIT

pytestmark = pytest.mark.core

NONE = UNSPLIT
TRAIN, VAL, TEST = range(3)


def digests(contents: list[int]) -> np.ndarray:
    joined = b"".join(hashlib.sha256(b"%d" % content).digest() for content in contents)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def cut(contents: list[int], given_splits: list[int], labels: list[int] | None = None, seed: int = 0) -> Splitting:
    return split(
        digests(contents),
        np.array(given_splits, np.int8),
        np.array(labels or [-1] * len(contents), np.int32),
        val=0.1,
        test=0.2,
        seed=seed,
    )


def held(splitting: Splitting, contents: list[int]) -> dict[str, list[int]]:
    """What each split holds, in stored order."""
    return {name: [contents[row] for row in rows] for name, rows in splitting.rows.items()}


@given(st.lists(st.integers(0, 60), min_size=30, max_size=80), st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_copies_change_nothing_and_nothing_leaks(contents: list[int], random: object, seed: int) -> None:
    contents = [*contents, *range(100, 130)]
    splits = held(cut(contents, [NONE] * len(contents), seed=seed), contents)
    shuffled = contents.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert held(cut(shuffled, [NONE] * len(shuffled), seed=seed), shuffled) == splits
    found = {name: set(values) for name, values in splits.items()}
    assert found["train"] | found["val"] | found["test"] == set(contents)
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not found[first] & found[second]


def test_shares_are_exact_and_seeds_differ() -> None:
    contents = list(range(101))
    splitting = cut(contents, [NONE] * 101)
    assert [len(splitting.rows[name]) for name in SPLITS] == [101 - 21 - 11, math.ceil(10.1), math.ceil(20.2)]
    assert splitting.dropped == 0
    assert held(cut(contents, [NONE] * 101, seed=1), contents) != held(splitting, contents)


def test_the_sources_own_splits_are_kept_and_the_missing_one_is_cut_from_train() -> None:
    contents = list(range(60))
    splits = held(cut(contents, [TRAIN] * 50 + [TEST] * 10), contents)
    assert sorted(splits["test"]) == list(range(50, 60))
    assert len(splits["val"]) == 5
    assert set(splits["train"]) | set(splits["val"]) == set(range(50))


def test_duplicates_are_dropped_from_train_then_from_val_with_their_count() -> None:
    # 7 is in all three, 8 in train (twice) and val, 9 twice in train.
    contents = [0, 1, 2, 7, 8, 8, 9, 9] + [7, 8, 20] + [7, 21]
    splitting = cut(contents, [TRAIN] * 8 + [VAL] * 3 + [TEST] * 2)
    splits = held(splitting, contents)
    assert sorted(splits["train"]) == [0, 1, 2, 9, 9]
    assert sorted(splits["val"]) == [8, 20]
    assert sorted(splits["test"]) == [7, 21]
    assert splitting.dropped == 4
    said = "\n".join(splitting.decisions)
    assert "1 images dropped from train: exact duplicates of test" in said
    assert "1 images dropped from val: exact duplicates of test" in said
    assert "2 images dropped from train: exact duplicates of val" in said
    assert "1 images are exact duplicates within their split: kept" in said


def test_labels_only_order_copies() -> None:
    contents, labels = [1, 1, 2, 3, 4, 5, 6], [5, 2, 0, 0, 0, 0, 0]
    splitting = cut(contents, [TRAIN] * 5 + [VAL, TEST], labels)
    rows = splitting.rows["train"].tolist()
    assert rows.index(1) + 1 == rows.index(0)  # the copy with the smaller label first


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([TEST] * 5 + [VAL] * 5, "no train split"),
        ([NONE, NONE], "the train split would be empty"),
    ],
)
def test_what_cannot_be_split_is_said(splits: list[int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cut(list(range(len(splits))), splits)


def test_a_train_split_that_is_all_leakage_is_said() -> None:
    with pytest.raises(ConfigError, match="train split would be empty"):
        cut([1, 2, 1, 2, 3], [TRAIN, TRAIN, TEST, TEST, VAL])

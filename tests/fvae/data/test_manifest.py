"""The manifest: what it says survives the file, and what cannot be is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from fvae.data.manifest import SPLITS, Manifest, Shard
from tests.fvae.strategies import EXAMPLES

pytestmark = pytest.mark.core


def shard(**changes: Any) -> Shard:
    values = {"key": "train-00000-0123abcd.parquet", "split": "train", "images": 7, "bytes": 900, "sha256": "0a" * 32}
    return Shard(**{**values, **changes})  # type: ignore[arg-type]


def manifest(**changes: Any) -> Manifest:
    shards = (shard(), *(shard(key=f"{split}-0.parquet", split=split, images=2) for split in ("val", "test")))
    values: dict[str, Any] = {
        "name": "cats",
        "shape": (3, 5, 4),
        "bins": 256,
        "counts": {"train": 7, "val": 2, "test": 2},
        "classes": ("manx", "Кот"),
        "hash": "0123456789abcdef",
        "shards": shards,
        "source": {"kind": "image folder", "files": 11},
        "settings": {"size": 4, "val": 0.1, "test": None},
        "decisions": ("2 grey images: three equal channels",),
        "duplicates_dropped": 1,
        "bad_files": 3,
    }
    return Manifest(**(values | changes))


@EXAMPLES
@given(
    name=st.text(min_size=1).filter(str.strip),
    classes=st.lists(st.text(), max_size=4),
    sizes=st.lists(st.lists(st.integers(1, 10**7), min_size=1, max_size=4), min_size=3, max_size=3),
    shape=st.tuples(*[st.integers(1, 600)] * 3),
)
def test_the_file_gives_back_what_was_written(
    name: str, classes: list[str], sizes: list[list[int]], shape: tuple[int, int, int]
) -> None:
    shards = tuple(
        shard(key=f"{split}-{number}.parquet", split=split, images=images)
        for split, held in zip(SPLITS, sizes, strict=True)
        for number, images in enumerate(held)
    )
    counts = {split: sum(held) for split, held in zip(SPLITS, sizes, strict=True)}
    written = manifest(name=name, classes=tuple(classes), shards=shards, counts=counts, shape=shape)
    read = Manifest.from_json(written.to_json())
    assert read == written
    assert read.to_json() == written.to_json()
    assert Manifest.from_json(written.to_json().encode()) == written
    assert [part.images for split in SPLITS for part in read.of_split(split)] == [n for held in sizes for n in held]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format=2: this version reads format 1"),
        ({"name": " "}, "name=' ': must be a text"),
        ({"shape": (3, 0, 4)}, "shape=0: must be an integer of at least 1"),
        ({"shape": (3, 4)}, r"shape=\(3, 4\): must be three integers"),
        ({"bins": 257}, "bins=257: pixels are uint8"),
        ({"bins": True}, "bins=True: must be an integer"),
        ({"counts": {"train": 7, "val": 2}}, "counts=.*: must give the images of train, val, test"),
        ({"counts": {"train": 8, "val": 2, "test": 2}}, "counts: train=8, but its shards hold 7 images"),
        ({"counts": {"train": 7, "val": 0, "test": 2}}, "counts: val=0: must be an integer of at least 1"),
        ({"hash": "0123"}, "hash='0123': must be 16 hex digits"),
        ({"classes": ("a", 1)}, "classes=.*: must be a list of texts"),
        ({"source": "a folder"}, "source='a folder': must be an object"),
        ({"bad_files": -1}, "bad_files=-1"),
        ({"shards": (shard(), shard())}, "shards: two have the same key"),
    ],
)
def test_values_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        manifest(**changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "training"),
        ("images", 0),
        ("bytes", -1),
        ("sha256", "0a" * 31),
        ("sha256", "0A" * 32),
        ("key", ""),
        ("key", "../secret"),
        ("key", "/etc/passwd"),
        ("key", "..\\secret"),
        ("key", ".hidden"),
        ("key", "train\n.parquet"),
        ("key", None),
    ],
)
def test_shards_that_cannot_be_are_refused(field: str, value: object) -> None:
    """Above all a key that leads out of the data set's folder."""
    with pytest.raises(ConfigError, match=field):
        shard(**{field: value})


def damaged(**changes: Any) -> str:
    return json.dumps(manifest().to_dict() | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged, not JSON"),
        (manifest().to_json()[:-20], "damaged, not JSON"),
        (b"\xff\xfe\x00", "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"),
        ("[]", "must be an object"),
        ("{}", "format=None: this version reads format 1"),
        ('{"format": 2, "layers": []}', "format=2: this version reads format 1"),
        (damaged(colour="red"), "colour: no such field of Manifest"),
        (damaged(shards=[1]), "shards: 1: must be an object"),
        (damaged(shards=None), "shards=None: must be a list"),
        (damaged(shards=[{"key": "a"}]), "missing from Shard"),
        (damaged(shape="345"), "shape='345': must be a list"),
        (damaged(name=None), "name=None: must be a text"),
    ],
)
def test_a_damaged_file_is_one_clear_line(content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Manifest.from_json(content, "s3://bucket/cats/manifest.json")
    assert str(caught.value).startswith("s3://bucket/cats/manifest.json: ")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_missing_is_named() -> None:
    for field in dataclasses.fields(Manifest):
        if field.default is dataclasses.MISSING:
            values = manifest().to_dict()
            del values[field.name]
            with pytest.raises(ConfigError, match=field.name):
                Manifest.from_dict(values)

"""Shards: lossless for any pixels, the same bytes each time, and never read when they are not what they should be."""

from __future__ import annotations

import dataclasses
import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from fvae.data.manifest import Manifest
from fvae.data.shards import (
    ROW_GROUP,
    SERIAL,
    decode_shard,
    difference,
    encode_shard,
    fetch_shard,
    load_images,
    undo_difference,
)
from tests.fvae.datasets import Files, in_shards, numbered, train_in_shards
from tests.fvae.strategies import EXAMPLES, seeds

pytestmark = pytest.mark.core

shapes = st.tuples(st.integers(1, 6), st.sampled_from((1, 3)), st.integers(1, 9), st.integers(1, 9))


def noise(shape: tuple[int, ...], seed: int, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(levels, size=shape).astype(np.uint8)


def labels(count: int) -> np.ndarray:
    return np.arange(-1, count - 1, dtype=np.int32)


@EXAMPLES
@given(shape=shapes, seed=seeds, levels=st.sampled_from((1, 2, 256)))
def test_differences_are_undone(shape: tuple[int, ...], seed: int, levels: int) -> None:
    images = noise(shape, seed, levels)
    kept = images.copy()
    assert np.array_equal(undo_difference(difference(images)), images)
    assert np.array_equal(images, kept)


@pytest.mark.parametrize("shape", [(1, 3, 200, 150), (SERIAL // 96 + 5, 3, 32, 32), (3, 1, 1, SERIAL + 1)])
def test_differences_are_undone_across_the_parts_of_a_large_array(shape: tuple[int, ...]) -> None:
    images = noise(shape, 0)
    coded = difference(images)
    coded.setflags(write=False)
    assert np.array_equal(undo_difference(coded), images)


def test_differences_are_those_of_the_format() -> None:
    """By hand: the other channels less the middle one, then along H, then along W, mod 256."""
    image = np.array([[[10, 11], [12, 15]], [[1, 2], [3, 4]], [[0, 0], [255, 0]]], np.uint8)[None]
    assert difference(image).tolist() == [[[[9, 0], [0, 2]], [[1, 1], [2, 0]], [[255, 255], [253, 1]]]]


@EXAMPLES
@given(shape=shapes, seed=seeds)
def test_a_shard_gives_back_images_and_labels_in_order(shape: tuple[int, int, int, int], seed: int) -> None:
    images, given_labels = noise(shape, seed), labels(shape[0])
    content = encode_shard(images, given_labels)
    decoded, decoded_labels = decode_shard(content, shape[1:])
    assert np.array_equal(decoded, images) and decoded.dtype == np.uint8
    assert np.array_equal(decoded_labels, given_labels) and decoded_labels.dtype == np.int32
    assert encode_shard(np.asfortranarray(images), given_labels) == content


def test_a_shard_of_several_row_groups() -> None:
    images = noise((2 * ROW_GROUP + 7, 1, 3, 5), 0)
    content = encode_shard(images, labels(len(images)))
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 3
    out = np.empty_like(images)
    decoded, decoded_labels = decode_shard(content, (1, 3, 5), out)
    assert decoded is out
    assert np.array_equal(out, images)
    assert np.array_equal(decoded_labels, labels(len(images)))


def test_other_parquet_readers_find_plain_columns_and_the_layout() -> None:
    content = encode_shard(noise((4, 3, 2, 2), 0), labels(4))
    file = pq.ParquetFile(io.BytesIO(content))
    assert file.read()["label"].to_pylist() == [-1, 0, 1, 2]
    assert file.schema_arrow.field("pixels").type == pa.binary(12)
    assert file.metadata.metadata == {b"fvae.format": b"1", b"shape": b"3,2,2", b"encoding": b"difference"}


def test_smooth_images_take_fewer_bytes_than_their_pixels() -> None:
    rows = np.arange(32)[None, None, :, None] + 2 * np.arange(32) + np.arange(200)[:, None, None, None]
    images = (rows + noise((200, 3, 32, 32), 0, 2)).astype(np.uint8)
    assert len(encode_shard(images, labels(200))) < images.nbytes / 2


@pytest.mark.parametrize(
    ("images", "given_labels"),
    [
        (np.zeros((2, 1, 2, 2)), labels(2)),
        (np.zeros((2, 2, 2), np.uint8), labels(2)),
        (np.zeros((0, 1, 2, 2), np.uint8), labels(0)),
        (np.zeros((2, 1, 2, 2), np.uint8), labels(3)),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64)),
    ],
)
def test_arrays_of_another_kind_are_not_written(images: np.ndarray, given_labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="needs"):
        encode_shard(images, given_labels)


# --- damage --------------------------------------------------------------------------------------

IMAGES = noise((40, 3, 4, 4), 0, 60)
CONTENT = encode_shard(IMAGES, labels(40))


@EXAMPLES
@given(kept=st.integers(0, len(CONTENT) - 1))
def test_a_truncated_shard_is_one_clear_line(kept: int) -> None:
    with pytest.raises(ConfigError, match="not a complete shard of a data set") as caught:
        decode_shard(CONTENT[:kept], (3, 4, 4))
    assert "\n" not in str(caught.value)


def test_a_byte_changed_anywhere_never_changes_a_pixel() -> None:
    """Every byte of the file, one after another: either it does not matter or it is noticed."""
    noticed = 0
    for place in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 0x55
        try:
            images, decoded_labels = decode_shard(bytes(damaged), (3, 4, 4))
        except ConfigError as error:
            assert "\n" not in str(error)
            noticed += 1
        else:
            assert np.array_equal(images, IMAGES) and np.array_equal(decoded_labels, labels(40)), place
    assert noticed > len(CONTENT) / 2


def parquet(columns: dict[str, pa.Array], metadata: dict[str, str] | None = None) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
        writer.add_key_value_metadata(metadata or {})
    return sink.getvalue()


LAYOUT = {"fvae.format": "1", "shape": "1,1,2", "encoding": "difference"}
PIXELS = pa.array([b"ab", b"cd"], pa.binary(2))
LABELS = pa.array([0, 1], pa.int32())


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not a complete shard"),
        (b"PAR1" * 20, "not a complete shard"),
        (parquet({"pixels": PIXELS, "label": LABELS}), "fvae.format is None, not 1"),
        (parquet({"pixels": PIXELS, "label": LABELS}, LAYOUT | {"fvae.format": "2"}), "fvae.format is 2, not 1"),
        (parquet({"pixels": PIXELS, "label": LABELS}, LAYOUT | {"encoding": "png"}), "encoding is png, not difference"),
        (parquet({"pixels": PIXELS, "label": LABELS}, LAYOUT | {"shape": "1,2,1"}), "shape is 1,2,1, not 1,1,2"),
        (parquet({"pixels": LABELS, "label": LABELS}, LAYOUT), "columns are"),
        (parquet({"label": LABELS, "pixels": PIXELS}, LAYOUT), "columns are"),
        (parquet({"pixels": PIXELS, "label": pa.array([0, None], pa.int32())}, LAYOUT), "without pixels or label"),
    ],
)
def test_another_file_is_no_shard(content: bytes, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        decode_shard(content, (1, 1, 2))


def test_a_shard_that_fits_in_every_way_is_read() -> None:
    """The control for the cases above."""
    images, decoded_labels = decode_shard(parquet({"pixels": PIXELS, "label": LABELS}, LAYOUT), (1, 1, 2))
    assert images.reshape(2, 2).tolist() == [[97, 97 + 98], [99, 99 + 100]]
    assert decoded_labels.tolist() == [0, 1]


# --- a whole split -------------------------------------------------------------------------------


@EXAMPLES
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_split_is_its_shards_in_stored_order(sizes: list[int]) -> None:
    manifest, files = train_in_shards(sizes)
    assert np.array_equal(load_images(manifest, "train", files.fetch), numbered(sum(sizes)))


def replaced(manifest: Manifest, files: Files, content: bytes, key: str, honest: bool) -> Manifest:
    """The data set with ``content`` in place of a shard; ``honest``: its checksum in the manifest too."""
    files.contents[key] = content
    sha256 = hashlib.sha256(content).hexdigest()
    shards = tuple(
        dataclasses.replace(shard, sha256=sha256) if honest and shard.key == key else shard for shard in manifest.shards
    )
    return dataclasses.replace(manifest, shards=shards)


def test_a_shard_that_is_not_the_manifests_is_named() -> None:
    manifest, files = train_in_shards([4, 3])
    key = manifest.of_split("train")[1].key
    other = encode_shard(numbered(3)[::-1], labels(3))
    with pytest.raises(ConfigError, match=rf"{key}: damaged \(\d+ bytes of sha256"):
        load_images(replaced(manifest, files, other, key, honest=False), "train", files.fetch)
    reordered = load_images(replaced(manifest, files, other, key, honest=True), "train", files.fetch)
    assert np.array_equal(reordered[4:], numbered(3)[::-1])
    fewer = encode_shard(numbered(2), labels(2))
    damaged = replaced(manifest, files, fewer, key, honest=True)
    with pytest.raises(ConfigError, match=rf"{key}: not a complete shard of a data set \(2 images, not 3\)"):
        load_images(damaged, "train", files.fetch)
    with pytest.raises(ConfigError, match=f"{key}: 2 images, where the manifest has 3"):
        fetch_shard(damaged, damaged.of_split("train")[1], files.fetch)
    with pytest.raises(ConfigError, match=f"{key}: not a complete shard"):
        load_images(replaced(manifest, files, b"no parquet", key, honest=True), "train", files.fetch)
    del files.contents[key]
    with pytest.raises(ConfigError, match=f"{key}: missing from the data set"):
        load_images(manifest, "train", files.fetch)


def test_levels_above_the_manifests_are_refused() -> None:
    splits = {split: (noise((5, 1, 2, 2), 0, 17), [5]) for split in ("train", "val", "test")}
    manifest, files = in_shards(splits, bins=17)
    assert load_images(manifest, "val", files.fetch).max() < 17
    with pytest.raises(ConfigError, match=r"val-00000.*: holds level \d+, where the manifest has bins=3"):
        load_images(dataclasses.replace(manifest, bins=3), "val", files.fetch)


def test_an_unknown_split_is_named() -> None:
    manifest, files = train_in_shards([2])
    with pytest.raises(ConfigError, match="split='training': must be one of train, val, test"):
        load_images(manifest, "training", files.fetch)

"""Parquet: data sets made by ingest, and the files that others write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fvae import ConfigError
from fvae.data.images import ImageDataset
from fvae.data.manifest import SPLITS, Manifest, Shard
from fvae.data.shards import encode_shard
from pipelines.data.sources import open_source
from pipelines.storage import open_storage
from tests.pipelines.data.source_builders import bad_of, files_of, folder, pixels_of, png, pngs, stored

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)


def data_set(
    channels: int, classes: tuple[str, ...] = ("cat", "dog")
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The files of a data set, two shards a split, and its images ``[N, C, H, W]``."""
    files, shards, pixels = {}, [], {}
    for split in SPLITS:
        pixels[split] = RNG.integers(0, 17, (10, channels, 4, 6), dtype=np.uint8)
        for number in range(2):
            part = pixels[split][5 * number :][:5]
            content = encode_shard(part, np.arange(-1, 4, dtype=np.int32) % 3 - 1)
            key = f"{split}-{number:05}.parquet"
            files[key] = content
            digest = hashlib.sha256(content).hexdigest()
            shards.append(Shard(key=key, split=split, images=5, bytes=len(content), sha256=digest))
    counts = dict.fromkeys(SPLITS, 10)
    content_hash = ImageDataset(name="a", bins=17, **pixels).content_hash()
    manifest = Manifest(
        name="a",
        shape=(channels, 4, 6),
        bins=17,
        counts=counts,
        classes=classes,
        hash=content_hash,
        shards=tuple(shards),
        source={},
        settings={},
    )
    return files | {"manifest.json": manifest.to_json().encode()}, pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("remote", [False, True])
def test_a_data_set_of_ours(tmp_path: Path, bucket: str, channels: int, remote: bool) -> None:
    files, expected = data_set(channels)
    location = stored(f"{bucket}/set", files) if remote else folder(tmp_path / "set", files)
    source = open_source(location)
    assert (source.name, source.kind, source.bins, source.count()) == ("set", "Parquet data set", 17, 30)
    found = pixels_of(source)
    assert list(found) == list(SPLITS)
    for split, (images, labels) in found.items():
        as_stored = images[:, None] if channels == 1 else images.transpose(0, 3, 1, 2)
        assert (as_stored == expected[str(split)]).all()
        names = ["cat", "dog", None]
        assert labels == [names[label] for label in (np.arange(-1, 4) % 3 - 1).tolist() * 2]
    assert source.fingerprint() == open_source(location).fingerprint()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files.pop("val-00001.parquet"), "val-00001.parquet: missing"),
        (lambda files: files.update({"val-00001.parquet": b"x"}), "val-00001.parquet: damaged"),
        (lambda files: files.update({"manifest.json": b"{"}), "manifest.json: damaged"),
    ],
)
def test_a_damaged_data_set(tmp_path: Path, spoil: Callable[[dict[str, bytes]], Any], said: str) -> None:
    files, _ = data_set(1)
    spoil(files)
    with pytest.raises(ConfigError, match=said):
        list(open_source(folder(tmp_path / "set", files)).items())


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_of_ours_without_its_data_set(tmp_path: Path, bucket: str, remote: bool) -> None:
    files, _ = data_set(1)
    root = stored(f"{bucket}/set", files) if remote else folder(tmp_path / "set", files)
    with pytest.raises(ConfigError) as caught:
        open_source(f"{root}/val-00001.parquet")
    assert str(caught.value) == f"{root}/val-00001.parquet: a shard of a data set; give its folder"
    open_storage(root).delete("manifest.json")
    with pytest.raises(ConfigError) as caught:
        open_source(root)
    first = f"{root}/test-00000.parquet"
    assert str(caught.value) == f"{first}: a shard of a data set without its manifest.json; ingest it again"


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    files, _ = data_set(1, classes=("cat",))
    with pytest.raises(ConfigError, match="has label 1, but there are 1 classes"):
        list(open_source(folder(tmp_path / "set", files)).items())


def test_a_manifest_of_something_else_is_no_data_set(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "web", pngs("1.png", "2.png") | {"manifest.json": b'{"icons": []}'}))
    assert list(files_of(source)) == ["1.png", "2.png"]


def table(path: Path, images: pa.Array, column: str = "image", metadata: Any = None, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = pa.table({column: images, **columns})
    pq.write_table(held.replace_schema_metadata(metadata) if metadata else held, path, row_group_size=3)
    return path


CONTENT = [png(seed) for seed in range(7)]
STRUCT = pa.array([{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(CONTENT)])
NAMES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}})}


@pytest.mark.parametrize("column", ["image", "img", "pixels", "bytes"])
@pytest.mark.parametrize("images", [STRUCT, pa.array(CONTENT), pa.array(CONTENT, pa.large_binary())])
def test_encoded_images_in_one_file(tmp_path: Path, column: str, images: pa.Array) -> None:
    source = open_source(str(table(tmp_path / "set.parquet", images, column, label=[0, 1, 0, 1, 0, 1, None])))
    assert (source.name, source.kind, source.count()) == ("set", "Parquet files", 7)
    assert files_of(source) == {
        f"set.parquet: row {row}": (content, None, [None, "0", "1"][row % 2 + 1] if row < 6 else None)
        for row, content in enumerate(CONTENT)
    }


@pytest.mark.parametrize(
    ("labels", "metadata", "expected"),
    [
        ([0, 1, 0, 1, 0, 1, -1], NAMES, ["cat", "dog", "cat", "dog", "cat", "dog", None]),
        ([0, 1, 2, 0, 0, 0, 0], NAMES, ["cat", "dog", "2", "cat", "cat", "cat", "cat"]),
        (list("abcabc") + [None], None, [*"abcabc", None]),
        (pa.array(list("abcabca")).dictionary_encode(), {"huggingface": "{"}, list("abcabca")),
    ],
)
def test_labels_and_their_names(tmp_path: Path, labels: Any, metadata: Any, expected: list[str | None]) -> None:
    source = open_source(str(table(tmp_path / "set.parquet", STRUCT, metadata=metadata, label=labels)))
    assert [label for _, _, label in files_of(source).values()] == expected


def test_names_of_files_and_folders_name_splits(tmp_path: Path, bucket: str) -> None:
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001", "validation/0"):
        table(tmp_path / "set" / f"{name}.parquet", STRUCT[:2])
    source = open_source(str(tmp_path / "set"))
    splits = [split for _, split, _ in files_of(source).values()]
    assert splits == ["test", "test", "train", "train", "train", "train", "val", "val"]
    stored(f"{bucket}/set", {"train.parquet": table(tmp_path / "a.parquet", STRUCT).read_bytes()})
    remote = files_of(open_source(f"{bucket}/set"))
    assert [(content, split) for content, split, _ in remote.values()] == [(content, "train") for content in CONTENT]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001-b42b775f407cee45", "data/test-00000-of-00001-5cfa8bd2c1ee2a3f"),
        ("train-00001-of-00002-0ae1cc775f407c11", "test-00000-of-00001-abcdefabcdefabcd"),
        ("train_9f2c4b1e-aa", "test_0c1d2e3f-bb"),
        ("train-550e8400-e29b-41d4-a716-446655440000", "test-16fd2706-8baf-433b-82eb-8c7fada847da"),
        ("mnist_train_v1", "mnist_test_final"),
        ("train_of_cee", "some cfa test"),
        ("cats-train", "birds_heldback-test"),
    ],
)
def test_one_split_word_names_the_split_of_a_table(tmp_path: Path, train: str, test: str) -> None:
    for name in (train, test):
        table(tmp_path / "set" / f"{name}.parquet", STRUCT[:2])
    found = {
        path.partition(".parquet")[0]: split
        for path, (_, split, _) in files_of(open_source(str(tmp_path / "set"))).items()
    }
    assert found == {train: "train", test: "test"}


def test_rows_without_an_image_are_named(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"x", "path": ""}, None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": ""}])
    source = open_source(str(table(tmp_path / "a.parquet", images)))
    assert bad_of(source) == {f"a.parquet: row {row}": "no image in this row" for row in (1, 2)}
    assert len(list(source.items())) == 4


@pytest.mark.parametrize(
    ("labels", "expected", "note"),
    [
        ([True, False, None], ["True", "False", None], ""),
        ([1.0, None, 3.0], ["1", None, "3"], ""),
        ([float("nan"), 0.0, -1.0], [None, "0", None], ""),
        ([0.5, 1.0, 2.0], [None] * 3, "column label left out: double, not one whole number or text for each image"),
        ([[1], [2], [3]], [None] * 3, "column label left out: list<"),
    ],
)
def test_labels_that_do_not_fit_cost_no_image(
    tmp_path: Path, labels: list[Any], expected: list[str | None], note: str
) -> None:
    contents = list(pngs("1.png", "2.png", "3.png").values())
    pq.write_table(pa.table({"image": contents, "label": labels}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    found = files_of(source)
    assert [content for content, _, _ in found.values()] == contents
    assert [label for _, _, label in found.values()] == expected
    assert [line[: len(note)] for line in source.notes] == ([note] if note else [])


def test_images_of_other_columns_and_of_lists(tmp_path: Path) -> None:
    contents = list(pngs("1.png", "2.png", "3.png").values())
    structs = [{"bytes": content, "path": None} for content in contents]
    for column in ({"jpg": structs}, {"scan": contents}, {"images": [structs[:2], structs[2:]]}):
        pq.write_table(
            pa.table({"__key__": ["k"] * len(next(iter(column.values()))), **column}), tmp_path / "a.parquet"
        )
        source = open_source(str(tmp_path / "a.parquet"))
        assert [content for content, _, _ in files_of(source).values()] == contents
        assert source.count() == (None if "images" in column else 3)
    with pytest.raises(ConfigError, match=r"it has text \(binary\)"):
        pq.write_table(pa.table({"text": [b"hello"]}), tmp_path / "a.parquet")
        open_source(str(tmp_path / "a.parquet"))


def test_tables_that_programs_keep_for_themselves_are_ignored(tmp_path: Path) -> None:
    table(tmp_path / "set" / "part-0.parquet", STRUCT)
    (tmp_path / "set" / "_delta_log").mkdir()
    pq.write_table(pa.table({"add": ["x"]}), tmp_path / "set" / "_delta_log" / "1.checkpoint.parquet")
    source = open_source(str(tmp_path / "set"))
    assert [content for content, _, _ in files_of(source).values()] == CONTENT
    assert source.notes == ["1 table below folders called _… ignored"]


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_of_a_saved_data_set(tmp_path: Path, stream: bool) -> None:
    contents = list(pngs("1.png", "2.png", "3.png").values())
    held = pa.table({"image": [{"bytes": content, "path": None} for content in contents], "label": [0, 1, 0]})
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        path = str(tmp_path / "set" / split / "data-00000-of-00001.arrow")
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with pa.OSFile(path, "wb") as file, new(file, held.schema) as writer:
            writer.write_table(held, max_chunksize=2)
    (tmp_path / "set" / "train" / "cache-123.arrow").write_bytes(b"x")
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    source = open_source(str(tmp_path / "set"))
    found = files_of(source)
    assert [(content, split, label) for content, split, label in found.values()] == [
        (content, split, label) for split in ("test", "train") for content, label in zip(contents, "010", strict=True)
    ]
    assert source.kind == "Arrow files"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"price": [1, 2]}, r"it has price \(int64\)"),
        ({"image": [[1, 2], [3, 4]]}, r"it has image \(list<"),
        ({"image": ["a.png", "b.png"]}, r"it has image \(string\)"),
        ({"image": [{"path": "a.png"}] * 2}, r"it has image \(struct<path"),
    ],
)
def test_other_columns_are_refused_by_name(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=said) as caught:
        open_source(str(tmp_path / "a.parquet"))
    assert "\n" not in str(caught.value)


def test_damaged_and_mixed_files(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", STRUCT)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(ConfigError, match="not a complete Parquet file") as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)
    damaged = bytearray(content)
    damaged[6:60] = bytes(54)
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match="not a complete Parquet file"):
        list(open_source(str(path)).items())
    table(tmp_path / "set" / "train.parquet", STRUCT)
    table(tmp_path / "set" / "more.parquet", STRUCT)
    with pytest.raises(ConfigError, match="more.parquet lies beside the split folders"):
        open_source(str(tmp_path / "set"))
    (tmp_path / "set" / "1.png").write_bytes(png())
    with pytest.raises(ConfigError, match="holds image files .* and Parquet files"):
        open_source(str(tmp_path / "set"))
    table(tmp_path / "b.parquet", STRUCT[:0])
    with pytest.raises(ConfigError, match="no rows"):
        open_source(str(tmp_path / "b.parquet"))

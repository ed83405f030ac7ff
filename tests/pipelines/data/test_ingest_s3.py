"""Ingest from and to S3, on a good day and on bad ones: the data set is the same to the byte, or it is not there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from fvae.data.manifest import Manifest
from pipelines.data import writer as dataset_writer
from pipelines.data.datasets import load_dataset
from pipelines.storage import Storage, StorageError, open_storage
from tests.pipelines.data.bad_inputs import archive
from tests.pipelines.data.test_ingest import make, pixels, stored, tree
from tests.s3 import FAULTS, FaultProxy, set_constants

pytestmark = pytest.mark.core


@pytest.fixture(scope="module", autouse=True)
def several_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_writer, "SHARD_BYTES", 10 * 8 * 8 * 3)
        yield


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, several_shards: None) -> Path:
    """``mine`` and ``mine.tar.gz``, what is ingested, and ``set``, the data set that must come out, on a disk."""
    folder = tmp_path_factory.mktemp("local")
    tree(folder / "mine", pixels(60))
    archive(folder / "mine.tar.gz", folder / "mine")
    make(folder / "mine", folder / "set")
    return folder


@pytest.fixture
def proxy(strict_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The strict server, which this process uses with small waits and the usual number of attempts."""
    set_constants({"FIRST_WAIT": 0.01, "LONGEST_WAIT": 0.02, "READ_TIMEOUT": 0.5}, monkeypatch.setattr)
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_proxy.url)
    strict_proxy.reset()
    return strict_proxy


def held(storage: Storage) -> dict[str, bytes]:
    return {entry.key: storage.read(entry.key) for entry in storage.list()}


def check_whole(storage: Storage, local: Path) -> Manifest:
    """The same shards as on the disk, a manifest, and nothing else: no litter, no unfinished upload."""
    objects = held(storage)
    manifest = Manifest.from_json(objects.pop("manifest.json"))
    assert objects == stored(local)
    assert manifest.shards == Manifest.from_json((local / "manifest.json").read_text()).shards
    bucket = storage.uri.removeprefix("s3://").split("/")[0]
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)
    return manifest


def test_to_s3_and_back(bucket: str, mine: Path) -> None:
    storage, local = open_storage(f"{bucket}/sets/mine"), mine / "set"
    make(mine / "mine", storage.uri)
    check_whole(storage, local)
    _, said = make(mine / "mine", storage.uri)
    assert "Unchanged" in said[0]
    first, second = load_dataset(storage.uri), load_dataset(str(local))
    assert first.content_hash() == second.content_hash()
    for split in ("train", "val", "test"):
        assert (np.asarray(first.images(split)) == second.images(split)).all()
    streamed = load_dataset(storage.uri, "always").images("train")
    batches = [batch.numpy() for batch in streamed.batches(seed=0, epoch=0, batch_size=7)]
    assert sorted(map(bytes, np.concatenate(batches))) == sorted(map(bytes, second.images("train")))


@pytest.mark.parametrize("kind", ["tree", "archive", "data set"])
def test_sources_on_s3(bucket: str, mine: Path, tmp_path: Path, kind: str) -> None:
    storage, local = open_storage(bucket), mine / "set"
    name = {"tree": "mine", "archive": "mine.tar.gz", "data set": "set"}[kind]
    storage.upload(mine / name, f"raw/{name}")
    source = f"{bucket}/raw/{name}"
    manifest, _ = make(source, f"{bucket}/out")
    if kind == "data set":  # whose splits are taken as they are
        assert manifest.hash == Manifest.from_json((local / "manifest.json").read_text()).hash
    check_whole(storage.child("out"), local)
    _, said = make(source, f"{bucket}/out")
    assert "Unchanged" in said[0]
    assert make(source, tmp_path / "down")[0].hash == manifest.hash


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_on_any_request_of_an_ingest_costs_nothing_but_a_line(
    proxy: FaultProxy, bucket: str, mine: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage, numbers = open_storage(bucket), (2, 3, 7, 11, 14, 16, 18)
    storage.upload(mine / "mine.tar.gz", "mine.tar.gz")
    proxy.reset(dict.fromkeys(numbers, fault))
    with caplog.at_level(logging.WARNING, "pipelines.storage"):
        make(f"{bucket}/mine.tar.gz", f"{bucket}/out")
    assert len(proxy.faults) == len(numbers)
    proxy.reset()
    check_whole(storage.child("out"), mine / "set")
    assert caplog.records or fault == "corrupt"  # which an answer without a body does not feel
    assert all("s3://" in record.getMessage() for record in caplog.records)


def test_a_store_that_stays_dead_is_one_error_and_the_same_command_carries_on(
    proxy: FaultProxy, impatient: None, bucket: str, mine: Path
) -> None:
    storage = open_storage(f"{bucket}/out")
    for number in (1, 4, 9, 13):
        proxy.reset(dict.fromkeys(range(number, 10_000), "500"))
        with pytest.raises(StorageError) as error:
            make(mine / "mine", storage.uri)
        assert len(str(error.value).splitlines()) == 1
        assert bucket in str(error.value)
        proxy.reset()
        assert not storage.exists("manifest.json")
    make(mine / "mine", storage.uri)
    check_whole(storage, mine / "set")

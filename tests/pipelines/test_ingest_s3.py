"""Ingest from and to S3, on a good day and on bad ones: the data set is the same to the byte, or it is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import boto3
import numpy as np
import pytest

from fvae.manifest import Manifest
from pipelines import dataset_writer, s3_requests
from pipelines.datasets import load_dataset
from pipelines.storage import Storage, StorageError, open_storage
from tests.pipelines.bad_inputs import archive
from tests.pipelines.test_ingest import make, pixels, stored, tree
from tests.s3 import FAULTS, FaultProxy

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small waits, and several shards."""
    monkeypatch.setattr(s3_requests, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(s3_requests, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(s3_requests, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr(dataset_writer, "SHARD_BYTES", 10 * 8 * 8 * 3)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The data set that must come out, made on a disk."""
    make(tree(tmp_path / "mine", pixels(60)), tmp_path / "set")
    return tmp_path / "set"


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


def test_to_s3_and_back(bucket: str, local: Path, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/sets/mine")
    make(tmp_path / "mine", storage.uri)
    check_whole(storage, local)
    _, said = make(tmp_path / "mine", storage.uri)
    assert "Unchanged" in said[0]
    first, second = load_dataset(storage.uri), load_dataset(str(local))
    assert first.content_hash() == second.content_hash()
    for split in ("train", "val", "test"):
        assert (np.asarray(first.images(split)) == second.images(split)).all()
    streamed = load_dataset(storage.uri, "always").images("train")
    batches = [batch.numpy() for batch in streamed.batches(seed=0, epoch=0, batch_size=7)]
    assert sorted(map(bytes, np.concatenate(batches))) == sorted(map(bytes, second.images("train")))


@pytest.mark.parametrize("kind", ["tree", "archive", "data set"])
def test_sources_on_s3(bucket: str, local: Path, tmp_path: Path, kind: str) -> None:
    storage = open_storage(bucket)
    if kind == "tree":
        storage.upload(tmp_path / "mine", "mine")
        source = f"{bucket}/mine"
    elif kind == "archive":
        storage.upload(archive(tmp_path / "mine.tar.gz", tmp_path / "mine"), "raw/mine.tar.gz")
        source = f"{bucket}/raw/mine.tar.gz"
    else:
        storage.upload(local, "set")
        source = f"{bucket}/set"
    manifest, _ = make(source, f"{bucket}/out")
    if kind == "data set":  # whose splits are taken as they are
        assert manifest.hash == Manifest.from_json((local / "manifest.json").read_text()).hash
    check_whole(storage.child("out"), local)
    _, said = make(source, f"{bucket}/out")
    assert "Unchanged" in said[0]
    assert make(source, tmp_path / "down")[0].hash == manifest.hash


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("numbers", [(2, 3), (7, 11), (14, 16, 18)])
def test_every_fault_on_every_request_of_an_ingest_costs_nothing_but_a_line(
    s3: str,
    bucket: str,
    local: Path,
    tmp_path: Path,
    fault: str,
    numbers: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = open_storage(bucket)
    storage.upload(archive(tmp_path / "mine.tar.gz", tmp_path / "mine"), "mine.tar.gz")
    with FaultProxy(s3, dict.fromkeys(numbers, fault), strict=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with caplog.at_level(logging.WARNING, "pipelines.storage"):
            make(f"{bucket}/mine.tar.gz", f"{bucket}/out")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert len(proxy.faults) == len(numbers)
    check_whole(storage.child("out"), local)
    assert caplog.records or fault == "corrupt"  # which an answer without a body does not feel
    assert all("s3://" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("number", [1, 4, 9, 13])
def test_a_store_that_stays_dead_is_one_error_and_the_same_command_carries_on(
    s3: str, bucket: str, local: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(s3_requests, "PATIENCE", 0.2)
        proxy.plan = dict.fromkeys(range(number, 10_000), "500")
        with pytest.raises(StorageError) as error:
            make(tmp_path / "mine", f"{bucket}/out")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert len(str(error.value).splitlines()) == 1
    assert bucket in str(error.value)
    storage = open_storage(f"{bucket}/out")
    assert not storage.exists("manifest.json")
    make(tmp_path / "mine", storage.uri)
    check_whole(storage, local)

"""Sources in a bucket hold what they hold in a folder, whatever the store does on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvae import ConfigError
from pipelines.data.sources import files, open_source
from pipelines.storage import StorageError, open_storage
from tests.pipelines.data.source_builders import (
    CLUTTER,
    PACKERS,
    TREE,
    bad_of,
    files_of,
    png,
    pngs,
    stored,
)
from tests.s3 import FaultProxy

pytestmark = pytest.mark.core

# --- S3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["folder", "tar.gz", "zip"])
def test_a_bucket_holds_the_same(tmp_path: Path, bucket: str, packing: str) -> None:
    local = PACKERS[packing](tmp_path, TREE | CLUTTER)
    if packing == "folder":
        uri = stored(f"{bucket}/some/set", TREE | CLUTTER)
    else:
        uri = f"{bucket}/some/{Path(local).name}"
        stored(f"{bucket}/some", {Path(local).name: Path(local).read_bytes()})
    remote, here = open_source(uri), open_source(local)
    assert files_of(remote) == files_of(here)
    assert (remote.name, remote.kind, remote.notes) == (here.name, here.kind, here.notes)
    assert remote.fingerprint() == open_source(uri).fingerprint()
    if packing == "folder":
        before = remote.fingerprint()
        stored(uri, {"train/cat/1.png": png(5)})
        assert open_source(uri).fingerprint() != before


def test_a_whole_bucket_and_a_missing_prefix(bucket: str) -> None:
    stored(bucket, pngs("set/cat/1.png", "set/dog/2.png"))
    assert open_source(bucket).count() == 2
    with pytest.raises(ConfigError, match="nothing there; did you mean set?"):
        open_source(f"{bucket}/sett")


def test_an_object_that_went_away_is_named(bucket: str) -> None:
    uri = stored(f"{bucket}/set", pngs("1.png", "2.png"))
    source = open_source(uri)
    open_storage(uri).delete("1.png")
    assert bad_of(source) == {"1.png": "gone since it was listed"}


def test_many_objects_come_in_order_with_few_ahead(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = pngs(*(f"{n:03}.png" for n in range(60)))
    uri = stored(f"{bucket}/set", tree)
    monkeypatch.setattr(files, "AHEAD_BYTES", 5 * len(png()))
    source = open_source(uri)
    reads: list[str] = []
    read = source._files._storage.read  # type: ignore[attr-defined]

    def counted(key: str) -> bytes:
        reads.append(key)
        return read(key)

    monkeypatch.setattr(source._files._storage, "read", counted)  # type: ignore[attr-defined]
    items = source.items()
    next(items)
    assert len(reads) < 12
    items.close()  # ends the threads
    assert files_of(source) == {name: (content, None, None) for name, content in tree.items()}


@pytest.mark.parametrize("packing", ["folder", "tar.gz", "zip"])
def test_faults_of_a_store_cost_nothing_and_a_dead_one_is_an_error(
    s3: str, bucket: str, tmp_path: Path, packing: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = pngs(*(f"cat/{n:02}.png" for n in range(12)))
    local = PACKERS[packing](tmp_path, tree)
    name = Path(local).name
    objects = {f"{name}/{key}": content for key, content in tree.items()}
    stored(bucket, objects if packing == "folder" else {name: Path(local).read_bytes()})
    plan = {1: "503", 2: "reset", 4: "truncate", 6: "500"}
    with FaultProxy(s3, plan) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        source = open_source(f"{bucket}/{name}")
        assert files_of(source) == files_of(open_source(local))
        assert len(proxy.faults) >= 3
        proxy.dead = True
        with pytest.raises(StorageError):
            list(source.items())

"""Ray keeps its checkpoints on S3 with nothing set but the usual AWS variables."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray
from pyarrow.fs import FileSelector, FileSystem, FileType
from ray import tune as ray_tune
from ray.train._internal.storage import _upload_to_fs_path

import pipelines.ray_environment  # noqa: F401  # before ray
from pipelines import ray_files
from pipelines.storage import StorageError, open_storage, ray_storage
from tests.s3 import FaultProxy, only

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_parts")]


def trainable() -> Callable[[dict[str, int]], None]:
    """Counts to three with a checkpoint each; goes on from one. Made here so that it travels to workers by value."""

    def counts_to_three(config: dict[str, int]) -> None:
        held = ray_tune.get_checkpoint()
        start = 0
        if held is not None:
            with held.as_directory() as folder:
                start = int((Path(folder) / "below" / "step.txt").read_text())
        for step in range(start + 1, 4):
            folder = Path("checkpoint")
            (folder / "below").mkdir(parents=True, exist_ok=True)
            (folder / "below" / "step.txt").write_text(str(step))
            (folder / "weights").write_bytes(bytes(range(256)) * 4096)
            ray_tune.report({"step": step, "start": start}, checkpoint=ray_tune.Checkpoint.from_directory(folder))

    return counts_to_three


@pytest.fixture
def connected(ray_address: str) -> Iterator[None]:
    ray.init(ray_address, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_tune_run_keeps_its_checkpoints_in_the_bucket(connected: None, bucket: str) -> None:
    path, filesystem = ray_storage(f"{bucket}/runs")
    config = ray_tune.RunConfig(name="tiny", storage_path=path, storage_filesystem=filesystem, verbose=0)
    results = ray_tune.Tuner(trainable(), run_config=config).fit()

    assert results.errors == []
    assert results[0].metrics["step"] == 3
    storage = open_storage(f"{bucket}/runs/tiny")
    keys = [found.key for found in storage.list()]
    steps = [key for key in keys if key.endswith("below/step.txt")]
    assert [storage.read(key) for key in steps] == [b"1", b"2", b"3"]
    assert sum(key.endswith("weights") for key in keys) == 3
    assert storage.clean_up() == 0
    # What Ray's own S3 file system leaves: empty objects as folders, and its marker.
    assert not [found.key for found in storage._list("") if found.key.endswith("/")]
    restored = ray_tune.Tuner.restore(f"{path}/tiny", trainable(), storage_filesystem=filesystem).get_results()
    with restored[0].checkpoint.as_directory() as folder:
        assert (Path(folder) / "below" / "step.txt").read_text() == "3"


LARGE = os.urandom(11 * 2**20)


def test_the_file_system_is_what_pyarrow_expects_of_one(bucket: str) -> None:
    base, plain = ray_storage(f"{bucket}/place")
    assert plain is not None
    filesystem: FileSystem = pickle.loads(pickle.dumps(plain))
    assert filesystem == plain
    storage = open_storage(f"{bucket}/place")
    for key in ("a/b/c", "a/d", "e"):
        with filesystem.open_output_stream(f"{base}/{key}") as stream:
            stream.write(key.encode())

    def infos(*, recursive: bool) -> dict[str, FileType]:
        found = filesystem.get_file_info(FileSelector(base, recursive=recursive))
        return {info.path.removeprefix(f"{base}/"): info.type for info in found}

    file, folder = FileType.File, FileType.Directory
    assert infos(recursive=False) == {"a": folder, "e": file}
    assert infos(recursive=True) == {"a": folder, "a/b": folder, "a/b/c": file, "a/d": file, "e": file}
    asked = [f"{base}/a", f"{base}/e", f"{base}/none", bucket.removeprefix("s3://")]
    assert [info.type for info in filesystem.get_file_info(asked)] == [folder, file, FileType.NotFound, folder]
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(FileSelector(f"{base}/none"))
    assert filesystem.get_file_info(FileSelector(f"{base}/none", allow_not_found=True)) == []

    assert filesystem.open_input_stream(f"{base}/a/b/c").read() == b"a/b/c"
    assert filesystem.open_input_file(f"{base}/a/d").read_at(1, 2) == b"d"
    filesystem.move(f"{base}/e", f"{base}/f")
    assert storage.read("f") == b"e"
    filesystem.delete_dir(f"{base}/a")
    filesystem.delete_file(f"{base}/f")
    assert list(storage.list()) == []
    for operation in (filesystem.open_input_stream, filesystem.delete_file):
        with pytest.raises(FileNotFoundError):
            operation(f"{base}/f")


def test_local_folders_are_left_to_ray(tmp_path: Path) -> None:
    assert ray_storage(str(tmp_path)) == (str(tmp_path), None)


def copied_by_ray(source: Path, filesystem: FileSystem | None, target: str) -> None:
    assert filesystem is not None
    _upload_to_fs_path(str(source), filesystem, target)  # what ray.tune.report does, without its processes


def checkpoint(folder: Path) -> Path:
    (folder / "up" / "sub").mkdir(parents=True)
    (folder / "up" / "small").write_bytes(b"small")
    (folder / "up" / "sub" / "large").write_bytes(LARGE)
    return folder / "up"


@pytest.mark.parametrize("fault", ["503", "reset", "reset-upload", "truncate"])
def test_checkpoints_survive_faults(
    bucket: str, proxy: FaultProxy, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, filesystem = ray_storage(f"{bucket}/place")
    up = checkpoint(tmp_path)
    proxy.plan = dict.fromkeys((3, 6, 9, 12), fault)

    copied_by_ray(up, filesystem, f"{base}/up")
    pyarrow.fs.copy_files(f"{base}/up", str(tmp_path / "down"), source_filesystem=filesystem)

    assert (tmp_path / "down" / "small").read_bytes() == b"small"
    assert (tmp_path / "down" / "sub" / "large").read_bytes() == LARGE
    storage = open_storage(bucket)
    assert [found.key for found in storage.list()] == ["place/up/small", "place/up/sub/large"]
    assert len([record for record in caplog.records if record.name == "pipelines.storage"]) == len(proxy.faults) == 4


@pytest.mark.parametrize("number", [1, 2, 5])  # begin, three parts, complete
def test_a_checkpoint_that_is_not_stored_is_an_error(
    bucket: str, proxy: FaultProxy, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, filesystem = ray_storage(bucket)
    up = checkpoint(tmp_path)
    (up / "small").unlink()
    storage = open_storage(bucket)
    with FaultProxy(proxy.url, dict.fromkeys(range(number, 99), "500"), counted=only("PUT", "POST")) as failing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", failing.url)
        with pytest.raises(StorageError, match=r"sub/large: cannot write: 500.*3 attempts"):
            copied_by_ray(up, filesystem, f"{base}/up")
        assert list(storage.list()) == []
        assert storage.clean_up() == 0  # aborted already
        failing.reset()
        copied_by_ray(up, filesystem, f"{base}/up")
    assert storage.read("up/sub/large") == LARGE


def test_a_file_written_in_pieces_is_whole_or_absent(bucket: str) -> None:
    base, filesystem = ray_storage(bucket)
    storage = open_storage(bucket)
    with filesystem.open_output_stream(f"{base}/file") as stream:
        for piece in (b"one", b"two", b"three"):
            stream.write(piece)
            assert not storage.exists("file") or piece == b"one"
    assert storage.read("file") == b"onetwothree"

    dropped: Any = filesystem.open_output_stream(f"{base}/half")
    dropped.write(bytes(ray_files.PIECE))  # more will come, but then does not, as after an error
    del dropped
    gc.collect()
    assert [found.key for found in storage.list()] == ["file"]

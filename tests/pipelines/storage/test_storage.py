"""Local folders and buckets keep the same promises; the bucket's server is a strict one."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fvae.config import ConfigError
from pipelines.storage import Storage, StorageError, is_remote, open_storage
from pipelines.storage import s3 as s3_module
from tests.s3 import FaultProxy

pytestmark = pytest.mark.core

KEYS = ["A", "a.b/c", "a/b", "a/b c", "a/d/ä+&%20=?#", "aa/b", "b/1", "b/10", "b/2", "~x/[1]"]
same_fixture = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "folder")
    request.getfixturevalue("proxy")
    return open_storage(f"{request.getfixturevalue('bucket')}/some/prefix")


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [found.key for found in storage.list(prefix)]


def test_objects_come_back_as_written_and_are_listed_in_order(storage: Storage) -> None:
    expected = {key: key.encode() * 3 for key in KEYS}
    for key, content in expected.items():
        storage.write(key, content)

    assert {key: storage.read(key) for key in expected} == expected
    assert keys(storage) == sorted(expected)
    assert [found.size for found in storage.list()] == [len(expected[key]) for key in sorted(expected)]
    assert keys(storage, "a") == ["a/b", "a/b c", "a/d/ä+&%20=?#"]  # a folder, not the start of a name
    assert keys(storage, "b") == keys(storage, "b/".rstrip("/")) == ["b/1", "b/10", "b/2"]
    assert keys(storage, "none") == []
    assert keys(storage.child("a").child("d")) == ["ä+&%20=?#"]
    assert storage.child("a").uri == f"{storage.uri}/a"


def test_writing_again_replaces_and_changes_the_version(storage: Storage) -> None:
    storage.write("key", b"one")
    before = storage.info("key")
    storage.write("key", b"two")
    after = storage.info("key")

    assert storage.read("key") == b"two"
    assert (before.size, after.size) == (3, 3)
    assert before.version != after.version
    assert -2 < storage.age("key") < 60
    with pytest.raises(StorageError, match="changed meanwhile"):
        storage.read_range("key", 0, 3, before.version)
    assert storage.read_range("key", 0, 3, after.version) == b"two"


def test_create_makes_an_object_once(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage.create("sub/key", b"%d" % number), range(8)))

    assert made.count(True) == 1
    assert storage.read("sub/key") == b"%d" % made.index(True)
    assert not storage.create("sub/key", b"later")
    assert keys(storage) == ["sub/key"]


def test_replace_needs_the_version_that_was_seen(storage: Storage) -> None:
    assert storage.replace("key", b"x", "any") is None
    storage.write("key", b"start")
    version = storage.info("key").version
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage.replace("key", b"%d" % number, version), range(8)))

    winners = [number for number, new in enumerate(made) if new is not None]
    assert len(winners) == 1
    assert storage.read("key") == b"%d" % winners[0]
    assert made[winners[0]] == storage.info("key").version
    assert storage.replace("key", b"late", version) is None


@pytest.mark.parametrize("key", ["absent", "folder", "folder/file/below", "absent/below"])
def test_what_is_absent_is_file_not_found(storage: Storage, key: str, tmp_path: Path) -> None:
    storage.write("folder/file", b"content")
    for operation in (
        lambda: storage.read(key),
        lambda: storage.read_range(key, 0, 1),
        lambda: storage.open(key),
        lambda: storage.info(key),
        lambda: storage.age(key),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            operation()
        assert f"{storage.uri}/{key}" in str(caught.value)
    assert not storage.exists(key)
    storage.delete(key) if key != "folder" else storage.delete("folder/none")
    if key != "folder":
        with pytest.raises(FileNotFoundError):
            storage.download(key, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert storage.exists("folder/file")


def test_folders_go_there_and_back(storage: Storage, tmp_path: Path, small_parts: int) -> None:
    contents = {f"f{number}": bytes([number]) * number for number in range(10)}
    contents |= {"sub/deep/x": b"", "sub/large": os.urandom(small_parts * 2 + 1), "sub/other": os.urandom(2**20 + 1)}
    for name, content in contents.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)

    storage.upload(tmp_path / "source", "run/artifacts")
    storage.upload(tmp_path / "source" / "f3", "run/single")
    storage.download("run/artifacts", tmp_path / "target")
    storage.download("run/single", tmp_path / "new" / "single")

    target = tmp_path / "target"
    assert {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    } == contents
    assert (tmp_path / "new" / "single").read_bytes() == contents["f3"]
    assert storage.read("run/artifacts/sub/large") == contents["sub/large"]
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "nothing", "x")


def test_delete_prefix_takes_a_folder_and_no_more(storage: Storage) -> None:
    for key in ("a/1", "a/2/3", "a/4", "ab", "b/a/1"):
        storage.write(key, b"x")
    storage.delete_prefix("a")
    assert keys(storage) == ["ab", "b/a/1"]
    storage.delete("ab", "absent")
    storage.delete_prefix("")
    assert keys(storage) == []


@same_fixture
@given(st.binary(max_size=60), st.integers(0, 70), st.integers(0, 70))
def test_ranges_are_slices(storage: Storage, content: bytes, start: int, length: int) -> None:
    storage.write("ranged", content)
    assert storage.read_range("ranged", start, length) == content[start : start + length]


@same_fixture
@given(
    st.binary(max_size=80),
    st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-90, 90), st.integers(-1, 30)), max_size=12),
)
def test_open_reads_as_a_file_does(storage: Storage, content: bytes, steps: list[tuple[int, int, int]]) -> None:
    storage.write("file", content)
    with pytest.MonkeyPatch.context() as patch, io.BytesIO(content) as expected:
        patch.setattr(s3_module, "READ_AHEAD", 16)
        with storage.open("file") as file:
            for whence, offset, count in steps:
                base = [0, expected.tell(), len(content)][whence]
                if base + offset >= 0:
                    assert file.seek(base + offset) == expected.seek(base + offset)
                assert file.read(count) == expected.read(count)
                assert file.tell() == expected.tell()


def test_storages_travel_between_processes_without_secrets(storage: Storage) -> None:
    storage.write("key", b"content")
    pickled = pickle.dumps(storage)
    assert b"secret" not in pickled
    assert pickle.loads(pickled).read("key") == b"content"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../../b", ".", "a\0b"])
def test_keys_that_leave_the_storage_are_refused(storage: Storage, key: str) -> None:
    for operation in (storage.read, storage.info, storage.child):
        with pytest.raises(ValueError, match="key"):
            operation(key)
    with pytest.raises(ValueError, match="key"):
        storage.write(key, b"x")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gs://bucket/x", "gs://"),
        ("https://bucket/x", "https://"),
        ("file:///tmp", "file://"),
        ("s3://", "bucket name"),
        ("s3://Bucket/x", "'Bucket'"),
        ("s3://a_b", "'a_b'"),
        ("s3://ab", "'ab'"),
        ("s3://127.0.0.1/x", "'127.0.0.1'"),
        ("s3://bucket/a//b", "'..'"),
        ("s3://bucket/../b", "'..'"),
        ("", "''"),
    ],
)
def test_locations_that_cannot_be_are_one_clear_line(location: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(location)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("some/folder").uri == str(tmp_path / "some" / "folder")
    assert open_storage("some/folder").local_path == tmp_path / "some" / "folder"
    assert open_storage("s3://bucket/").uri == "s3://bucket"
    assert open_storage("s3://bucket/a/b/").uri == "s3://bucket/a/b"
    assert open_storage("s3://bucket/a").local_path is None
    assert all(is_remote(each) for each in ("s3://b/x", "gs://b", "C://x"))
    assert not any(is_remote(each) for each in ("/a/b", "a:b", "s3:/b", tmp_path))


def test_a_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("a", b"file")
    for operation in (lambda: storage.write("a/b", b"x"), lambda: storage.create("a/b", b"x")):
        with pytest.raises(StorageError, match=r"a/b: cannot write: ") as caught:
            operation()
        assert "\n" not in str(caught.value)
    storage.write("b/c", b"x")
    with pytest.raises(StorageError, match="b: cannot write: "):
        storage.write("b", b"x")
    assert keys(storage) == ["a", "b/c"]


def test_clean_up_takes_what_killed_processes_left_locally(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("sub/key", b"x")
    storage.write("sub/.hidden", b"x")
    left = tmp_path / "sub" / f".key.{'0' * 32}"
    left.write_bytes(b"half")

    assert keys(storage) == ["sub/.hidden", "sub/key"]
    assert storage.clean_up(older_than_seconds=3600) == 0
    assert storage.clean_up() == 1
    assert not left.exists()
    assert keys(storage) == ["sub/.hidden", "sub/key"]


def test_clean_up_aborts_what_killed_processes_left_in_a_bucket(proxy: FaultProxy, bucket: str, s3_client: Any) -> None:
    name = bucket.removeprefix("s3://")
    for key in ("here/a", "here/b/c", "elsewhere/a"):
        s3_client.create_multipart_upload(Bucket=name, Key=key)

    assert open_storage(f"{bucket}/here").clean_up(older_than_seconds=3600) == 0
    assert open_storage(f"{bucket}/here").clean_up() == 2
    left = s3_client.list_multipart_uploads(Bucket=name)["Uploads"]
    assert [each["Key"] for each in left] == ["elsewhere/a"]


def test_objects_of_other_tools_are_read_and_their_folders_passed_over(bucket: str, s3_client: Any) -> None:
    client, name = s3_client, bucket.removeprefix("s3://")
    client.put_object(Bucket=name, Key="data/x", Body=b"plain")
    client.put_object(Bucket=name, Key="data/", Body=b"")
    client.put_object(Bucket=name, Key="data/empty/", Body=b"")
    storage = open_storage(f"{bucket}/data")

    assert storage.read("x") == b"plain"
    assert keys(storage) == ["x"]
    assert keys(open_storage(bucket)) == ["data/x"]
    open_storage(bucket).delete_prefix("data")
    assert client.list_objects_v2(Bucket=name)["KeyCount"] == 0


def test_large_objects_are_opened_in_few_requests(proxy: FaultProxy, bucket: str) -> None:
    content = os.urandom(20 * 2**20)
    storage = open_storage(bucket)
    storage.write("key", content)
    proxy.reset()
    with storage.open("key") as file:
        assert file.read() == content
    assert len(proxy.requests) <= 5
    with storage.open("key") as file:
        assert b"".join(iter(lambda: file.read(10_000), b"")) == content
    assert len(proxy.requests) <= 10


@pytest.mark.parametrize("size", [100, 20 * 2**20])
def test_content_that_was_spoilt_in_the_store_is_found(
    bucket: str, impatient: None, s3_client: Any, tmp_path: Path, size: int
) -> None:
    name = bucket.removeprefix("s3://")
    storage = open_storage(bucket)
    storage.write("key", bytes(size))
    metadata = s3_client.head_object(Bucket=name, Key="key")["Metadata"]
    s3_client.put_object(Bucket=name, Key="key", Body=bytes(size - 1) + b"x", Metadata=metadata)

    for operation in (
        lambda: storage.read("key"),
        lambda: storage.download("key", tmp_path / "target"),
        lambda: storage.open("key").read(),
    ):
        with pytest.raises(StorageError, match=rf"{bucket}/key: cannot read: .*SHA-256.*attempt"):
            operation()
    assert list(tmp_path.iterdir()) == []
